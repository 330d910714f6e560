from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation.background import CLOSE_SECONDS
from edge_runtime.backends import SessionOptions
from edge_runtime.errors import BackendError, BudgetError, BundleError, GateError, InputError, StateError, UsageError
from edge_runtime.inputs import Samples, preprocess_all
from edge_runtime.model.jobs import Jobs
from edge_runtime.policy import AdaptationPolicy
from edge_runtime.profiles import load_profile
from edge_runtime.state import StateDir
from tests.support.scripted import (
    CLASSES,
    COST,
    SPACE,
    answer,
    jittered_cost,
    scripted_bundle,
    scripted_images,
    scripted_session,
    scripted_table,
    true_labels,
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


def scripted(tmp_path: Path | None = None, *, reply: Any = answer, cost_ms: Any = None, **settings: Any) -> EdgeModel:
    """A model on the scripted session, its clock included."""
    session = scripted_session(cost_ms, reply)
    return EdgeModel(
        scripted_bundle(),
        session,
        SessionOptions(),
        profile=load_profile("generic-x86_64"),
        state=StateDir.open(tmp_path) if tmp_path else StateDir(None, "no state in this test"),
        table=scripted_table(),
        clock_ns=session.now_ns,
        **settings,
    )


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

    model = scripted(reply=reply)
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
    model = scripted(tmp_path, reply=reply, budget=Budget(latency_ms=6.0))
    chosen = model.adapt(list(images), wait=True).active
    bad.append(chosen)
    assert model(images[0]).fallback
    bad.clear()
    again = scripted(tmp_path)
    for opened in (model, again):
        assert opened.gates != chosen
        assert COST(again.gates) <= 6.0
        status = opened.adapt(list(images), wait=True)
        (bad_one,) = (c for c in status.candidates if c.score.gates == chosen)
        assert (bad_one.fate, bad_one.score.measured) == ("unusable", True)
        assert [c.score.gates for c in status.candidates if c.fate == "chosen"] == [status.active]
        assert status.frontier is not None
        assert chosen not in [score.gates for score in status.frontier.scores]
        assert status.active == opened.gates != chosen
        assert COST(opened.gates) <= 6.0
    assert scripted(tmp_path).gates == again.gates


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
    model = scripted(tmp_path, reply=reply)
    frames = preprocess_all(list(scripted_images(4)), model.bundle.manifest.preprocessing)
    for _ in range(5):
        model.infer(frames, bad)
    assert len(writes) == 1


def test_where_no_subnet_gives_a_usable_output_there_is_an_error() -> None:
    broken = threading.Event()

    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        outputs = answer(inputs, gates)
        return {"logits": outputs["logits"] * np.nan} if broken.is_set() else outputs

    model = scripted(reply=reply)
    broken.set()
    with pytest.raises(BackendError, match="no subnet gives a usable output"):
        model(scripted_images(1)[0])


# Adapting.


def test_adapt_finds_applies_explains_and_remembers(tmp_path: Path) -> None:
    images = scripted_images(128)
    model = scripted(tmp_path, budget=Budget(latency_ms=6.0))
    status = model.adapt(list(images), wait=True)
    assert status.phase == "done"
    assert status.changed
    assert status.active == model.gates
    assert COST(model.gates) <= 6.0
    assert (status.samples, status.labelled, status.limit_ms) == (128, False, 6.0)
    assert status.frontier == model.frontier
    assert str(model.gates) in status.reason
    assert model.stats().swaps[-1].reason.startswith("adapted: ")
    json.dumps(status.to_json())
    assert not model.adapt().changed

    assert str(status) == f"{status.active} [done] {status.reason}"

    again = scripted(tmp_path)
    idle = again.adapt()
    assert (idle.phase, idle.budget, idle.limit_ms, idle.frontier) == ("idle", model.budget, 6.0, model.frontier)
    assert (again.gates, again.budget, again.frontier) == (model.gates, model.budget, model.frontier)
    assert scripted(tmp_path, budget=Budget()).gates.is_default
    assert COST(scripted(tmp_path, budget=Budget(latency_ms=3.0)).gates) < 3.0
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert images[0].tobytes() not in written
    assert len(written) < 100_000


def test_adapt_with_labels_reports_accuracy() -> None:
    images = scripted_images(128)
    model = scripted(budget=Budget(fraction=0.6))
    status = model.adapt(Samples(tuple(images), true_labels(images)), wait=True)
    assert status.labelled
    assert status.limit_ms == pytest.approx(0.6 * 12, rel=0.06)
    assert status.frontier is not None
    assert status.frontier.highest.quality == 1.0


def test_an_infeasible_budget_is_an_error_that_names_the_fastest() -> None:
    model = scripted()
    with pytest.raises(BudgetError, match="the fastest, 2-2-2-2-2, has a measured p95 of 2"):
        model.adapt(list(scripted_images(64)), budget=Budget(latency_ms=0.5), wait=True)
    assert model.gates.is_default
    with pytest.raises(BudgetError, match="budget of 5%") as caught:
        model.adapt(list(scripted_images(64)), budget=Budget(fraction=0.05), wait=True)
    assert re.search(r"allow at least 2\.\d+ ms \(\d+% of the full subnet's 1\d\.\d+ ms\)", caught.value.hint)


def test_samples_that_cannot_be_used_are_refused_with_a_word() -> None:
    images = list(scripted_images(16))
    model = scripted()
    for samples, labels, word in (
        ([], None, "no images"),
        (images, [0, 1], "2 labels for 16 images"),
        (images, [9] * 16, "label 9"),
        ([image.astype(np.float32) for image in images], None, "uint8"),
        ([np.zeros((4, 4, 3), np.uint8)] * 16, None, "all but the same"),
        (None, [1], "labels were given without"),
        (None, None, "nothing to adapt to"),
    ):
        with pytest.raises(InputError, match=word):
            model.adapt(samples, labels, wait=True)


def test_what_is_no_budget_is_refused_where_it_is_given() -> None:
    model = scripted()
    with pytest.raises(UsageError, match="budget is int"):
        model.adapt(budget=33)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="6000% of the full subnet's time limits nothing"):
        Budget(fraction=60)


