"""Find the best subnet of a bundle for this machine and your images.

Measures what each gate costs here, searches on the images of --data (a folder of image files, a folder with one
subfolder per class, or an .npz) and says which subnet is the best within the budget, and why. The images are read on
this machine and stay there. Without labels, quality is agreement with the full subnet.
"""

from __future__ import annotations

import argparse
import resource
from typing import TYPE_CHECKING, Any

from edge_runtime.cli.console import Console, Style
from edge_runtime.cli.device import DeviceRecord, busy_note, device_line, read_device
from edge_runtime.cli.documents import document, write_document
from edge_runtime.cli.tables import Column, render_table, shorten
from edge_runtime.errors import BudgetError

if TYPE_CHECKING:
    from edge_runtime.adaptation import AdaptStatus, Candidate
    from edge_runtime.inputs import Samples
    from edge_runtime.model import EdgeModel
    from edge_runtime.objectives import Budget

__all__ = ["add_arguments", "run"]

_MAX_IMAGES = 256
_GATES_WIDTH = 33
_FEW_IMAGES, _LITTLE_VARIETY = 32, 0.34

_STYLES: dict[str, Style] = {"chosen": "good", "kept": "good", "over budget": "dim", "fell early": "dim"}

_FATES = {
    "chosen": "answers from now on",
    "kept": "was active, and the images show nothing that is surely better",
    "lost": "likely worth less than the chosen one; its own score may be luck",
    "worse": "surely worse than the chosen one on these images",
    "indistinguishable": "has the highest likely quality, and the images cannot tell it from the cheaper or active one",
    "not trusted": "the bundle expects far more damage on clean images than its latency is worth",
    "over budget": "measured above the limit",
    "uncertain": "measured within the limit, but its p95 is not sure to be",
    "reference": "the full subnet, above the limit",
    "unmeasured": "evaluated on the images, for the frontier; its time is predicted (~)",
    "fell early": "cut on the first images",
}
"""What became of candidates, for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a .nnf file or a bundle directory")
    parser.add_argument("--data", metavar="PATH", required=True, help="folder of images, or .npz file")
    parser.add_argument(
        "--budget",
        metavar="LIMIT",
        help="p95 of one frame: milliseconds like 33, or 60%% of the full subnet's; without it time is no limit",
    )
    parser.add_argument(
        "--memory-mib", metavar="MIB", type=float, help="peak memory of this process, the search included"
    )
    parser.add_argument(
        "--energy-mj", metavar="MJ", type=float, help="what the board takes for one frame, where it has a power sensor"
    )
    parser.add_argument("--images", metavar="N", type=int, default=_MAX_IMAGES, help="images to use (default 256)")
    parser.add_argument("--no-labels", action="store_true", help="ignore labels that the data has")
    parser.add_argument("--threads", metavar="N", type=int, help="threads of an operator (default: by profile)")
    parser.add_argument("--profile", metavar="NAME", help="device profile, by name or file (default: by this machine)")
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where what is learned is kept (default: the user's state folder)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the search (default 0)")
    parser.add_argument("--explain", action="store_true", help="list every candidate with what became of it, and why")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Search, wait, explain. Where no subnet meets the budget, the document says which is the fastest."""
    budget = _budget(arguments)
    _leave_no_core()
    from edge_runtime.bundle import Bundle
    from edge_runtime.inputs import load_samples
    from edge_runtime.model import EdgeModel

    device = read_device()
    bundle = Bundle.read(arguments.bundle)
    shape, names = bundle.manifest.preprocessing, bundle.manifest.task.class_names
    samples = load_samples(arguments.data, class_names=names, limit=arguments.images, size=(shape.height, shape.width))
    with EdgeModel.load(
        arguments.bundle,
        budget=budget,
        profile=arguments.profile,
        threads=arguments.threads,
        state_dir=arguments.state_dir,
        seed=arguments.seed,
    ) as model:
        try:
            status = _wait(model, samples, arguments, console)
        except BudgetError as error:
            _write(arguments, bundle.digest, device, _unmet(error, model, budget))
            raise
        _write(arguments, bundle.digest, device, status.to_json())
        _print(status, model, device, arguments, console)
        for note in _notes(status, model, samples, device):
            console.note(note)
    return 0


