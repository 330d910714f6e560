"""Decisions that are made outside of the graph, and the default subnet beside them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_runtime.backends.onnx.passes import Decisions, decide_outside, inline_gates, run_default_whole
from edge_runtime.backends.onnx.passes.names import branches_of
from edge_runtime.backends.onnx.session import create_prepared
from edge_runtime.errors import BackendError
from tests.support.dumps import OPTIONS, Dump, image, nodes_of, operators
from tests.support.tiny import SPACE, tiny_reference

DEFAULT = SPACE.default.vector()


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    return Dump(tmp_path_factory.mktemp("dump"))


def decided(dump: Dump, *, whole: bool) -> tuple[Any, Decisions]:
    model = dump.model()
    decisions = decide_outside(model, "gates", DEFAULT)
    assert decisions is not None
    if whole:
        run_default_whole(model, decisions)
    return model, decisions


@pytest.mark.parametrize("whole", [True, False])
def test_every_subnet_answers_as_an_independent_model(dump: Dump, whole: bool) -> None:
    model, decisions = decided(dump, whole=whole)
    session = dump.session(model)
    assert {value.name for value in session.get_inputs()} == {"image", decisions.name}, "nothing reads the gates"
    for gates in SPACE.enumerate():
        wanted = tiny_reference(gates, image(2))
        for as_whole in (True, False):
            feeds = {"image": image(2), decisions.name: decisions.vector(gates.vector(), whole=as_whole)}
            np.testing.assert_allclose(session.run(None, feeds)[0], wanted, rtol=1e-3, atol=1e-4, err_msg=str(gates))


def test_what_is_left_is_one_level_for_each_bit(dump: Dump) -> None:
    before, (model, decisions) = operators(dump.model()), decided(dump, whole=False)
    after = Counter(node.op_type for node in nodes_of(model.graph))
    assert (after["Less"], after["Gather"], after["Split"], after["Equal"], after["Squeeze"]) == (0, 0, 2, 0, 0)
    assert after["If"] == before[".If"] + before["ai.onnx.If"], "a decision among n takes n - 1, however they stand"
    assert len(decisions.rows) <= after["If"]


def test_the_default_runs_with_a_single_decision(dump: Dump) -> None:
    model, decisions = decided(dump, whole=True)
    (outer,) = [node for node in model.graph.node if node.op_type == "If"]
    whole, parts = (next(a.g for a in outer.attribute if a.name == name) for name in ("then_branch", "else_branch"))
    assert not any(list(branches_of(node)) for node in whole.node)
    assert "Identity" not in {node.op_type for node in whole.node}, "nothing is copied on the way"
    read = {name for node in nodes_of(parts) for name in node.input}
    assert {tensor.name for tensor in parts.initializer} <= read, "no branch keeps what nothing reads"
    stored = [tensor for graph in (model.graph, parts) for tensor in graph.initializer]
    outside = {place(tensor) for tensor in stored if tensor.data_location == TensorProto.EXTERNAL}
    assert not outside & {place(tensor) for tensor in whole.initializer if tensor.data_location == TensorProto.EXTERNAL}
    assert decisions.vector(DEFAULT)[0]
    assert not decisions.vector(DEFAULT, whole=False)[0]
    assert not decisions.vector((1, 0, 0))[0]


def place(tensor: Any) -> tuple[str, ...]:
    return tuple(entry.value for entry in tensor.external_data)


def test_names_stay_unique_and_the_default_shares_its_weights(dump: Dump) -> None:
    model, _ = decided(dump, whole=True)
    made = [name for node in nodes_of(model.graph) for name in node.output]
    assert len(made) == len(set(made))

    def places(graph: Any) -> list[tuple[str, ...]]:
        own = [place(tensor) for tensor in graph.initializer if tensor.external_data]
        return own + [found for node in graph.node for branch in branches_of(node) for found in places(branch)]

    assert set(places(model.graph)) == set(places(dump.model().graph)), "the same bytes of the same file"


@pytest.mark.parametrize("whole", [True, False])
def test_a_subnet_inlined_from_it_answers_to_the_bit(dump: Dump, whole: bool) -> None:
    model, decisions = decided(dump, whole=True)
    session = dump.session(model)
    for gates in SPACE.enumerate():
        fed = {decisions.name: decisions.vector(gates.vector(), whole=whole)}
        alone = dump.session(inline_gates(model, fed))
        gated = session.run(None, {"image": image(2), **fed})[0]
        np.testing.assert_array_equal(alone.run(None, {"image": image(2)})[0], gated)


def test_the_graph_carries_how_it_is_fed(dump: Dump) -> None:
    model, decisions = decided(dump, whole=True)
    metadata = dump.session(model).get_modelmeta().custom_metadata_map
    assert Decisions.found_in(metadata) == decisions
    assert Decisions.found_in({}) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"name": "d", "entries": [9], "rows": [[true]], "default": [0]}',
     '{"name": "d", "entries": [0, 0], "rows": [[true]], "default": [0]}',
     '{"name": "d", "entries": [0], "rows": [[]], "default": [0]}'],
)  # fmt: skip
def test_damaged_decisions_are_refused(dump: Dump, text: str) -> None:
    model, _ = decided(dump, whole=False)
    key = model.metadata_props[0].key
    with pytest.raises(BackendError):
        Decisions.found_in({key: text})


# ---- decisions of every kind, on graphs that give back which alternative was taken


def value(name: str, number: float) -> Any:
    """A branch that gives a number."""
    constant = helper.make_tensor(f"{name}_value", TensorProto.FLOAT, [1], [number])
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])]
    return helper.make_graph([helper.make_node("Identity", [f"{name}_value"], [name])], name, [], out, [constant])


def tree(lows: list[int], bounds: list[int], used: list[int]) -> tuple[list[Any], list[Any], str]:
    """Nodes and tensors that give the number of the interval that gate 2 is in; splits at `bounds`, in their order."""
    number = len(used)
    used.append(number)
    bound, name = bounds[0], f"d{number}"
    tensor = helper.make_tensor(f"{name}_bound", TensorProto.INT64, [], [bound])
    test = helper.make_node("Less", ["gate", tensor.name], [f"{name}_test"])

    def side(label: str, mine: list[int]) -> Any:
        inner = [other for other in bounds[1:] if min(mine, default=0) < other <= max(mine, default=0)]
        if not inner:
            return value(f"{name}_{label}", float(max(mine, default=-1)))
        nodes, tensors, out = tree(mine, inner, used)
        declared = [helper.make_tensor_value_info(out, TensorProto.FLOAT, [1])]
        return helper.make_graph(nodes, f"{name}_{label}", [], declared, tensors)

    below, above = [low for low in lows if low < bound], [low for low in lows if low >= bound]
    branches = {"then_branch": side("below", below), "else_branch": side("above", above)}
    return [test, helper.make_node("If", [f"{name}_test"], [name], f"group_{number}", **branches)], [tensor], name


def graph_of(nodes: list[Any], tensors: list[Any], out: str) -> Any:
    gate = [helper.make_node("Gather", ["gates", "two"], ["gate"], axis=0)]
    graph = helper.make_graph(
        [*gate, *nodes],
        "g",
        [helper.make_tensor_value_info("gates", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [1])],
        [helper.make_tensor("two", TensorProto.INT64, [], [2]), *tensors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def answers(model: Any, decisions: Decisions | None, values: range) -> list[float]:
    session = create_prepared(model.SerializeToString(), OPTIONS)
    taken = {each.name for each in session.get_inputs()}
    found = []
    for number in values:
        feeds = {"gates": np.array([7, 7, number], np.int64)} if "gates" in taken else {}
        if decisions is not None:
            feeds[decisions.name] = decisions.vector((7, 7, number))
        found.append(float(session.run(None, feeds)[0][0]))
    return found


@given(st.permutations([1, 2, 3, 4, 5]), st.integers(1, 5))
def test_a_decision_means_the_same_afterwards_whatever_its_tree_was(order: list[int], count: int) -> None:
    bounds = order[:count]
    model = graph_of(*tree(list(range(6)), bounds, []))
    before = answers(model, None, range(8))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert decisions is not None
    assert len(decisions.rows) == int(np.ceil(np.log2(count + 1))), "one bit for each level of a balanced tree"
    assert answers(model, decisions, range(8)) == before
    run_default_whole(model, decisions)
    assert answers(model, decisions, range(8)) == before


def test_names_that_are_taken_are_not_taken_again() -> None:
    nodes = [
        helper.make_node("Gather", ["gates", "two"], ["decide_0"], axis=0),
        helper.make_node("Less", ["decide_0", "two"], ["decide_whole"]),
        helper.make_node(
            "If", ["decide_whole"], ["y"], "decide", then_branch=value("yes", 1), else_branch=value("no", 0)
        ),
    ]
    model = graph_of(nodes, [], "y")
    before = answers(model, None, range(5))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert answers(model, decisions, range(5)) == before == [1, 1, 0, 0, 0]


def test_what_a_branch_computes_before_it_decides_again_stays() -> None:
    """A Split of data looks like what takes the gates apart, and is read by the branches further in."""
    parts = helper.make_tensor("parts", TensorProto.FLOAT, [2], [3, 4])
    inner = [
        helper.make_node("Split", ["parts"], ["first", "second"], axis=0),
        helper.make_node("Less", ["gate", "two"], ["inner_test"]),
        helper.make_node(
            "If", ["inner_test"], ["z"], "inner", then_branch=copy_of("first"), else_branch=copy_of("second")
        ),
    ]
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])]
    rest = helper.make_graph(inner, "rest", [], out, [parts])
    test = helper.make_node("Less", ["gate", "one"], ["test"])
    outer = helper.make_node("If", ["test"], ["y"], "outer", then_branch=value("yes", 1), else_branch=rest)
    model = graph_of([test, outer], [helper.make_tensor("one", TensorProto.INT64, [], [1])], "y")
    before = answers(model, None, range(4))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert answers(model, decisions, range(4)) == before == [1, 3, 4, 4]


def copy_of(name: str) -> Any:
    out = [helper.make_tensor_value_info(f"{name}_copy", TensorProto.FLOAT, [1])]
    return helper.make_graph([helper.make_node("Identity", [name], [f"{name}_copy"])], f"{name}_branch", [], out)


def test_a_number_of_a_branch_that_is_read_further_in_stays() -> None:
    mine = helper.make_tensor("mine", TensorProto.INT64, [1], [3])
    cast = helper.make_node("Cast", ["mine"], ["cast"], to=TensorProto.FLOAT)
    declared = [helper.make_tensor_value_info("cast", TensorProto.FLOAT, [1])]
    leaf = helper.make_graph([cast], "leaf", [], declared)
    inner = [
        helper.make_node("Less", ["gate", "two"], ["inner_test"]),
        helper.make_node("If", ["inner_test"], ["z"], "inner", then_branch=leaf, else_branch=value("no", 4)),
    ]
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])]
    test = helper.make_node("Less", ["gate", "one"], ["test"])
    branches = {"then_branch": value("yes", 1), "else_branch": helper.make_graph(inner, "rest", [], out, [mine])}
    outer = helper.make_node("If", ["test"], ["y"], "outer", **branches)
    model = graph_of([test, outer], [helper.make_tensor("one", TensorProto.INT64, [], [1])], "y")
    before = answers(model, None, range(4))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert answers(model, decisions, range(4)) == before == [1, 3, 4, 4]


def test_several_values_may_leave_the_decided_part() -> None:
    """Two decisions hand through the same value by default, and what is in front of them is read behind them too."""
    data = helper.make_tensor("data", TensorProto.FLOAT, [1], [5])
    nodes = [helper.make_node("Neg", ["data"], ["t"])]
    for name in ("a", "b"):
        branches = {"then_branch": renamed(copy_of("t"), name), "else_branch": value(f"{name}_other", 10)}
        nodes += [
            helper.make_node("Less", ["gate", "one"], [f"{name}_test"]),
            helper.make_node("If", [f"{name}_test"], [name], f"group_{name}", **branches),
        ]
    nodes += [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Add", ["sum", "t"], ["y"])]
    model = graph_of(nodes, [data, helper.make_tensor("one", TensorProto.INT64, [], [1])], "y")
    before = answers(model, None, range(3))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert decisions is not None
    run_default_whole(model, decisions)
    assert [node.op_type for node in model.graph.node].count("If") == 1
    assert answers(model, decisions, range(3)) == before == [-15, 15, 15]


def renamed(graph: Any, suffix: str) -> Any:
    """A branch whose own names nothing else has."""
    graph.name += suffix
    graph.node[0].output[0] += suffix
    graph.output[0].name += suffix
    return graph


def test_subnets_that_differ_in_modules_alone_run_as_a_whole() -> None:
    decisions = Decisions("d", (0,), ((True, False),), (0, 1, 1))
    assert decisions.vector((0, 0, 1))[0]
    assert not decisions.vector((1, 1, 1))[0]


def test_a_path_with_a_decision_of_another_kind_has_no_whole() -> None:
    nodes, tensors, out = tree([0, 1, 2], [1, 2], [])
    branches = {"then_branch": value("yes", 10), "else_branch": value("no", 0)}
    other = [
        helper.make_node("Equal", ["gate", "two"], ["other"]),
        helper.make_node("If", ["other"], ["z"], "z", **branches),
    ]
    model = graph_of([*nodes, *other, helper.make_node("Add", [out, "z"], ["y"])], tensors, "y")
    before = answers(model, None, range(4))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert decisions is not None
    run_default_whole(model, decisions)
    assert answers(model, decisions, range(4)) == before


ZERO = helper.make_tensor("zero", TensorProto.INT64, [], [0])


@pytest.mark.parametrize(
    "conditions",
    [
        [helper.make_node("Equal", ["gate", "two"], ["condition"])],
        [helper.make_node("Less", ["two", "gate"], ["condition"])],
        [helper.make_node("Less", ["gate", "two"], ["less"]), helper.make_node("Not", ["less"], ["condition"])],
        [helper.make_node("Less", ["gate", "zero"], ["condition"])],  # no gate leads to its first branch
    ],
)
def test_a_decision_of_another_kind_stays_as_it_is(conditions: list[Any]) -> None:
    branches = {"then_branch": value("yes", 1), "else_branch": value("no", 0)}
    model = graph_of([*conditions, helper.make_node("If", ["condition"], ["y"], "group_0", **branches)], [ZERO], "y")
    before = model.SerializeToString()
    assert decide_outside(model, "gates", (7, 7, 0)) is None
    assert model.SerializeToString() == before


def test_what_still_reads_the_gates_is_still_fed_them(tmp_path: Path) -> None:
    branches = {"then_branch": value("yes", 10), "else_branch": value("no", 0)}
    nodes, tensors, out = tree([0, 1, 2], [1, 2], [])
    nodes += [
        helper.make_node("Equal", ["gate", "two"], ["other"]),
        helper.make_node("If", ["other"], ["z"], **branches),
    ]
    nodes.append(helper.make_node("Add", [out, "z"], ["y"]))
    model = graph_of(nodes, tensors, "y")
    before = answers(model, None, range(4))
    decisions = decide_outside(model, "gates", (7, 7, 0))
    assert answers(model, decisions, range(4)) == before == [0, 1, 12, 2]
