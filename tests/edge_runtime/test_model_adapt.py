"""Searches of a scripted model: now and in the background, budgets that change, and what the loop makes of them."""

from __future__ import annotations

import gc
import json
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import Budget
from edge_runtime.errors import BackendError, BudgetError, InputError, UsageError
from edge_runtime.inputs import Samples, preprocess_all
from edge_runtime.model.jobs import Jobs
from edge_runtime.policy import AdaptationPolicy
from tests.support.scripted import (
    COST,
    SPACE,
    answer,
    jittered_cost,
    scripted_images,
    scripted_model,
    true_labels,
)


def test_adapt_finds_applies_explains_and_remembers(tmp_path: Path) -> None:
    images = scripted_images(128)
    model = scripted_model(tmp_path, budget=Budget(latency_ms=6.0))
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

    again = scripted_model(tmp_path)
    idle = again.adapt()
    assert (idle.phase, idle.budget, idle.limit_ms, idle.frontier) == ("idle", model.budget, 6.0, model.frontier)
    assert (again.gates, again.budget, again.frontier) == (model.gates, model.budget, model.frontier)
    assert scripted_model(tmp_path, budget=Budget()).gates.is_default
    assert COST(scripted_model(tmp_path, budget=Budget(latency_ms=3.0)).gates) < 3.0
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert images[0].tobytes() not in written
    assert len(written) < 100_000


def test_adapt_with_labels_reports_accuracy() -> None:
    images = scripted_images(128)
    model = scripted_model(budget=Budget(fraction=0.6))
    status = model.adapt(Samples(tuple(images), true_labels(images)), wait=True)
    assert status.labelled
    assert status.limit_ms == pytest.approx(0.6 * 12, rel=0.06)
    assert status.frontier is not None
    assert status.frontier.highest.quality == 1.0


def test_an_infeasible_budget_is_an_error_that_names_the_fastest() -> None:
    model = scripted_model()
    with pytest.raises(BudgetError, match="the fastest, 2-2-2-2-2, has a measured p95 of 2"):
        model.adapt(list(scripted_images(64)), budget=Budget(latency_ms=0.5), wait=True)
    assert model.gates.is_default
    with pytest.raises(BudgetError, match="budget of 5%") as caught:
        model.adapt(list(scripted_images(64)), budget=Budget(fraction=0.05), wait=True)
    assert re.search(r"allow at least 2\.\d+ ms \(\d+% of the full subnet's 1\d\.\d+ ms\)", caught.value.hint)


def test_samples_that_cannot_be_used_are_refused_with_a_word() -> None:
    images = list(scripted_images(16))
    model = scripted_model()
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
    model = scripted_model()
    with pytest.raises(UsageError, match="budget is int"):
        model.adapt(budget=33)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="6000% of the full subnet's time limits nothing"):
        Budget(fraction=60)


def test_a_new_budget_moves_along_the_frontier_at_once() -> None:
    model = scripted_model(budget=Budget(latency_ms=6.0))
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
        self.model = scripted_model(reply=self._reply, **settings)

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
    model = scripted_model(budget=Budget(latency_ms=0.5))
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
    model = scripted_model(budget=Budget(latency_ms=9.0))
    asked = Budget(latency_ms=4.0)
    status = model.adapt(list(scripted_images(64)), wait=True, tell=lambda status: model._searches.set_budget(asked))
    assert (status.active, status.budget) == (model.gates, asked)
    assert COST(model.gates) <= 4.0


def test_while_a_search_is_waited_for_the_model_says_so() -> None:
    model = scripted_model(budget=Budget(latency_ms=6.0))
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
    model = scripted_model(
        tmp_path, budget=Budget(latency_ms=6.0), reply=lambda inputs, gates: answer(inputs, SPACE.default)
    )
    model.adapt(images, wait=True)
    assert model.frontier is not None
    assert min(score.quality for score in model.frontier.scores) > 0.999
    model.adapt(budget=Budget())
    assert model.gates.is_default
    assert scripted_model(tmp_path, budget=Budget()).gates.is_default


def test_many_frames_that_the_library_refuses_cost_no_subnet_its_place() -> None:
    def reply(inputs: Any, gates: Any) -> dict[str, Any]:
        if len(inputs["image"]) > 64 and gates == active:
            raise BackendError("failed to allocate memory")
        if len(inputs["image"]) > 256:
            raise BackendError("failed to allocate memory")
        return answer(inputs, gates)

    active = None
    model = scripted_model(budget=Budget(latency_ms=6.0), reply=reply)
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
    model = scripted_model(cost_ms=lambda gates: load[0] * COST(gates))
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
    model = scripted_model(
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
    model = scripted_model(budget=Budget(latency_ms=6.0), buffer_frames=64)
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
    model = scripted_model()
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

    model = scripted_model(reply=reply, budget=Budget(latency_ms=6.0))
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
    model = scripted_model(budget=Budget(latency_ms=6.0))
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