def test_a_new_budget_moves_along_the_frontier_at_once() -> None:
    model = scripted(budget=Budget(latency_ms=6.0))
    model.adapt(list(scripted_images(128)), wait=True)
    status = model.adapt(budget=Budget(latency_ms=3.0))
    assert status.changed
    assert "the budget is now 3 ms" in status.reason
    assert COST(model.gates) < 3.0
    model.adapt(budget=Budget())
    assert model.gates.is_default


class Held:
    """A model whose searches in the background wait until they are let go on."""

    def __init__(self, **settings: Any) -> None:
        self.began, self.gate = threading.Event(), threading.Event()
        self.model = scripted(reply=self._reply, **settings)

    def _reply(self, inputs: Any, gates: Any) -> dict[str, Any]:
        if threading.current_thread().name == "nnf-edge-adapt":
            self.began.set()
            self.gate.wait(30)
        return answer(inputs, gates)

    def search(self) -> None:
        """Begin a search, and stay in it."""
        self.model.adapt(list(scripted_images(64)))
        assert self.began.wait(30)


def test_a_search_begins_again_for_a_new_budget() -> None:
    held = Held(budget=Budget(latency_ms=9.0))
    held.search()
    held.model.adapt(budget=Budget(latency_ms=4.0))
    held.gate.set()
    status = held.model.adapt(wait=True)
    assert (status.phase, status.budget, status.samples) == ("done", Budget(latency_ms=4.0), 64)
    assert COST(held.model.gates) <= 4.0
    held.model.close()


def test_who_waits_for_a_running_search_is_told_how_far_it_is() -> None:
    held = Held(budget=Budget(latency_ms=6.0))
    held.search()
    told: list[str] = []

    def tell(status: Any) -> None:
        told.append(status.phase)
        held.gate.set()

    assert held.model.adapt(wait=True, tell=tell).phase == "done"
    assert told[0] in ("calibrate", "search")
    held.model.close()


def test_a_budget_that_nothing_meets_is_no_error_once_another_is_in_force() -> None:
    model = scripted(budget=Budget(latency_ms=0.5))
    asked = Budget(latency_ms=6.0)
    status = model.adapt(list(scripted_images(64)), wait=True, tell=lambda status: model._searches.set_budget(asked))
    assert (status.phase, status.budget) == ("idle", asked)


