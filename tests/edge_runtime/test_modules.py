"""Layers of modules through every running form: what is fed, what is kept, and what is made of one subnet alone."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation import AdaptStatus
from edge_runtime.backends import SessionOptions, compile_bundle, export_subnet, open_compiled, open_static
from edge_runtime.backends.base import Array, relative_difference
from edge_runtime.backends.onnx.compile import read_modules
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.backends.onnx.layout import convolution_layouts
from edge_runtime.backends.onnx.modules import KEPT, ModuleInput, ModuleWeights
from edge_runtime.backends.onnx.prepare import PORTABLE, RECORD, SKELETON, TENSORS
from edge_runtime.backends.onnx.prepared import PreparedGraph
from edge_runtime.backends.onnx.session import WEIGHTS_FILE
from edge_runtime.backends.onnx.telemetry import import_onnxruntime
from edge_runtime.bundle import Bundle
from edge_runtime.cli import main
from edge_runtime.errors import BackendError, BudgetError
from edge_runtime.gates import Gates
from edge_runtime.seeds import random_gates
from tests.support.modular import CHOICE, modular_bundle, modular_reference, supernets
from tests.support.tiny import tiny_bundle

pytest.importorskip("builder.onnx_writer")

OPTIONS = SessionOptions()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return modular_bundle(tmp_path_factory.mktemp("bundle") / "modules.nnf")


@pytest.fixture(scope="module")
def prepared(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    compile_bundle(bundle, OPTIONS, folder, key="k")
    return folder


@pytest.fixture(scope="module")
def modules(prepared: Path) -> list[ModuleInput]:
    return read_modules(json.loads((prepared / RECORD).read_text()))


@pytest.fixture
def session(bundle: Bundle, prepared: Path, modules: list[ModuleInput]) -> Iterator[CompiledSession]:
    opened = CompiledSession(prepared, bundle.manifest, OPTIONS, form="crossing", specialises=True, modules=modules)
    yield opened
    opened.close()


@pytest.fixture
def graph(bundle: Bundle, prepared: Path, modules: list[ModuleInput]) -> PreparedGraph:
    return PreparedGraph(prepared, bundle.manifest, OPTIONS, modules)


def image(batch: int = 1, seed: int = 0) -> dict[str, Array]:
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def drawn(bundle: Bundle, count: int, seed: int = 0) -> list[Gates]:
    """The full subnet and random ones."""
    rng, space = random.Random(seed), bundle.manifest.space
    return [space.default, *(random_gates(space, rng) for _ in range(count - 1))]


# Every form computes what numpy computes.


def test_a_module_that_is_off_changes_the_answer_as_masking_it_does(bundle: Bundle, session: CompiledSession) -> None:
    space = bundle.manifest.space
    full = session.run(image(), space.default)["logits"]
    for index, group in enumerate(space.groups):
        for module in range(group.size if group.kind == "subset" else 0):
            gates = space.default.replace(index, tuple(int(bit != module) for bit in range(group.size)))
            found = session.run(image(), gates)["logits"]
            assert relative_difference(full, found) > 0.01
            assert relative_difference(modular_reference(bundle, gates, image()["image"]), found) < 1e-4


def test_a_module_alone_answers_alike_in_every_form(bundle: Bundle, session: CompiledSession) -> None:
    space = bundle.manifest.space
    for module in range(8):
        bits = tuple(int(bit == module) for bit in range(8))
        gates = space.gates([module % 5 if group.kind == "choice" else bits for group in space.groups])
        wanted = modular_reference(bundle, gates, image(2)["image"])
        found = [session.run(image(2), gates), open_static(export_subnet(bundle, gates)).run(image(2))]
        with session.hold([gates]):
            assert gates in session.specialised
            found.append(session.run(image(2), gates))
        assert max(relative_difference(wanted, each["logits"]) for each in found) < 1e-4


def test_an_exported_subnet_is_small_and_plain(bundle: Bundle) -> None:
    gates = bundle.manifest.space.parse("b00010001-b10000000-4-b00010000-b11111111-b11111110")
    model = onnx.load_from_string(export_subnet(bundle, gates))
    assert not {"Compress", "Cast", "Gather", "If"} & {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ["image"]
    shapes = {tuple(tensor.dims) for tensor in model.graph.initializer}
    assert {(16, 32, 3, 3), (16,), (32, 16, 1, 1)} <= shapes, "two modules of 8 channels in the first layer"
    assert (64, 32, 3, 3) not in shapes


def test_a_network_of_modules_alone_is_prepared_and_answers(tmp_path: Path) -> None:
    net = supernets().Net(8, 0)
    x = net.relu(net.conv("image", "stem", 3, 16, 3, 2), "stem.act")
    bundle = net.bundle("plain", net.relu(net.modules(x, "layer0", 16, 16, 1), "out"), 16, tmp_path / "b.nnf", 0)
    (tmp_path / "p").mkdir()
    compile_bundle(bundle, OPTIONS, tmp_path / "p", key="k")
    session = open_compiled(bundle, OPTIONS, tmp_path / "p", key="k")
    x = {"image": np.ones((1, 3, 8, 8), np.float32)}
    for text in ("full", "b00000001"):
        gates = bundle.manifest.space.parse(text)
        wanted = open_static(export_subnet(bundle, gates)).run(x)["logits"]
        assert relative_difference(wanted, session.run(x, gates)["logits"]) < 1e-4
    session.close()


def test_convolutions_of_one_subnet_alone_are_blocked(bundle: Bundle, graph: PreparedGraph, tmp_path: Path) -> None:
    level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_ALL
    for gates in drawn(bundle, 3):
        assert graph.alone(gates).get_session_options().graph_optimization_level == level
        report = convolution_layouts(graph.subnet(gates), bundle.weights, OPTIONS, tmp_path)
        if not report.blocked:
            pytest.skip("this processor has no blocked layout")
        assert report.plain == ()
        assert len(report.blocked) >= 11


# What is gathered, and when.


def test_weights_are_gathered_once_and_shared_where_layers_are_alike(
    prepared: Path, modules: list[ModuleInput], bundle: Bundle
) -> None:
    weights, space = ModuleWeights(prepared / WEIGHTS_FILE, modules), bundle.manifest.space
    one = space.parse("b00000001-b11111111-0-b00010000-b10000001-b11111110")
    first, other = weights.feeds(one), weights.feeds(one.replace(0, (1, 1, 0, 0, 0, 0, 0, 0)))
    assert weights.feeds(one) is first
    changed = {name for name in first if first[name] is not other[name]}
    assert changed == {f"layer0.{part}.pick.out" for part in ("weight", "bias", "back")}
    assert [first[f"layer0.{part}.pick.out"].shape for part in ("weight", "bias", "back")] == [
        (8, 32, 3, 3),
        (8,),
        (32, 8, 1, 1),
    ]
    assert weights.feeds(one.replace(CHOICE, 3)).keys() == first.keys()
    assert all(np.shares_memory(array, weights.mapped) for array in weights.feeds(space.default).values())
    assert not any(array.flags.writeable for array in weights.feeds(space.default).values())


def test_only_the_last_few_stay_gathered(prepared: Path, modules: list[ModuleInput], bundle: Bundle) -> None:
    weights, subnets = ModuleWeights(prepared / WEIGHTS_FILE, modules), drawn(bundle, KEPT + 2)
    made = [weights.feeds(gates) for gates in subnets]
    assert all(weights.feeds(gates) is kept for gates, kept in zip(subnets[2:], made[2:], strict=True))
    assert weights.feeds(subnets[0]) is not made[0]


def test_a_swap_gathers_before_the_next_frame(session: CompiledSession, bundle: Bundle) -> None:
    session.specialises = False
    gates = drawn(bundle, 2)[1]
    session.prefer(gates)
    with mock.patch.object(np, "compress", side_effect=AssertionError("gathered in a run")):
        session.run(image(), gates)


def test_too_little_memory_to_gather_fails_the_run_and_not_the_swap(session: CompiledSession, bundle: Bundle) -> None:
    session.specialises = False
    gates = drawn(bundle, 2)[1]
    with mock.patch.object(np, "compress", side_effect=MemoryError):
        session.prefer(gates)
        with pytest.raises(Exception, match="out of memory") as caught:
            session.run(image(), gates)
    assert type(caught.value).__name__ == "ResourceError"
    assert np.isfinite(session.run(image(), gates)["logits"]).all()


def test_models_of_choices_alone_are_fed_nothing_else(tmp_path: Path) -> None:
    tiny = tiny_bundle(tmp_path / "tiny.nnf")
    (tmp_path / "p").mkdir()
    compile_bundle(tiny, OPTIONS, tmp_path / "p", key="k")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {SKELETON, TENSORS, RECORD}
    graph = PreparedGraph(tmp_path / "p", tiny.manifest, OPTIONS)
    assert graph.feeds(image(), tiny.manifest.space.default).keys() == {"image", "decide"}


def test_swaps_and_sessions_in_the_making_never_tear_a_run(session: CompiledSession, bundle: Bundle) -> None:
    subnets = drawn(bundle, KEPT + 3)  # more than stay gathered
    wanted = {gates: modular_reference(bundle, gates, image()["image"]) for gates in subnets}
    stop, wrong = threading.Event(), []

    def infer(number: int) -> int:
        count = 0
        while not stop.is_set():
            gates = subnets[(number + count) % len(subnets)]
            if relative_difference(wanted[gates], session.run(image(), gates)["logits"]) > 1e-4:
                wrong.append(str(gates))
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(infer, 2 * number) for number in range(3)]
        for turn in range(40):
            session.prefer(subnets[turn % len(subnets)])
            time.sleep(0.01)
        stop.set()
        assert min(run.result() for run in runs) > 0
    assert wrong == []


# What is kept.


def test_the_folder_holds_what_modules_are_gathered_from(prepared: Path, bundle: Bundle) -> None:
    record = json.loads((prepared / RECORD).read_text())
    assert record["refused"] == {}
    assert record["gain"] > 0, "a subnet alone was made and compared"
    assert set(record["files"]) == {SKELETON, TENSORS, PORTABLE, WEIGHTS_FILE}
    assert (prepared / PORTABLE).read_bytes() == bundle.model_bytes
    assert (prepared / WEIGHTS_FILE).read_bytes().startswith(bundle.weights)
    assert len(record["modules"]) == 15
    dumped = {tensor.name for tensor in onnx.load(str(prepared / SKELETON), load_external_data=False).graph.initializer}
    assert not {"layer0.weight", "layer0.bias", "layer0.back", "layer0.entries"} & dumped


def change(folder: Path, edit: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    edit(record)
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-1]),
        lambda f: (f / WEIGHTS_FILE).write_bytes(b"\0" * (f / WEIGHTS_FILE).stat().st_size),
        lambda f: (f / WEIGHTS_FILE).unlink(),
        lambda f: (f / PORTABLE).write_bytes(b""),
        lambda f: (f / PORTABLE).unlink(),
        lambda f: (f / TENSORS).write_bytes(b""),
        lambda f: change(f, lambda r: r.pop("modules")),
        lambda f: change(f, lambda r: r.update(modules=[])),
        lambda f: change(f, lambda r: r.update(modules=None)),
        lambda f: change(f, lambda r: r["modules"].pop()),
        lambda f: change(f, lambda r: r["modules"][0].pop("axis")),
        lambda f: change(f, lambda r: r["modules"][0].update(name=7)),
        lambda f: change(f, lambda r: r["modules"][0].update(name="other")),
        lambda f: change(f, lambda r: r["modules"][0].update(axis=4)),
        lambda f: change(f, lambda r: r["modules"][0].update(shape="x")),
        lambda f: change(f, lambda r: r["modules"][0].update(shape=[2**40, 2**40])),
        lambda f: change(f, lambda r: r["modules"][0].update(offset_bytes=-4)),
        lambda f: change(f, lambda r: r["modules"][0].update(offset_bytes=10**30)),
        lambda f: change(f, lambda r: r["modules"][0].update(channels_offset_bytes=2**31)),
        lambda f: change(f, lambda r: r["modules"].__setitem__(0, "x")),
        lambda f: change(f, lambda r: r["files"].pop(WEIGHTS_FILE)),
        lambda f: change(f, lambda r: r["files"].update(other=r["files"][SKELETON])),
    ],
)
def test_a_damaged_folder_is_refused(bundle: Bundle, prepared: Path, tmp_path: Path, damage: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    open_compiled(bundle, OPTIONS, copy, key="k").close()
    damage(copy)
    with pytest.raises(BackendError):
        open_compiled(bundle, OPTIONS, copy, key="k")


@pytest.mark.parametrize("name", [PORTABLE, WEIGHTS_FILE])
def test_a_damaged_cache_is_made_again(bundle: Bundle, tmp_path: Path, name: str) -> None:
    def load() -> EdgeModel:
        return EdgeModel.load(bundle.source, state_dir=tmp_path, budget=Budget(), threads=1)

    load().close()
    (entry,) = tmp_path.glob("compiled-*")
    (entry / name).write_bytes(b"nonsense")
    with load() as model:
        assert "prepared on this machine" in model.stats().form
        assert len(list(tmp_path.glob("compiled-*"))) == 1


# For those who use it.


def adapted(model: EdgeModel) -> AdaptStatus:
    """A busy moment can make every subnet as slow as the full one was; it passes."""
    for _ in range(4):
        with contextlib.suppress(BudgetError):
            return model.adapt(wait=True, seconds=2.0)
    return model.adapt(wait=True, seconds=2.0)


def test_a_model_loads_swaps_and_adapts(bundle: Bundle, tmp_path: Path) -> None:
    budget = Budget(fraction=0.9)
    frames = [np.random.default_rng(n).integers(0, 256, (20, 20, 3), np.uint8) for n in range(24)]
    with EdgeModel.load(bundle.source, state_dir=tmp_path, budget=budget, buffer_frames=64, threads=1) as model:
        assert "prepared on this machine" in model.stats().form
        gates = model.space.parse("b00000001-b10000000-4-b00010000-b10000001-b11111110")
        model.swap(gates)
        wanted = modular_reference(bundle, gates, image()["image"])
        assert relative_difference(wanted, model.infer(image()["image"])["logits"]) < 1e-4
        model.swap("full")
        for frame in frames:
            model(frame)
        status = adapted(model)
        assert status.phase == "done"
        assert status.active == model.gates
        assert status.frontier is not None
        wanted = modular_reference(bundle, model.gates, image()["image"])
        assert relative_difference(wanted, model.infer(image()["image"])["logits"]) < 1e-4


def test_the_command_line_takes_bits(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle.source)]) == 0
    shown = capsys.readouterr().out
    assert "subset" in shown
    assert "module7" in shown
    target, gates = tmp_path / "small.onnx", "b00000001-b10000000-4-b00010000-b10000001-b11111110"
    assert main(["export", str(bundle.source), "--gates", gates, "-o", str(target)]) == 0
    assert target.read_bytes() == export_subnet(bundle, bundle.manifest.space.parse(gates))
    assert main(["export", str(bundle.source), "--gates", gates.replace("b00000001", "b00000000"), "-o", "x"]) == 2
