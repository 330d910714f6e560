"""Watch a model keep its deadline while the CPU is taken away.

Measures the bundled model on this machine, searches it on unlabelled images, and then lets it race its own fixed full
form on the same frames while a few worker processes make the CPU busy. Needs no network and no files; takes less than a
minute. With --bundle and --data it does the same with your own.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.cli.assets import demo_bundle, demo_images
from edge_runtime.cli.console import Console
from edge_runtime.cli.demo_view import Accuracy, FrontierRow, RaceView, frontier_lines, heading, result_lines
from edge_runtime.cli.device import device_line, read_device
from edge_runtime.cli.documents import document, write_document
from edge_runtime.cli.inspect import count_text
from edge_runtime.cli.pressure import MAX_WORKERS, Pressure, confined
from edge_runtime.cli.race import PHASES, Contestant, Lap, Race, Tray
from edge_runtime.errors import BudgetError, UsageError
from edge_runtime.objectives import Budget

if TYPE_CHECKING:
    from edge_runtime.adaptation import AdaptStatus
    from edge_runtime.gates import Gates
    from edge_runtime.inputs import Samples
    from edge_runtime.model import EdgeModel
    from edge_runtime.objectives import Score

__all__ = ["add_arguments", "run"]

_CORES = 2
_WORKERS_PER_CORE = 2
_MAX_IMAGES = 512
_BATCH = 32
_SEARCH_BUDGET = "60%"
_SEARCH_SECONDS = 10.0
_DEADLINE_OVER_USUAL = 1.4
"""The deadline as a multiple of what the full model takes when idle: comfortable, as long as nobody disturbs."""
_ROOM = 1.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("--bundle", metavar="BUNDLE", help="your own .nnf (default: the bundled model)")
    parser.add_argument("--data", metavar="PATH", help="your own images: folder or .npz (with your own bundle: needed)")
    parser.add_argument("--seconds", metavar="S", type=float, default=20.0, help="length of the race (default 20)")
    parser.add_argument("--deadline-ms", metavar="MS", type=float, help="default: 1.4 times the idle full model's time")
    parser.add_argument("--workers", metavar="N", type=int, help="busy processes (default 2 for each core used)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of an operator (default 1)")
    parser.add_argument("--state-dir", metavar="DIR", help="where what is learned is kept (default: per user)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of search and order (default 0)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """The four acts: the machine and the model, the search, the race, the result."""
    _check(arguments)
    with ExitStack() as stack:
        cpus = stack.enter_context(confined(_CORES))
        show = stack.enter_context(_open(arguments, console))
        found = _search(show, arguments, console)
        race = _race(show, found, arguments, console, cpus)
        result = _finish(show, found, race, console)
        if arguments.json:
            write_document(arguments.json, document("demo", result, show.device, arguments.command))
    return 0


@dataclass(slots=True)
class _Show:
    """What the acts share."""

    edge: EdgeModel
    fixed: EdgeModel
    device: dict[str, str | int | float]
    searched: Samples
    """Images for the search; their labels are not looked at."""
    held: Samples
    """Images that the search does not see."""


@dataclass(slots=True)
class _Found:
    """What the search act leaves."""

    status: AdaptStatus
    rows: list[FrontierRow]


@dataclass(slots=True)
class _Run:
    """What the race act leaves."""

    deadline_ms: float
    tray: int
    workers: int
    contestants: tuple[Contestant, Contestant]
    laps: list[Lap]


def _check(arguments: argparse.Namespace) -> None:
    if arguments.bundle and not arguments.data:
        raise UsageError("the bundled images do not fit your own bundle", hint="name your images with --data")
    if not 0 < arguments.seconds < math.inf:
        raise UsageError(f"--seconds {arguments.seconds:g} is no time", hint="give 10 or more")
    if arguments.deadline_ms is not None and not 0 < arguments.deadline_ms < math.inf:
        raise UsageError(f"--deadline-ms {arguments.deadline_ms:g} is no time", hint="give milliseconds above 0")
    if arguments.workers is not None and not 1 <= arguments.workers <= MAX_WORKERS:
        raise UsageError(f"--workers {arguments.workers} is not 1 to {MAX_WORKERS}")


@contextmanager
def _open(arguments: argparse.Namespace, console: Console) -> Iterator[_Show]:
    """Act 1: the machine, the model, the images."""
    from edge_runtime.inputs import load_samples
    from edge_runtime.model import EdgeModel

    path = arguments.bundle or demo_bundle()
    device = read_device()
    console.line(console.paint("nnf-edge", "bold") + "  one model file, many speeds")
    console.line(device_line(device, arguments.threads))
    with ExitStack() as stack:
        edge, fixed = (
            stack.enter_context(
                EdgeModel.load(
                    path,
                    budget=Budget(),
                    threads=arguments.threads,
                    state_dir=arguments.state_dir,
                    seed=arguments.seed,
                )
            )
            for _ in range(2)
        )
        manifest = edge.bundle.manifest
        samples = load_samples(
            arguments.data or demo_images(), class_names=manifest.task.class_names, limit=_MAX_IMAGES
        )
        searched, held = _halves(samples, arguments.seed)
        size = _stored_bytes(Path(edge.bundle.source)) / 2**20
        heading(console, 1, manifest.name)
        console.line(
            f"   {len(manifest.task.class_names)} classes, {len(manifest.space.groups)} gates, "
            f"{count_text(manifest.space)} subnets in one file of {size:.1f} MiB; {len(samples)} images"
        )
        yield _Show(edge, fixed, device, searched, held)


def _halves(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Two random halves, the first without labels."""
    import numpy as np

    from edge_runtime.inputs import Samples

    order = np.random.default_rng(seed).permutation(len(samples))
    half = (len(samples) + 1) // 2
    first = Samples(tuple(samples.images[i] for i in order[:half]))
    rest = order[half:] if len(order) > half else order
    labels = None if samples.labels is None else samples.labels[rest]
    return first, Samples(tuple(samples.images[i] for i in rest), labels)