def test_what_a_search_finds_after_its_limit_was_lifted_is_dropped() -> None:
    held = Held(budget=Budget(latency_ms=4.0))
    held.search()
    running = held.model._searches.running
    assert running is not None
    held.model.adapt(budget=Budget())
    held.gate.set()
    assert running.wait(30)
    assert held.model.adapt(wait=False).phase == "idle"
    assert held.model.gates.is_default
    assert held.model.frontier is None
    held.model.close()


def test_a_budget_that_came_while_another_thread_waited_for_a_search_counts() -> None:
    model = scripted(budget=Budget(latency_ms=9.0))
    asked = Budget(latency_ms=4.0)
    status = model.adapt(list(scripted_images(64)), wait=True, tell=lambda status: model._searches.set_budget(asked))
    assert (status.active, status.budget) == (model.gates, asked)
    assert COST(model.gates) <= 4.0


def test_while_a_search_is_waited_for_the_model_says_so() -> None:
    model = scripted(budget=Budget(latency_ms=6.0))
    seen: set[tuple[str, str]] = set()
    images = list(scripted_images(64))
    model.adapt(images, wait=True, tell=lambda status: seen.add((status.phase, model.stats().search)))
    assert seen == {(phase, phase) for phase in ("calibrate", "search", "measure")}
    assert model.stats().search == "done"


@pytest.mark.parametrize("end", ["done", "failed", "closed", "waited for"])
def test_no_image_outlives_its_search(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, weakref.ref[Any]]] = []
    make = Jobs._evaluator

    def noting(*arguments: Any) -> Any:
        evaluator = make(*arguments)
        made.append((evaluator._images, weakref.ref(evaluator)))
        return evaluator

    monkeypatch.setattr(Jobs, "_evaluator", noting)
    held = Held(budget=Budget(latency_ms=0.5 if end == "failed" else 6.0))
    if end == "waited for":
        held.model.adapt(list(scripted_images(64)), wait=True)
    else:
        held.search()
        running = held.model._searches.running
        assert running is not None
        if end == "closed":
            running.stop()
        held.gate.set()
        running.hurry()
        assert running.wait(30)
        del running
    ((images, evaluator),) = made
    assert not images.any()
    gc.collect()
    assert evaluator() is None
    assert (held.model._searches.error is not None) == (end == "failed")
    held.model.close()


def test_no_budget_means_the_full_subnet_also_where_a_faster_one_is_as_good(tmp_path: Path) -> None:
    images = list(scripted_images(128))
    model = scripted(tmp_path, budget=Budget(latency_ms=6.0), reply=lambda inputs, gates: answer(inputs, SPACE.default))
    model.adapt(images, wait=True)
    assert model.frontier is not None
    assert min(score.quality for score in model.frontier.scores) > 0.999
    model.adapt(budget=Budget())
    assert model.gates.is_default
    assert scripted(tmp_path, budget=Budget()).gates.is_default


def test_many_frames_that_the_library_refuses_cost_no_subnet_its_place() -> None:
    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        if len(inputs["image"]) > 64 and gates == active:
            raise BackendError("failed to allocate memory")
        if len(inputs["image"]) > 256:
            raise BackendError("failed to allocate memory")
        return answer(inputs, gates)

    active = None
    model = scripted(budget=Budget(latency_ms=6.0), reply=reply)
    model.adapt(list(scripted_images(64)), wait=True)
    active, frontier, swaps = model.gates, model.frontier, model.stats().swaps_total
    for count in (100, 300):
        tensors = preprocess_all(list(scripted_images(count)), model.bundle.manifest.preprocessing)
        if count == 300:
            with pytest.raises(BackendError, match="fewer frames"):
                model.infer(tensors)
        else:
            assert len(model.infer(tensors)["logits"]) == count
        assert (model.gates, model.frontier, model.stats().swaps_total) == (active, frontier, swaps)


def test_the_drift_follows_the_machine_and_not_who_asks_for_other_subnets() -> None:
    load = [1.0]
    model = scripted(cost_ms=lambda gates: load[0] * COST(gates))
    images = scripted_images(8)

    def serve(frames: int) -> float | None:
        for index in range(frames):
            model(images[index % len(images)])
            model.infer(np.zeros((1, *model.bundle.manifest.inputs[0].shape[1:]), np.float32), gates="2-2-2-2-2")
        return model.stats().drift

    assert serve(10) is None
    assert serve(300) == pytest.approx(1.0, rel=0.02)
    load[0] = 1.7
    assert serve(300) == pytest.approx(1.7, rel=0.02)


