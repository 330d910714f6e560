from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation.background import CLOSE_SECONDS
from edge_runtime.errors import BackendError, BundleError, GateError, InputError, StateError, UsageError
from edge_runtime.inputs import preprocess_all
from edge_runtime.state import StateDir
from tests.support.scripted import (
    CLASSES,
    COST,
    SPACE,
    answer,
    scripted_images,
    scripted_model,
)
from tests.support.tiny import SPACE as TINY_SPACE
from tests.support.tiny import tiny_bundle, tiny_reference

FRAMES = np.random.default_rng(5).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bundle") / "tiny.nnf"
    tiny_bundle(where)
    return where


@pytest.fixture
def model(path: Path, tmp_path: Path) -> Iterator[EdgeModel]:
    with EdgeModel.load(path, state_dir=tmp_path / "state", threads=1) as opened:
        yield opened


# Frames.


def test_a_frame_is_answered_by_the_full_subnet_at_first(model: EdgeModel) -> None:
    answered = model(FRAMES[0])
    logits = tiny_reference(TINY_SPACE.default, preprocess_all([FRAMES[0]], model.bundle.manifest.preprocessing))[0]
    np.testing.assert_allclose(answered.outputs["logits"], logits, atol=1e-3)
    assert answered.label == model.bundle.manifest.task.class_names[int(logits.argmax())]
    assert answered.confidence is not None
    assert 0 < answered.confidence <= 1
    assert answered.gates == model.gates == TINY_SPACE.default
    assert answered.latency_ms > 0
    assert not answered.fallback


def test_frames_of_any_size_are_taken(model: EdgeModel) -> None:
    for shape in ((1, 1, 3), (480, 640, 3), (17, 5, 3)):
        assert model(np.zeros(shape, np.uint8)).outputs["logits"].shape == (4,)


def test_every_subnet_can_be_swapped_to_by_its_text(model: EdgeModel) -> None:
    tensors = preprocess_all([FRAMES[1]], model.bundle.manifest.preprocessing)
    for gates in TINY_SPACE.enumerate():
        model.swap(str(gates), reason="a test")
        np.testing.assert_allclose(model(FRAMES[1]).outputs["logits"], tiny_reference(gates, tensors)[0], atol=1e-3)
    stats = model.stats()
    assert stats.active == str(gates)
    assert stats.swaps[-1].reason == "a test"
    assert stats.swaps_total == len(stats.swaps) == TINY_SPACE.size() - 1