def _search(show: _Show, arguments: argparse.Namespace, console: Console) -> _Found:
    """Act 2: the frontier of this machine, and how right its subnets are on images that the search did not see."""
    model = show.edge
    heading(console, 2, "Measured here", f"and searched on {len(show.searched)} images without their labels")

    def tell(status: AdaptStatus) -> None:
        console.progress(status.phase, status.progress)

    goal, images = f"within {_SEARCH_BUDGET} of the full subnet's time", show.searched.images
    try:
        budget = Budget.parse(_SEARCH_BUDGET)
        status = model.adapt(images, budget=budget, wait=True, seconds=_SEARCH_SECONDS, tell=tell)
    except BudgetError as error:
        _say(console, error.message)
        goal = "without a limit"
        status = model.adapt(images, budget=Budget(), wait=True, seconds=_SEARCH_SECONDS / 2, tell=tell)
    console.clear_progress()
    scores = _shown(status)
    rows = []
    for number, score in enumerate(scores):
        console.progress("checking on the other images", number / len(scores))
        rows.append(_row(show, score, status))
    for line in frontier_lines(console, rows):
        console.line(line)
    _say(console, f"{goal}: {status.reason}")
    return _Found(status, rows)


def _shown(status: AdaptStatus) -> list[Score]:
    """The frontier and, also where a faster subnet agrees with it in everything, the full subnet; fastest first."""
    scores = list(status.frontier.scores) if status.frontier else []
    if not any(score.gates.is_default for score in scores):
        scores += [one.score for one in status.candidates if one.score.gates.is_default]
    return sorted(scores, key=lambda score: score.latency_ms)


def _row(show: _Show, score: Score, status: AdaptStatus) -> FrontierRow:
    marks = [("full", score.gates.is_default), ("chosen", score.gates == status.active)]
    mark = ", ".join(word for word, applies in marks if applies)
    accuracy = None if show.held.labels is None else _accuracy(show, score.gates)
    return FrontierRow(str(score.gates), score.latency_ms, score.measured, score.quality, accuracy, mark)


def _accuracy(show: _Show, gates: Gates) -> Accuracy:
    """Share of the held images that one subnet answers rightly."""
    from edge_runtime.inputs import preprocess_all
    from edge_runtime.quality import wilson_interval

    right = 0
    for start in range(0, len(show.held), _BATCH):
        part = slice(start, start + _BATCH)
        batch = preprocess_all(show.held.images[part], show.edge.bundle.manifest.preprocessing)
        (logits, *_) = show.edge.infer(batch, gates).values()
        right += int((logits.argmax(axis=1) == show.held.labels[part]).sum()) if show.held.labels is not None else 0
    mean = right / len(show.held)
    return Accuracy(mean, *wilson_interval(mean, len(show.held)))


