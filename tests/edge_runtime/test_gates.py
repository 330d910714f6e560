import contextlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import GateError
from edge_runtime.gates import MAX_GROUPS, GateGroup, Gates, GateSpace
from tests.support.spaces import raw_values, spaces, subnets

WINDOWED = GateSpace(
    (
        GateGroup("u0", "choice", ("original", "half", "merged2", "merged3"), (1, 1, 2, 3)),
        GateGroup("u1", "choice", ("original", "skip")),
        GateGroup("u2", "choice", ("original", "skip")),
        GateGroup("heads", "experts", ("cats", "dogs", "birds")),
    )
)

space_and_gates = spaces().flatmap(lambda space: st.tuples(st.just(space), subnets(space)))


@given(space_and_gates)
def test_text_json_and_vector_round_trip(pair):
    space, gates = pair
    assert space.parse(str(gates)) == gates
    assert space.from_json(json.loads(json.dumps(gates.to_json()))) == gates
    assert space.from_vector(gates.vector()) == gates
    assert space.from_vector(np.array(gates.vector(), dtype=np.int64)) == gates
    assert len(gates.vector()) == space.width


@given(spaces())
def test_a_space_round_trips_through_json(space):
    assert GateSpace.parse_json(json.loads(json.dumps(space.to_json()))) == space


@given(spaces(max_groups=4))
def test_size_counts_what_enumerate_yields_in_order_and_once(space):
    subnets_ = list(space.enumerate())
    vectors = [gates.vector() for gates in subnets_]
    assert len(subnets_) == space.size() == len(set(subnets_))
    assert vectors == sorted(vectors)
    assert space.default in subnets_


@given(spaces().flatmap(lambda space: st.tuples(st.just(space), raw_values(space))))
def test_one_subnet_has_one_vector(pair):
    space, values = pair
    gates = space.gates(values)
    active = space.active(gates.values)
    assert gates == Gates(space, gates.values)
    # What an inactive group is said to be changes nothing.
    for index, group in enumerate(space.groups):
        if not active[index]:
            assert gates.values[index] == 0
            again = space.gates((*values[:index], group.size - 1, *values[index + 1 :]))
            assert again == gates
            assert hash(again) == hash(gates)


@given(space_and_gates)
def test_values_are_plain_python(pair):
    _, gates = pair
    for value in gates.values:
        assert type(value) is int or all(type(bit) is int for bit in value)


def test_a_merged_alternative_switches_off_what_it_spans():
    assert str(WINDOWED.parse("2-1-1-b111")) == "2-0-1-b111"
    assert str(WINDOWED.parse("3-1-1-b111")) == "3-0-0-b111"
    assert WINDOWED.parse("2-0-1-b111").active == (True, False, True, True)
    assert [WINDOWED.covering(index) for index in range(4)] == [0, 0, 0, 3]


def test_the_default_is_the_oracle():
    assert str(WINDOWED.default) == "0-0-0-b111"
    assert WINDOWED.parse(" full ") == WINDOWED.default
    assert WINDOWED.default.is_default
    assert not WINDOWED.parse("1-0-0-b111").is_default


def test_replace_normalises_again():
    gates = WINDOWED.parse("0-1-1-b100")
    assert str(gates.replace(0, 3)) == "3-0-0-b100"
    assert str(gates) == "0-1-1-b100"


def test_enumerate_walks_spaces_deeper_than_the_stack():
    space = GateSpace(tuple(GateGroup(f"u{index}", "choice", ("a", "b")) for index in range(MAX_GROUPS)))
    first = list(itertools.islice(space.enumerate(), 3))
    assert [sum(gates.vector()) for gates in first] == [0, 1, 1]
    assert space.size() == 2**MAX_GROUPS


def test_gates_of_another_space_are_not_equal():
    other = GateSpace((GateGroup("v0", "choice", ("original", "half")),))
    same = GateSpace((GateGroup("v0", "choice", ("original", "half")),))
    assert other.default == same.default
    assert other.default != GateSpace((GateGroup("v1", "choice", ("original", "half")),)).default
    assert other.default != "0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0-0-0", "has 3 parts"),
        ("9-0-0-b111", "has no alternative 9"),
        ("x-0-0-b111", "takes a number"),
        ("0-0-0-b000", "at least one"),
        ("0-0-0-b11", "takes 3 bits"),
        ("0-0-0-111", "takes 3 bits"),
        ("0-0-0-b112", "takes 3 bits"),
        ("-1-0-0-b111", "has 5 parts"),
        ("٣-0-0-b111", "takes a number"),
        ("", "has 1 parts"),
        ("0" * 100_000, "has 1 parts"),
    ],
)
def test_unknown_gate_text_is_refused_with_a_word(text, says):
    with pytest.raises(GateError, match=says) as caught:
        WINDOWED.parse(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "vector", [(0, 0, 0, 1, 1), (0.5, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 2), (0, 0, 0, 0, 0, 0), ("0", 0, 0, 1, 1, 1)]
)
def test_a_bad_vector_is_refused(vector):
    with pytest.raises(GateError):
        WINDOWED.from_vector(vector)


