"""A search that is interrupted goes on where it was: nothing is evaluated twice, and nothing is mixed up."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation import AdaptJob, AdaptPlan, AdaptResult
from edge_runtime.adaptation import checkpoint as checkpoint_module
from edge_runtime.adaptation.background import Stop, StoppedError
from edge_runtime.adaptation.checkpoint import Checkpoint, Checkpoints, Course, search_key
from edge_runtime.backends import SessionOptions
from edge_runtime.errors import BudgetError, UsageError
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame
from edge_runtime.model.jobs import Check, Jobs, Labels
from edge_runtime.profiles import load_profile
from edge_runtime.state import StateDir
from tests.support.scripted import (
    COST,
    SPACE,
    answer,
    scripted_bundle,
    scripted_images,
    scripted_session,
    scripted_table,
    true_labels,
)

IMAGES = scripted_images(128)
NAME = "search-test.json"
PLAN = AdaptPlan(Budget(latency_ms=6.0), population=10, generations=4, subsets=(16, 48), seed=1)
FULL = SPACE.default


@dataclass
class Process:
    """What one process does: its own session, and the state directory of all. Counts each image of each subnet."""

    folder: Path
    table_scale: float = 1.0
    runs: Counter[tuple[Gates, bytes]] = field(default_factory=Counter)

    def job(
        self,
        images: Frame = IMAGES,
        labels: Labels | None = None,
        *,
        plan: AdaptPlan = PLAN,
        current: Gates = FULL,
        batch_size: int = 16,
        check: Check | None = None,
    ) -> AdaptJob:
        def reply(inputs: Mapping[str, Any], gates: Gates) -> dict[str, Any]:
            if len(inputs["image"]) > 1:  # finalists are timed on one
                self.runs.update((gates, image.tobytes()) for image in inputs["image"])
            return answer(inputs, gates)

        session = scripted_session(COST, reply)
        return Jobs(
            scripted_bundle(),
            session,
            Checkpoints(StateDir.open(self.folder), NAME),
            calibrate=lambda _: scripted_table(self.table_scale),
            clock_ns=session.now_ns,
        ).make(images, labels, plan, batch_size=batch_size, current=current, check=check)

    @property
    def kept(self) -> Checkpoint | None:
        return Checkpoints(StateDir.open(self.folder), NAME).read(SPACE)


def run(job: AdaptJob, slices: int | None = None) -> AdaptResult | None:
    """Drive a search to its end, or so many slices far."""
    for number, _ in enumerate(job.steps(), 1):
        if number == slices:
            return None
    return job.result


def slices_of(job: AdaptJob) -> int:
    return sum(1 for _ in job.steps())


def fates(result: AdaptResult | None) -> list[tuple[Any, ...]]:
    assert result is not None
    return [(c.score.gates, c.score.quality, c.score.samples, c.fate) for c in result.candidates]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97])
def test_a_search_goes_on_where_it_was_and_ends_as_the_unbroken_one(
    tmp_path: Path, share: float, labelled: bool
) -> None:
    labels = true_labels(IMAGES) if labelled else None
    unbroken = Process(tmp_path / "unbroken").job(labels=labels)
    total = slices_of(unbroken)
    killed, after = Process(tmp_path / "state"), Process(tmp_path / "state")
    run(killed.job(labels=labels), int(share * total))
    kept = killed.kept
    assert kept is not None

    job = after.job(labels=labels)
    assert fates(run(job)) == fates(unbroken.result)
    assert job.evaluator.known() == unbroken.evaluator.known()
    again = {(str(gates), image) for gates, image in after.runs if labelled or gates != FULL}
    assert job.evaluator.taken_up == sum(map(len, kept.values.values()))
    assert len(again) == sum(map(len, job.evaluator.known().values())) - job.evaluator.taken_up
    assert job.seconds >= kept.course.seconds


@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("limit_ms", [5.0, 6.0, 8.0])
def test_on_images_of_mostly_one_class_it_goes_on_in_the_same_way(
    tmp_path: Path, limit_ms: float, share: float
) -> None:
    pool = scripted_images(2000, seed=5)
    labels = true_labels(pool)
    images = np.concatenate([pool[labels == 0][:114], pool[labels != 0][:14]])
    plan = replace(PLAN, budget=Budget(latency_ms=limit_ms))
    unbroken = Process(tmp_path / "unbroken").job(images, plan=plan)
    total = slices_of(unbroken)
    run(Process(tmp_path / "state").job(images, plan=plan), int(share * total))
    assert 0 < unbroken.evaluator.variety < 1
    assert fates(run(Process(tmp_path / "state").job(images, plan=plan))) == fates(unbroken.result)


def test_a_search_that_was_told_to_stop_writes_no_more(tmp_path: Path) -> None:
    stop = Stop()

    def check() -> None:
        if stop.is_set():
            raise StoppedError

    old, new = Process(tmp_path / "state"), Process(tmp_path / "state")
    slices = old.job(check=check).steps()
    next(slices)
    stop.set()
    run(new.job(scripted_images(64, seed=9)), slices_of(new.job(scripted_images(64, seed=9))) // 2)
    kept = new.kept
    with pytest.raises(StoppedError):
        for _ in slices:
            pass
    assert new.kept == kept


def test_no_more_is_lost_than_a_few_seconds_of_work(tmp_path: Path) -> None:
    total = slices_of(Process(tmp_path / "unbroken").job())
    for share in (0.2, 0.5, 0.9):
        killed = Process(tmp_path / str(share))
        job = killed.job()
        run(job, int(share * total))
        assert killed.kept is not None
        assert job.seconds - killed.kept.course.seconds <= 2.5


def test_a_search_that_is_killed_again_and_again_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = Process(tmp_path / "unbroken").job()
    run(unbroken)
    monkeypatch.setattr("edge_runtime.adaptation.keeper.EVERY_SECONDS", 0.05)
    lives = 0
    for _ in range(50):
        lives += 1
        job, began = Process(tmp_path / "state").job(), None
        for _ in job.steps():
            began = job.seconds if began is None else began
            if job.phase == "search" and job.seconds > began + 0.12:
                break
        if job.result:
            break
    assert lives > 3
    assert fates(job.result) == fates(unbroken.result)


def test_where_time_ends_a_search_it_ends_it_at_the_same_proposal_again(tmp_path: Path) -> None:
    plan = replace(PLAN, seconds=0.3, generations=30)
    unbroken = Process(tmp_path / "unbroken").job(plan=plan)
    result = run(unbroken)
    assert result is not None
    assert result.ended_early
    killed, after = Process(tmp_path / "state"), Process(tmp_path / "state")
    job = killed.job(plan=plan)
    for _ in job.steps():
        if job.phase == "measure" and killed.kept is not None and killed.kept.course.proposals is not None:
            break
    again = after.job(plan=plan)
    assert fates(run(again)) == fates(result)
    assert again.evaluator.known() == unbroken.evaluator.known()
    ran = sum(gates != FULL for gates, _ in after.runs)
    assert ran == sum(map(len, again.evaluator.known().values())) - again.evaluator.taken_up


def test_the_active_subnet_of_another_moment_changes_no_evaluation(tmp_path: Path) -> None:
    unbroken = Process(tmp_path / "unbroken").job()
    total = slices_of(unbroken)
    run(Process(tmp_path / "state").job(), total // 2)
    job = Process(tmp_path / "state").job(current=SPACE.parse("2-0-1-0-0"))
    run(job)
    assert set(unbroken.evaluator.known()) - {FULL} <= set(job.evaluator.known())


def test_other_predictions_ask_for_other_subnets_and_still_evaluate_nothing_twice(tmp_path: Path) -> None:
    killed, after = Process(tmp_path), Process(tmp_path, table_scale=1.3)
    run(killed.job(), 130)
    kept = killed.kept
    assert kept is not None
    job = after.job()
    assert run(job) is not None
    assert job.evaluator.taken_up > 0
    runs = Counter(gates for gates, _ in after.runs.elements())
    for gates, values in kept.values.items():
        assert runs[gates] <= len(IMAGES) - len(values)


@settings(max_examples=15)
@given(
    limit_ms=st.floats(2.6, 13.0), seed=st.integers(0, 99), labelled=st.booleans(), seconds=st.sampled_from([1.0, 22.0])
)
def test_no_subnet_sees_an_image_twice(
    tmp_path_factory: pytest.TempPathFactory, limit_ms: float, seed: int, labelled: bool, seconds: float
) -> None:
    process = Process(tmp_path_factory.mktemp("state"))
    plan = AdaptPlan(
        Budget(latency_ms=limit_ms), seconds=seconds, population=8, generations=3, subsets=(16, 48), seed=seed
    )
    run(process.job(labels=true_labels(IMAGES) if labelled else None, plan=plan))
    assert set(process.runs.values()) == {1}


# Other images.


def test_on_other_images_the_best_are_tried_first_and_no_old_value_is_used(tmp_path: Path) -> None:
    killed, after = Process(tmp_path / "state"), Process(tmp_path / "state")
    run(killed.job(), 150)
    kept = killed.kept
    assert kept is not None
    images = scripted_images(128, seed=7)
    job = after.job(images)
    run(job, 2)
    assert after.kept is not None
    best = kept.best(4)
    assert len(best) == 4
    assert after.kept.course.seeds == (FULL, *best)
    assert after.kept.course.seconds < kept.course.seconds

    for _ in job.steps():
        pass
    assert set(best) <= set(job.evaluator.known())
    assert job.evaluator.taken_up == 0
    fresh = Process(tmp_path / "fresh").job(images)
    run(fresh)
    for gates, values in fresh.evaluator.known().items():
        found = job.evaluator.known().get(gates, ())
        assert found[: len(values)] == values[: len(found)]


def test_what_was_not_tried_yet_when_it_was_killed_is_tried_by_the_third(tmp_path: Path) -> None:
    process = Process(tmp_path)
    run(process.job(), 150)
    run(process.job(scripted_images(128, seed=7)), 2)
    assert process.kept is not None
    second = process.kept.course.seeds
    run(process.job(scripted_images(128, seed=8)), 2)
    assert process.kept is not None
    assert process.kept.course.seeds == second


def test_everything_that_decides_a_value_is_in_the_key() -> None:
    labels = true_labels(IMAGES)
    changed = IMAGES.copy()
    changed[-1, -1, -1, -1] ^= 1
    keys = [
        search_key(IMAGES, None, PLAN, 16),
        search_key(changed, None, PLAN, 16),
        search_key(IMAGES[:-1], None, PLAN, 16),
        search_key(IMAGES[::-1], None, PLAN, 16),
        search_key(IMAGES.reshape(128, 2, 8, 3), None, PLAN, 16),
        search_key(IMAGES, labels, PLAN, 16),
        search_key(IMAGES, (labels + 1) % 4, PLAN, 16),
        search_key(IMAGES, None, replace(PLAN, seed=2), 16),
        search_key(IMAGES, None, replace(PLAN, budget=Budget(latency_ms=6.5)), 16),
        search_key(IMAGES, None, PLAN, 4),
    ]
    assert len(set(keys)) == len(keys)
    assert search_key(IMAGES.copy(), None, replace(PLAN), 16) == keys[0]


# The file.


def stored(tmp_path: Path) -> Path:
    process = Process(tmp_path)
    run(process.job(), 150)
    assert process.kept is not None
    assert process.kept.values
    return tmp_path / NAME


def test_a_truncated_file_is_as_none_at_every_length(tmp_path: Path) -> None:
    path = stored(tmp_path)
    data = path.read_bytes()
    marks = [data.index(word) for word in (b'"value"', b'"key"', b'"course"', b'"values"')]
    lengths = {0, 1, 2, len(data) // 2, len(data) - 2, len(data) - 1, *marks, *range(0, len(data), 997)}
    for length in lengths:
        path.write_bytes(data[:length])
        assert Process(tmp_path).kept is None
    path.write_bytes(data)
    assert Process(tmp_path).kept is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body | {"format": 0},
        lambda body: body | {"of": "search-other.json"},
        lambda body: body | {"checkpoint": None},
        lambda body: body | {"more": 1},
        lambda body: body["checkpoint"]["values"][0][1].append(1.5) or body,
        lambda body: body["checkpoint"]["values"][0][1].append(-0.1) or body,
        lambda body: body["checkpoint"]["values"][0][1].append(True) or body,
        lambda body: body["checkpoint"]["values"][0][1].append("1") or body,
        lambda body: body["checkpoint"]["values"][0].append([]) or body,
        lambda body: body["checkpoint"]["values"].append([[0, 0], [1.0]]) or body,
        lambda body: body["checkpoint"]["course"].update(seconds=-1) or body,
        lambda body: body["checkpoint"]["course"].update(seconds="1") or body,
        lambda body: body["checkpoint"]["course"].update(image_seconds=0) or body,
        lambda body: body["checkpoint"]["course"].update(proposals=1.5) or body,
        lambda body: body["checkpoint"]["course"].update(seeds=[[9, 9, 9, 9, 9]]) or body,
        lambda body: body["checkpoint"]["course"].update(table=None) or body,
        lambda body: body["checkpoint"].pop("course") and body,
        lambda body: [body],
    ],
)
def test_a_foreign_older_or_damaged_file_is_as_none(tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    path = stored(tmp_path)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"value": spoil(whole["value"])}))
    process = Process(tmp_path)
    assert process.kept is None
    job = process.job()
    assert run(job) is not None
    assert job.evaluator.taken_up == 0
    assert process.kept is not None


def test_more_values_than_there_are_images_do_no_harm(tmp_path: Path) -> None:
    path = stored(tmp_path)
    whole = json.loads(path.read_text())
    for _, values in whole["value"]["checkpoint"]["values"]:
        values += [0.5] * 1000
    path.write_text(json.dumps(whole))
    job = Process(tmp_path).job()
    assert run(job) is not None
    assert max(map(len, job.evaluator.known().values())) == len(IMAGES)


def test_the_file_holds_numbers_of_subnets_and_no_pixel(tmp_path: Path) -> None:
    path = stored(tmp_path)
    body = json.loads(path.read_text())["value"]
    assert set(body) == {"format", "of", "checkpoint"}
    assert set(body["checkpoint"]) == {"key", "course", "values"}
    assert len(body["checkpoint"]["key"]) == len(body["checkpoint"]["course"]["table"]) == 64
    for gates, values in body["checkpoint"]["values"]:
        assert SPACE.from_json(gates) != FULL, "the reference is not kept"
        assert all(0 <= value <= 1 for value in values)
        assert len(values) <= len(IMAGES)
    data = path.read_bytes()
    assert len(data) < 200_000
    assert not any(image.tobytes()[:8] in data for image in IMAGES)


def test_the_file_is_bounded_whatever_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course((FULL,), "table")
    monkeypatch.setattr(checkpoint_module, "MAX_VALUES", 1000)
    many = dict.fromkeys(list(SPACE.enumerate())[:40], (0.25,) * 500)
    body = Checkpoint("key", course, many).to_json()
    assert sum(len(values) for _, values in body["values"]) == 1000
    read = Checkpoint.from_json(SPACE, json.loads(json.dumps(body)))
    assert read.values == dict.fromkeys(many, (0.25,) * 25)
    assert read.course == course


@pytest.mark.parametrize(
    "bad", [{"seconds": -1.0}, {"seconds": float("nan")}, {"image_seconds": 0.0}, {"proposals": -1}, {"table": ""}]
)
def test_a_course_cannot_be_built_invalid(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Course(**({"seeds": (), "table": "t"} | bad))


def test_it_is_gone_when_the_search_has_ended_also_when_nothing_fits(tmp_path: Path) -> None:
    process = Process(tmp_path)
    with pytest.raises(BudgetError):
        run(process.job(plan=replace(PLAN, budget=Budget(latency_ms=1.0))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_disk_that_refuses_costs_the_checkpoint_and_not_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    unbroken = run(Process(tmp_path / "unbroken").job())
    checkpoints = Checkpoints(StateDir.open(tmp_path / "full"), NAME)
    process = Process(tmp_path / "full")
    job = process.job()
    real = getattr(os, call)

    def full(*args: Any, **kwargs: Any) -> Any:
        if call != "open" or ".tmp" in str(args[0]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, full)
    assert fates(run(job)) == fates(unbroken)
    checkpoints.write(Checkpoint("key", Course((), "table"), {}))
    assert "No space left" in checkpoints.note
    monkeypatch.undo()
    assert list((tmp_path / "full").iterdir()) == []
    checkpoints.write(Checkpoint("key", Course((), "table"), {}))
    assert checkpoints.note == ""
    assert process.kept is not None


# The model.


def model(state: Path, **settings: Any) -> EdgeModel:
    session = scripted_session(COST)
    return EdgeModel(
        scripted_bundle(),
        session,
        SessionOptions(),
        profile=load_profile("generic-x86_64"),
        state=StateDir.open(state),
        table=scripted_table(),
        clock_ns=session.now_ns,
        **settings,
    )


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_model_goes_on_with_its_search_and_keeps_its_subnet_until_then(tmp_path: Path) -> None:
    budget, told = Budget(latency_ms=6.0), Counter[str]()
    with model(tmp_path, budget=budget) as first:
        before = first.adapt(list(IMAGES), wait=True).active

    def tell(status: Any) -> None:
        told[status.phase] += 1
        if status.phase == "measure":
            raise Killed

    images = scripted_images(128, seed=3)
    killed = model(tmp_path)
    with pytest.raises(Killed):
        killed.adapt(list(images), wait=True, tell=tell)
    assert len(list(tmp_path.glob("search-*.json"))) == 1

    with model(tmp_path) as again:
        assert again.gates == before
        status = again.adapt(list(images), wait=True)
        assert status.taken_up > 1000
        assert status.to_json()["taken_up"] == status.taken_up
        assert again.gates == status.active
    assert list(tmp_path.glob("search-*.json")) == []
    with model(tmp_path) as last:
        assert last.gates == status.active


def test_a_search_in_the_background_goes_on_in_the_next_process(tmp_path: Path) -> None:
    budget = Budget(latency_ms=6.0)
    killed = model(tmp_path, budget=budget)
    killed.adapt(list(IMAGES))
    running = killed._searches.running
    assert running is not None
    while not (running.job and running.job.phase == "measure"):
        assert running.running
        running.wait(0.001)
    killed.close()
    assert len(list(tmp_path.glob("search-*.json"))) == 1
    with model(tmp_path, budget=budget) as again:
        again.adapt(list(IMAGES))
        assert again.adapt(wait=True).taken_up > 1000


def test_stats_say_why_a_search_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    opened = model(tmp_path, budget=Budget(latency_ms=6.0))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    opened.adapt(list(np.asarray(IMAGES)), wait=True, tell=lambda _: said.append(opened.stats().state))
    assert "No space left" in said[-1]