def _race(show: _Show, found: _Found, arguments: argparse.Namespace, console: Console, cpus: int) -> _Run:
    """Act 3: both models on the same frames, with a busy neighbour in the middle."""
    slowest_ms = found.status.full_latency_ms or 1.0
    show.fixed.swap("full")
    tray = Tray.for_model(show.fixed, show.held.images)
    deadline_ms = arguments.deadline_ms or _DEADLINE_OVER_USUAL * tray.usual_ms
    workers = arguments.workers or min(MAX_WORKERS, _WORKERS_PER_CORE * cpus)
    heading(console, 3, "The race", f"{tray.parts} parts in each frame, deadline {deadline_ms:.1f} ms")
    console.line(f"   both answer the same frames, in turns; then {workers} busy processes on {cpus} cores")
    names = show.edge.bundle.manifest.task.class_names
    labels = [None] * len(show.held) if show.held.labels is None else [names[int(i)] for i in show.held.labels]
    # A budget is on the p95 of one run; where the search saw a wavering machine, it must not forbid the full subnet.
    show.edge.adapt(budget=Budget(latency_ms=max(deadline_ms / tray.parts, _ROOM * slowest_ms)))
    contestants = Contestant("fixed full model", show.fixed, False), Contestant("nnf-edge", show.edge, True)
    laps = []
    with Pressure(workers, arguments.seconds) as pressure:
        race = Race(
            *contestants,
            deadline_ms=deadline_ms,
            images=list(zip(show.held.images, labels, strict=True)),
            tray=tray.parts,
            pressure=pressure,
            seconds=arguments.seconds,
        )
        view = RaceView(console, deadline_ms, {row.gates: row.p95_ms / slowest_ms for row in found.rows})
        view.head()
        for lap in race.laps():
            laps.append(lap)
            view.show(lap)
    return _Run(deadline_ms, tray.parts, workers, contestants, laps)


def _finish(show: _Show, found: _Found, race: _Run, console: Console) -> dict[str, Any]:
    """Act 4: what came of it, whatever it was."""
    labelled = show.held.labels is not None
    heading(console, 4, "Late frames", f"of the same frames, deadline {race.deadline_ms:.1f} ms")
    for line in result_lines(console, race.contestants, race.deadline_ms, [p for p, _ in PHASES], labelled):
        console.line(line)
    fixed, edge = (one.late(race.deadline_ms) for one in race.contestants)
    console.line()
    swaps = tuple(swap for lap in race.laps for swap in lap.swaps)
    _say(console, _verdict(fixed, edge, len(swaps)))
    bundle = show.edge.bundle
    return {
        "bundle": {"source": bundle.source, "name": bundle.manifest.name, "digest": bundle.digest},
        "search": found.status.to_json(),
        "accuracy": [
            {"gates": row.gates, "mean": row.accuracy.mean, "low": row.accuracy.low, "high": row.accuracy.high}
            for row in found.rows
            if row.accuracy
        ],
        "deadline_ms": race.deadline_ms,
        "parts_in_a_frame": race.tray,
        "workers": race.workers,
        "fixed": race.contestants[0].to_json(race.deadline_ms, labelled),
        "edge": race.contestants[1].to_json(race.deadline_ms, labelled),
        "swaps": [swap.to_json() for swap in swaps],
    }


def _say(console: Console, text: str) -> None:
    for line in textwrap.wrap(text, 76):
        console.line(f"   {line}")


def _verdict(fixed: int, edge: int, swaps: int) -> str:
    """One sentence, true in every case."""
    times = f"{swaps} swap{'s' if swaps != 1 else ''}"
    if edge < fixed:
        return f"nnf-edge missed {edge} deadlines where the fixed model missed {fixed}, with {times} and no frame lost."
    if fixed == edge == 0:
        return "Neither missed a deadline: this machine was never busy enough. Try --workers or --deadline-ms."
    return f"nnf-edge missed {edge} deadlines and the fixed model {fixed}: in this run adapting did not help ({times})."


def _stored_bytes(bundle: Path) -> int:
    """Size of a bundle on the disk, a file or a directory."""
    files = bundle.iterdir() if bundle.is_dir() else [bundle]
    return sum(file.stat().st_size for file in files)