HUGE = 10**5000
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from(
        [10**40, -(10**40), 2**63, 0.5, 1.0, float("nan"), float("inf"), "", "0", "choice", "subset", b"x"]
    ),
    st.text(max_size=5),
)
hostile = st.recursive(odd, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@given(hostile)
def test_hostile_gates_are_a_gate_or_a_gate_error(body):
    _only_gate_errors(lambda: WINDOWED.from_json(body))
    _only_gate_errors(lambda: WINDOWED.from_json([body, 0, 0, [1, 1, 1]]))
    _only_gate_errors(lambda: WINDOWED.from_json([0, 0, 0, body]))
    _only_gate_errors(lambda: WINDOWED.gates([0, body, 0, (1, 1, 1)]))
    _only_gate_errors(lambda: WINDOWED.gates([0, 0, 0, body]))


@given(hostile, st.sampled_from(["name", "kind", "labels", "spans"]), st.booleans())
def test_hostile_spaces_are_a_space_or_a_gate_error(value, key, inside):
    _only_gate_errors(lambda: GateSpace.parse_json(value))
    _only_gate_errors(lambda: GateSpace.parse_json([value]))
    body = WINDOWED.to_json()
    body[0][key] = [value, 1, 2, 3] if inside else value
    _only_gate_errors(lambda: GateSpace.parse_json(body))


@pytest.mark.parametrize("body", [nested(100_000), [nested(100_000), 0, 0, [1]], [HUGE, 0, 0, [1, 1, 1]], {"a": 1}])
def test_deep_and_huge_json_gives_a_short_error(body):
    for reader in (WINDOWED.from_json, GateSpace.parse_json):
        with pytest.raises(GateError) as caught:
            reader(body)
        assert len(str(caught.value)) < 300


def _only_gate_errors(call):
    with contextlib.suppress(GateError):
        assert isinstance(call(), (Gates, GateSpace))


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ((), "needs 1 to"),
        ([GateGroup("a", "choice", ("x",))], "needs 1 to"),
        ((GateGroup("a", "choice", ("x",)), GateGroup("a", "choice", ("x",))), "share the name 'a'"),
        ((GateGroup("a", "choice", ("x", "m"), (1, 2)),), "ends after the last group"),
        (
            (GateGroup("a", "choice", ("x", "m"), (1, 2)), GateGroup("b", "subset", ("p", "q"))),
            "covers 'b', which is no choice",
        ),
        (
            (
                GateGroup("a", "choice", ("x", "m"), (1, 2)),
                GateGroup("b", "choice", ("x", "m"), (1, 2)),
                GateGroup("c", "choice", ("x",)),
            ),
            "overlap",
        ),
    ],
)
def test_a_space_cannot_be_built_invalid(groups, says):
    with pytest.raises(GateError, match=says):
        GateSpace(groups)


@pytest.mark.parametrize(
    ("name", "kind", "labels", "spans"),
    [
        ("", "choice", ("a",), ()),
        ("a b", "choice", ("a",), ()),
        ("a\n", "choice", ("a",), ()),
        ("a", "pick", ("a",), ()),
        ("a", ["choice"], ("a",), ()),
        ("a", "choice", (), ()),
        ("a", "choice", "ab", ()),
        ("a", "choice", ("x", "x"), ()),
        ("a", "choice", ("x", "y"), (1,)),
        ("a", "choice", ("x", "y"), (2, 1)),
        ("a", "choice", ("x", "y"), (1, 0)),
        ("a", "choice", ("x", "y"), (1, True)),
        ("a", "choice", ("x", "y"), (1, HUGE)),
        ("a", "subset", ("x", "y"), (1, 2)),
    ],
)
def test_a_group_cannot_be_built_invalid(name, kind, labels, spans):
    with pytest.raises(GateError):
        GateGroup(name, kind, labels, spans)