def test_the_loop_goes_down_when_the_machine_gets_busy_and_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr("edge_runtime.sense.strain", lambda: reads.append("once") or "CPU pressure 63 %")
    load = [1.0]
    jitter = jittered_cost()
    model = scripted(
        budget=Budget(latency_ms=6.0),
        cost_ms=lambda gates: load[0] * jitter(gates),
        policy=AdaptationPolicy(up_after_s=0.2, dwell_s=0.05),
    )
    images = scripted_images(64)
    calm = model.adapt(list(images), wait=True).active

    def drive(frames: int) -> list[str]:
        reasons = []
        for index in range(frames):
            model(images[index % len(images)])
            status = model.adapt()
            reasons += [status.reason] if status.changed else []
        return reasons

    assert drive(100) == reads == []
    load[0] = 1.8
    down = drive(100)
    assert down
    assert "load 1." in down[0]
    assert down[0].endswith("(CPU pressure 63 %)")
    assert len(reads) == len(down)
    assert 1.8 * COST(model.gates) <= 6.0
    misses = model.stats().deadline_misses
    drive(100)
    assert model.stats().deadline_misses == misses > 0
    load[0] = 1.0
    drive(400)
    assert model.gates == calm


def test_the_loop_searches_its_buffer_in_the_background() -> None:
    model = scripted(budget=Budget(latency_ms=6.0), buffer_frames=64)
    images = scripted_images(64)
    for image in images[:-1]:
        model(image)
        assert model.adapt().phase == "idle"
    model(images[-1])
    assert model.adapt().phase != "idle"
    status = model.adapt(wait=True)
    assert (status.phase, status.changed) == ("done", True)
    assert COST(model.gates) <= 6.0
    assert not model.adapt().changed
    assert model.stats().buffered_frames == 64
    pixels = model._buffer._pixels
    model.close()
    assert not pixels.any()


def test_a_search_in_the_background_that_fails_changes_nothing_and_says_why() -> None:
    model = scripted()
    model.adapt(list(scripted_images(64)), budget=Budget(latency_ms=0.5))
    with pytest.raises(BudgetError, match="the fastest"):
        model.adapt(wait=True)
    status = model.adapt()
    assert status.phase == "failed"
    assert "the fastest" in status.reason
    assert model.gates.is_default


def test_a_new_search_replaces_the_old_one_without_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.adaptation.background.CLOSE_SECONDS", 60.0)
    held, gate = threading.Event(), threading.Event()

    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        if threading.current_thread().name == "nnf-edge-adapt":
            held.set()
            gate.wait(20)
        return answer(inputs, gates)

    model = scripted(reply=reply, budget=Budget(latency_ms=6.0))
    model.adapt(list(scripted_images(128)))
    assert held.wait(30)
    old = model._searches.running
    assert old is not None
    assert model.adapt(list(scripted_images(64))).phase == "calibrate"
    assert old.running
    gate.set()
    status = model.adapt(wait=True)
    assert (status.phase, status.samples) == ("done", 64)
    assert not old.running


def test_a_search_that_was_replaced_or_closed_applies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Late:
        """A background job that was told to stop only after its last slice."""

        running, job = True, None

        def __init__(self, make: Any, *, done: Any, failed: Any, **settings: Any) -> None:
            self.make, self.done, self.failed = make, done, failed
            made.append(self)

        def stop(self) -> None:
            """Too late."""

        close = stop

    monkeypatch.setattr("edge_runtime.model.search.BackgroundJob", Late)
    model = scripted(budget=Budget(latency_ms=6.0))
    for _ in range(2):
        model.adapt(list(scripted_images(64)))
    jobs = [one.make() for one in made]
    for job in jobs:
        list(job.steps())
    made[0].done(jobs[0])
    made[0].failed(BackendError("late"))
    assert (model.gates.is_default, model.frontier, model._searches.status.phase) == (True, None, "idle")
    model.close()
    made[1].done(jobs[1])
    assert (model.gates.is_default, model.frontier) == (True, None)


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
