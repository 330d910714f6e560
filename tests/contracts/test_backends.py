"""What every backend promises: one suite, run over each implementation of `Session`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_runtime.backends import Session, SessionOptions, compile_bundle, open_session
from edge_runtime.backends.base import Array, random_inputs
from edge_runtime.backends.fake import FakeSession
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.errors import BackendError, GateError, InputError
from edge_runtime.gates import GateGroup, GateSpace
from tests.support.tiny import SPACE, tiny_bundle, tiny_reference

Open = Callable[[], Session]


@pytest.fixture(params=["portable", "compiled", "specialised", "fake"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    bundle = tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.nnf")
    options, stack = SessionOptions(threads=1), contextlib.ExitStack()
    if request.param == "portable":
        opened: Session = open_session(bundle, options)
    elif request.param in ("compiled", "specialised"):
        folder = tmp_path_factory.mktemp("compiled")
        compile_bundle(bundle, options, folder, key="k")
        form, single = "crossing", request.param == "specialised"
        opened = CompiledSession(folder, bundle.manifest, options, form=form, specialises=single)
        if single:
            stack.enter_context(opened.hold(list(SPACE.enumerate())))
    else:
        opened = FakeSession(SPACE, bundle.manifest.inputs, bundle.manifest.outputs)
    with stack:
        yield opened
    opened.close()


def image(batch: int = 1, seed: int = 0) -> dict[str, Array]:
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def test_it_says_what_it_takes_and_returns(session: Session) -> None:
    assert session.name
    assert session.threads == 1
    assert [spec.name for spec in session.inputs] == ["image"]
    assert [spec.name for spec in session.outputs] == ["logits"]
    assert session.run(random_inputs(session.inputs, seed=0), SPACE.default).keys() == {"logits"}


def test_every_subnet_runs_and_answers_in_the_promised_shape_and_dtype(session: Session) -> None:
    for gates in SPACE.enumerate():
        logits = session.run(image(2), gates)["logits"]
        assert (logits.shape, logits.dtype) == ((2, 4), np.float32)
        assert np.isfinite(logits).all()


def test_a_batch_answers_as_its_samples_do(session: Session) -> None:
    batch = image(5)["image"]
    together = session.run({"image": batch}, SPACE.default)["logits"]
    alone = [session.run({"image": batch[i : i + 1]}, SPACE.default)["logits"][0] for i in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_equal_inputs_give_equal_outputs_and_other_gates_give_others(session: Session) -> None:
    gates = SPACE.parse("1-0-2")
    first = session.run(image(), gates)["logits"]
    other = session.run(image(), SPACE.default)["logits"]
    np.testing.assert_array_equal(first, session.run(image(), gates)["logits"])
    assert np.abs(first - other).max() > 1e-3


def test_outputs_belong_to_the_caller(session: Session) -> None:
    first = session.run(image(), SPACE.default)["logits"]
    kept = first.copy()
    session.run(image(seed=1), SPACE.parse("2-2-2"))
    np.testing.assert_array_equal(first, kept)


def test_inputs_are_not_changed(session: Session) -> None:
    given = image()
    before = given["image"].copy()
    session.run(given, SPACE.default)
    np.testing.assert_array_equal(given["image"], before)


def test_threads_with_different_gates_never_mix(session: Session) -> None:
    gates = list(SPACE.enumerate())
    expected = {g: session.run(image(), g)["logits"] for g in gates}

    def work(offset: int) -> bool:
        order = gates[offset:] + gates[:offset]
        return all(np.array_equal(session.run(image(), g)["logits"], expected[g]) for g in order * 3)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, (0, 7, 14, 21)))


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
def test_wrong_inputs_are_named(session: Session, inputs: dict[str, Array], words: str) -> None:
    with pytest.raises(InputError) as caught:
        session.run(inputs, SPACE.default)
    assert words in str(caught.value)


def test_gates_of_another_model_are_refused(session: Session) -> None:
    stranger = GateSpace((GateGroup("unit0", "choice", ("a", "b")),)).default
    with pytest.raises(GateError, match="another model"):
        session.run(image(), stranger)


def test_a_closed_session_says_so_however_often_it_is_closed(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run(image(), SPACE.default)


def test_onnxruntime_computes_what_numpy_computes(tmp_path: object) -> None:
    session = open_session(tiny_bundle(f"{tmp_path}/tiny.nnf"))
    given = image(3)
    for gates in SPACE.enumerate():
        found = session.run(given, gates)["logits"]
        np.testing.assert_allclose(found, tiny_reference(gates, given["image"]), atol=1e-3)