def _leave_no_core() -> None:
    """A crash must not put the images into a core file.

    Linux ignores a limit of 0 where cores are piped to a program, but not one of 1 byte, less than any core file has.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


def _write(arguments: argparse.Namespace, digest: str, device: DeviceRecord, outcome: dict[str, Any]) -> None:
    if arguments.json:
        result = {"bundle": digest, "data": arguments.data, **outcome}
        write_document(arguments.json, document("adapt", result, device, arguments.command))


def _unmet(error: BudgetError, model: EdgeModel, budget: Budget) -> dict[str, Any]:
    """The outcome as JSON types where no subnet meets the budget: nothing changed, and which is the fastest."""
    return {
        "active": str(model.gates),
        "phase": "failed",
        "changed": False,
        "reason": error.message,
        "budget": budget.to_json(),
        "fastest": {"gates": error.fastest, "latency_ms": error.latency_ms},
    }


def _budget(arguments: argparse.Namespace) -> Budget:
    from edge_runtime.objectives import Budget

    latency = Budget.parse(arguments.budget) if arguments.budget else Budget()
    return Budget(latency.latency_ms, arguments.memory_mib, latency.fraction, arguments.energy_mj)


def _wait(model: EdgeModel, samples: Samples, arguments: argparse.Namespace, console: Console) -> AdaptStatus:
    labels = None if arguments.no_labels else samples.labels

    def tell(status: AdaptStatus) -> None:
        console.progress(f"{status.phase} on {len(samples)} images", status.progress)

    status = model.adapt(samples.images, labels, wait=True, tell=tell)
    console.clear_progress()
    return status


def _notes(status: AdaptStatus, model: EdgeModel, samples: Samples, device: DeviceRecord) -> list[str]:
    """What weakens the result."""
    notes = [model.stats().state, busy_note(device)]
    if samples.skipped:
        more = f", and {len(samples.skipped) - 1} more" if len(samples.skipped) > 1 else ""
        notes.append(f"note: left out: {samples.skipped[0]}{more}")
    if status.samples < _FEW_IMAGES:
        notes.append(f"note: {status.samples} images tell little; give 64 or more")
    elif status.variety < _LITTLE_VARIETY:
        named = "the labels name" if status.labelled else "the full subnet names"
        notes.append(f"note: {named} one class for most of these images, so the choice follows the bundle's own")
    return [note for note in notes if note]


def _print(
    status: AdaptStatus, model: EdgeModel, device: DeviceRecord, arguments: argparse.Namespace, console: Console
) -> None:
    console.line(console.paint(f"{model.bundle.manifest.name} on {device_line(device, model.threads)}", "bold"))
    images = f"{status.samples} {'' if status.labelled else 'un'}labelled image{'s' if status.samples != 1 else ''}"
    console.line(f"{images}, budget {_budget_text(status)}, searched in {status.seconds:.1f} s")
    if status.taken_up:
        console.line(f"the search went on: {status.taken_up} of its evaluations are from before a restart")
    console.line()
    shown = status.candidates if arguments.explain else tuple(c for c in status.candidates if c.score.measured)
    for line in _table(console, shown, labelled=status.labelled, explain=arguments.explain):
        console.line(line)
    console.line()
    console.line(f"{console.paint('chosen', 'good')}  {status.active}")
    console.line(f"why     {status.reason}")
    if arguments.explain:
        console.line()
        for fate in dict.fromkeys(candidate.fate for candidate in shown):
            console.line(console.paint(f"  {fate:<17} {_FATES[fate]}", "dim"))


def _budget_text(status: AdaptStatus) -> str:
    """The budget, and for a share of the full subnet's time what it is a share of."""
    if status.budget.fraction is None or status.limit_ms is None or status.full_latency_ms is None:
        return str(status.budget)
    return f"{status.budget}'s {status.full_latency_ms:.2f} ms (expected p95) = {status.limit_ms:.2f} ms"


def _table(console: Console, candidates: tuple[Candidate, ...], *, labelled: bool, explain: bool) -> list[str]:
    """Candidates as a table: gates, p95, quality with its interval, what became of each, and on request why."""
    quality = "accuracy" if labelled else "agreement"
    columns = [
        Column("subnet", "left"),
        Column("p95 ms"),
        Column(quality),
        Column("95 % interval"),
        Column("", "left"),
        *([Column("why", "left")] if explain else []),
    ]
    rows = [
        [
            shorten(str(candidate.score.gates), _GATES_WIDTH),
            f"{candidate.score.latency_ms:.2f}{'' if candidate.score.measured else '~'}",
            f"{candidate.score.quality:.3f}",
            f"{candidate.score.low:.3f} to {candidate.score.high:.3f}",
            candidate.fate,
            *([candidate.reason] if explain else []),
        ]
        for candidate in candidates
    ]
    return render_table(console, columns, rows, [_STYLES.get(candidate.fate, "") for candidate in candidates])
