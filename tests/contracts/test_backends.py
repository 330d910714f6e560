"""What every backend promises: one suite, run over each implementation of `Session`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.backends import Session, SessionOptions, compile_bundle, open_session
from edge_runtime.backends.base import Array, random_inputs
from edge_runtime.backends.fake import FakeSession
from edge_runtime.backends.features import FeatureCache
from edge_runtime.backends.onnx.compile import read_modules, read_record
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, GateError, InputError
from edge_runtime.gates import GateGroup, Gates, GateSpace
from edge_runtime.seeds import random_gates
from tests.support.modular import modular_bundle, modular_reference
from tests.support.tiny import tiny_bundle, tiny_reference


@dataclass(frozen=True)
class Net:
    """A bundle and what an independent model says of it."""

    bundle: Bundle
    subnets: list[Gates]
    """The full one first; all of a small space, some of a large one."""

    classes: int
    reference: Callable[[Gates, Array], Array]

    @property
    def space(self) -> GateSpace:
        return self.bundle.manifest.space


@pytest.fixture(scope="module", params=["choices", "modules"])
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Net:
    path = tmp_path_factory.mktemp("bundle") / "net.nnf"
    if request.param == "choices":
        tiny = tiny_bundle(path)
        return Net(tiny, list(tiny.manifest.space.enumerate()), 4, tiny_reference)
    pytest.importorskip("builder.onnx_writer")
    bundle, rng = modular_bundle(path), random.Random(0)
    space = bundle.manifest.space
    alone = [space.gates([0 if g.kind == "choice" else (0,) * 7 + (1,) for g in space.groups])]
    drawn = dict.fromkeys(random_gates(space, rng) for _ in range(7))
    return Net(bundle, [space.default, *alone, *drawn], 1000, partial(modular_reference, bundle))


@pytest.fixture(scope="module")
def folder(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is prepared of the net."""
    made = tmp_path_factory.mktemp("compiled")
    compile_bundle(net.bundle, SessionOptions(threads=1), made, key="k")
    return made


@pytest.fixture(params=["portable", "compiled", "specialised", "fake"])
def session(request: pytest.FixtureRequest, net: Net, folder: Path) -> Iterator[Session]:
    options, stack = SessionOptions(threads=1), contextlib.ExitStack()
    manifest = net.bundle.manifest
    if request.param == "portable":
        opened: Session = open_session(net.bundle, options)
    elif request.param in ("compiled", "specialised"):
        single, modules = request.param == "specialised", read_modules(read_record(folder, "k"))
        compiled = CompiledSession(folder, manifest, options, form="crossing", specialises=single, modules=modules)
        if single:
            stack.enter_context(compiled.hold(net.subnets))
            assert set(compiled.specialised) == set(net.subnets)
        opened = compiled
    else:
        opened = FakeSession(net.space, manifest.inputs, manifest.outputs)
    with stack:
        yield opened
    opened.close()


def image(batch: int = 1, seed: int = 0) -> dict[str, Array]:
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def test_it_says_what_it_takes_and_returns(net: Net, session: Session) -> None:
    assert session.name
    assert session.threads == 1
    assert [spec.name for spec in session.inputs] == ["image"]
    assert [spec.name for spec in session.outputs] == ["logits"]
    assert session.run(random_inputs(session.inputs, seed=0), net.space.default).keys() == {"logits"}


def test_every_subnet_runs_and_answers_in_the_promised_shape_and_dtype(net: Net, session: Session) -> None:
    for gates in net.subnets:
        logits = session.run(image(2), gates)["logits"]
        assert (logits.shape, logits.dtype) == ((2, net.classes), np.float32)
        assert np.isfinite(logits).all()


def test_a_batch_answers_as_its_samples_do(net: Net, session: Session) -> None:
    batch = image(5)["image"]
    together = session.run({"image": batch}, net.space.default)["logits"]
    alone = [session.run({"image": batch[i : i + 1]}, net.space.default)["logits"][0] for i in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_equal_inputs_give_equal_outputs_and_other_gates_give_others(net: Net, session: Session) -> None:
    gates = net.subnets[5]
    first = session.run(image(), gates)["logits"]
    other = session.run(image(), net.space.default)["logits"]
    np.testing.assert_array_equal(first, session.run(image(), gates)["logits"])
    assert np.abs(first - other).max() > 1e-3


def test_outputs_belong_to_the_caller(net: Net, session: Session) -> None:
    first = session.run(image(), net.space.default)["logits"]
    kept = first.copy()
    session.run(image(seed=1), net.subnets[-1])
    np.testing.assert_array_equal(first, kept)


def test_inputs_are_not_changed(net: Net, session: Session) -> None:
    given = image()
    before = given["image"].copy()
    session.run(given, net.space.default)
    np.testing.assert_array_equal(given["image"], before)


def test_threads_with_different_gates_never_mix(net: Net, session: Session) -> None:
    gates = net.subnets
    expected = {g: session.run(image(), g)["logits"] for g in gates}

    def work(offset: int) -> bool:
        order = gates[offset:] + gates[:offset]
        return all(np.array_equal(session.run(image(), g)["logits"], expected[g]) for g in order * 3)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, (0, len(gates) // 4, len(gates) // 2, 3 * len(gates) // 4)))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "takes the inputs image, got none"),
        ({"picture": np.zeros((1, 3, 16, 16), np.float32)}, "got picture"),
        ({"image": np.zeros((1, 3, 16, 16), np.float64)}, "is float64 (give float32)"),
        ({"image": np.zeros((3, 16, 16), np.float32)}, "shape (3, 16, 16) (the model takes (N, 3, 16, 16))"),
        ({"image": np.zeros((1, 3, 16, 8), np.float32)}, "shape (1, 3, 16, 8)"),
        ({"image": np.zeros((0, 3, 16, 16), np.float32)}, "shape (0, 3, 16, 16)"),
        ({"image": [[1.0]]}, "is a list"),
    ],
)
def test_wrong_inputs_are_named(net: Net, session: Session, inputs: dict[str, Array], words: str) -> None:
    with pytest.raises(InputError) as caught:
        session.run(inputs, net.space.default)
    assert words in str(caught.value)


def test_gates_of_another_model_are_refused(net: Net, session: Session) -> None:
    stranger = GateSpace((GateGroup("unit0", "choice", ("a", "b")),)).default
    with pytest.raises(GateError, match="another model"):
        session.run(image(), stranger)


def test_a_closed_session_says_so_however_often_it_is_closed(net: Net, session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run(image(), net.space.default)


def test_in_parts_it_answers_as_whole_or_says_that_it_cannot(net: Net, session: Session, folder: Path) -> None:
    parts, cache = session.in_parts(), FeatureCache(1 << 20)
    if parts is None:
        assert not isinstance(session, CompiledSession) or net.space.groups[0].kind != "choice"
        return
    gated = CompiledSession(folder, net.bundle.manifest, SessionOptions(threads=1), form="crossing", specialises=False)
    for gates in net.subnets:
        if not gates.is_default:  # which has a form of its own
            found = parts.run(image(2), gates, cache.of(0, 2))["logits"]
            np.testing.assert_array_equal(found, gated.run(image(2), gates)["logits"])
    gated.close()


@pytest.mark.parametrize("session", ["portable", "compiled", "specialised"], indirect=True)
def test_onnxruntime_computes_what_numpy_computes(net: Net, session: Session) -> None:
    given = image(3)
    for gates in net.subnets:
        found = session.run(given, gates)["logits"]
        np.testing.assert_allclose(found, net.reference(gates, given["image"]), atol=1e-3)