def test_infer_takes_batches_and_pins_a_subnet_for_one_call(model: EdgeModel) -> None:
    tensors = preprocess_all(list(FRAMES[:5]), model.bundle.manifest.preprocessing)
    gates = model.space.parse("2-1-0")
    expected = tiny_reference(gates, tensors)
    np.testing.assert_allclose(model.infer(tensors, gates)["logits"], expected, atol=1e-3)
    np.testing.assert_allclose(model.infer({"image": tensors}, "2-1-0")["logits"], expected, atol=1e-3)
    assert model.gates.is_default
    assert model.stats().frames == 2


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (np.zeros((1, 3, 16, 15), np.float32), r"\(N, 3, 16, 16\)"),
        (np.zeros((3, 16, 16), np.float32), "shape"),
        (np.zeros((0, 3, 16, 16), np.float32), "shape"),
        (np.zeros((1, 3, 16, 16), np.float64), "float64"),
        (np.full((1, 3, 16, 16), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 16, 16), np.inf, np.float32), "NaN or infinity"),
        ({"picture": np.zeros((1, 3, 16, 16), np.float32)}, "picture"),
        ({}, "none"),
        (3.5, "float"),
        ("image", "str"),
    ],
)
def test_bad_tensors_are_refused_with_a_word(model: EdgeModel, x: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        model.infer(x)
    assert model.stats().bad_outputs == 0


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (np.zeros((16, 16), np.uint8), "grey"),
        (np.zeros((16, 16, 3), np.float32), "uint8"),
        (np.zeros((0, 16, 3), np.uint8), "empty"),
        (None, "NoneType"),
    ],
)
def test_bad_frames_are_refused_with_a_word(model: EdgeModel, frame: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        model(frame)


def test_unknown_gates_are_refused_with_a_word(model: EdgeModel) -> None:
    for text, word in (("0-9-0", "no alternative 9"), ("0-0", "2 parts"), ("narrow", "parts"), ("", "parts")):
        with pytest.raises(GateError, match=word):
            model.swap(text)
    with pytest.raises(GateError, match="another model"):
        model.swap(SPACE.default)
    with pytest.raises(GateError):
        model.infer(np.zeros((1, 3, 16, 16), np.float32), SPACE.default)
    assert model.stats().swaps_total == 0


# Opening and closing.


def test_a_missing_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        EdgeModel.load(tmp_path / "missing.nnf", state_dir=tmp_path)


def test_arguments_that_cannot_be_meant(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threads"):
        EdgeModel.load(path, threads=0, state_dir=tmp_path)
    with pytest.raises(UsageError, match="Budget"):
        EdgeModel.load(path, budget=33, state_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="buffer_frames is -1"):
        EdgeModel.load(path, buffer_frames=-1, state_dir=tmp_path)
    with pytest.raises(BackendError, match="NoSuchProvider"):
        EdgeModel.load(path, providers=["NoSuchProvider"], state_dir=tmp_path)
    with pytest.raises(UsageError, match="give a tuple"):
        EdgeModel.load(path, providers="CPUExecutionProvider", state_dir=tmp_path)
    with pytest.raises(UsageError, match="seed"):
        EdgeModel.load(path, seed=-1, state_dir=tmp_path)


def test_a_named_state_directory_that_cannot_be_written_is_an_error(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match="cannot be written"):
        EdgeModel.load(path, state_dir=tmp_path / "file" / "state")


def test_an_unnamed_one_runs_without_a_cache_and_says_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.delenv("NNF_EDGE_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "state"))
    with EdgeModel.load(path) as model:
        assert "without a cache" in model.stats().state
        assert model(FRAMES[0]).label


@pytest.mark.parametrize("given", [True, False])
def test_who_waits_for_a_search_that_another_thread_closes_is_told(path: Path, tmp_path: Path, given: bool) -> None:
    model = EdgeModel.load(path, state_dir=tmp_path, budget=Budget(latency_ms=10_000))
    if not given:
        model.adapt(list(FRAMES))
    closing = threading.Thread(target=model.close)

    def close(status: Any) -> None:
        if closing.ident is None:
            closing.start()

    with pytest.raises(UsageError, match="the model is closed"):
        model.adapt(list(FRAMES) if given else None, wait=True, tell=close)
    closing.join()


def test_a_closed_model_says_so_and_closes_twice(path: Path, tmp_path: Path) -> None:
    model = EdgeModel.load(path, state_dir=tmp_path)
    model.close()
    model.close()
    for use in (lambda: model(FRAMES[0]), model.adapt, lambda: model.swap("full")):
        with pytest.raises(UsageError, match="closed"):
            use()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_to_load_its_own(model: EdgeModel) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            model(FRAMES[0])
            sender.send("answered")
        except UsageError as error:
            sender.send(str(error))
        finally:
            os._exit(0)
    assert receiver.poll(30)
    assert "forked" in receiver.recv()
    os.waitpid(child, 0)
    assert model(FRAMES[0]).label


def test_stats_are_one_json_document(model: EdgeModel) -> None:
    assert model.stats().p50_ms is None
    for frame in FRAMES[:10]:
        model(frame)
    body = json.loads(json.dumps(model.stats().to_json()))
    assert body["frames"] == 10
    assert 0 < body["p50_ms"] <= body["p95_ms"] <= body["p99_ms"]
    assert body["overhead_p50_ms"] > 0
    assert body["bundle"] == model.bundle.digest
    assert (body["threads"], body["bad_outputs"]) == (1, 0)
    assert body["backend"].startswith("onnxruntime-")
    assert "prepared on this machine" in body["form"]
    with pytest.raises(AttributeError):
        model.stats().frames = 3  # type: ignore[misc]


# The output guard.


@pytest.mark.parametrize("fault", ["nan", "inf", "shape", "missing", "raise"])
def test_a_bad_output_is_answered_by_the_last_good_subnet_and_counted(fault: str) -> None:
    bad, good = SPACE.parse("1-1-1-1-1"), SPACE.parse("1-0-0-0-0")

    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        outputs = answer(inputs, gates)
        if gates != bad:
            return outputs
        if fault == "raise":
            raise BackendError("the library failed")
        if fault == "missing":
            return {}
        if fault == "shape":
            return {"logits": outputs["logits"][:, :3]}
        outputs["logits"][0, 0] = np.nan if fault == "nan" else np.inf
        return outputs

    model = scripted_model(reply=reply)
    images = scripted_images(4)
    model.swap(good)
    model(images[0])
    model.swap(bad)
    prediction = model(images[1])
    assert prediction.fallback
    assert prediction.gates == good
    assert np.isfinite(prediction.outputs["logits"]).all()
    assert model.gates == good
    assert not model(images[2]).fallback
    stats = model.stats()
    assert stats.bad_outputs == 1
    assert "unusable output of 1-1-1-1-1" in stats.swaps[-1].reason
    outputs = model.infer(preprocess_all(list(images), model.bundle.manifest.preprocessing), bad)
    assert np.isfinite(outputs["logits"]).all()
    assert outputs["logits"].shape == (4, len(CLASSES))


def test_a_subnet_whose_output_was_bad_is_never_gone_to_again(tmp_path: Path) -> None:
    bad: list[Any] = []

    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        outputs = answer(inputs, gates)
        return {"logits": outputs["logits"] * np.nan} if gates in bad else outputs

    images = scripted_images(64)
    model = scripted_model(tmp_path, reply=reply, budget=Budget(latency_ms=6.0))
    chosen = model.adapt(list(images), wait=True).active
    bad.append(chosen)
    assert model(images[0]).fallback
    bad.clear()
    again = scripted_model(tmp_path)
    assert COST(again.gates) <= 6.0
    for opened in (model, again):
        assert opened.gates != chosen
        status = opened.adapt(list(images), wait=True)
        (bad_one,) = (c for c in status.candidates if c.score.gates == chosen)
        assert (bad_one.fate, bad_one.score.measured) == ("unusable", True)
        assert [c.score.gates for c in status.candidates if c.fate == "chosen"] == [status.active]
        assert status.frontier is not None
        assert chosen not in [score.gates for score in status.frontier.scores]
        assert status.active == opened.gates != chosen
        assert COST(opened.gates) <= 6.0
    assert scripted_model(tmp_path).gates == again.gates


def test_a_bad_subnet_that_is_asked_for_again_and_again_is_written_down_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = SPACE.parse("1-1-1-1-1")

    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        outputs = answer(inputs, gates)
        return {"logits": outputs["logits"] * np.nan} if gates == bad else outputs

    writes: list[str] = []
    write = StateDir.write_json
    monkeypatch.setattr(StateDir, "write_json", lambda self, name, body: (writes.append(name), write(self, name, body)))
    model = scripted_model(tmp_path, reply=reply)
    frames = preprocess_all(list(scripted_images(4)), model.bundle.manifest.preprocessing)
    for _ in range(5):
        model.infer(frames, bad)
    assert len(writes) == 1


def test_where_no_subnet_gives_a_usable_output_there_is_an_error() -> None:
    broken = threading.Event()

    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        outputs = answer(inputs, gates)
        return {"logits": outputs["logits"] * np.nan} if broken.is_set() else outputs

    model = scripted_model(reply=reply)
    broken.set()
    with pytest.raises(BackendError, match="no subnet gives a usable output"):
        model(scripted_images(1)[0])


# Adapting, with a real bundle.


def test_closing_leaves_no_thread_of_a_search_behind(path: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    model = EdgeModel.load(path, state_dir=tmp_path, budget=Budget(fraction=0.5))
    status = model.adapt(list(FRAMES))
    assert status.phase == "calibrate"
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "nnf-edge-adapt")
    model.close()
    thread.join(30 * CLOSE_SECONDS)
    assert threading.active_count() == before


def test_the_real_thing_adapts_to_a_folder_of_images(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, frame in enumerate(FRAMES[:40]):
        Image.fromarray(frame).resize((24, 20)).save(folder / f"{index:02}.png")
    from edge_runtime.inputs import load_samples

    with EdgeModel.load(path, state_dir=tmp_path / "state", budget=Budget(latency_ms=10_000)) as model:
        told: list[str] = []
        status = model.adapt(load_samples(folder), wait=True, tell=lambda status: told.append(status.phase))
        assert status.phase == "done"
        assert {"calibrate", "search", "measure"} <= set(told)
        assert status.full_latency_ms is not None
        assert model(FRAMES[0]).gates == status.active
    with EdgeModel.load(path, state_dir=tmp_path / "state") as model:
        assert model.gates == status.active
        assert model.budget == Budget(latency_ms=10_000)
