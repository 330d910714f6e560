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
from edge_runtime.cli.device import device_line, read_device
from edge_runtime.cli.documents import document, write_document
from edge_runtime.cli.tables import Column, render_table, shorten
from edge_runtime.errors import BudgetError

if TYPE_CHECKING:
    from edge_runtime.adaptation import AdaptStatus, Candidate
    from edge_runtime.inputs import Samples
    from edge_runtime.model import EdgeModel
    from edge_runtime.objectives import Budget

__all__ = ["add_arguments", "run", "score_table"]

_MAX_IMAGES = 256
_GATES_WIDTH = 33
_STYLES: dict[str, Style] = {"chosen": "good", "kept": "good", "over budget": "dim", "fell early": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a .nnf file or a bundle directory")
    parser.add_argument("--data", metavar="PATH", required=True, help="folder of images, or .npz with 'images'")
    parser.add_argument(
        "--budget", metavar="LIMIT", help="p95 of one frame: milliseconds like 33, or 60%% of the full subnet's"
    )
    parser.add_argument("--memory-mib", metavar="MIB", type=float, help="peak memory of the process")
    parser.add_argument("--images", metavar="N", type=int, default=_MAX_IMAGES, help="images to use (default 256)")
    parser.add_argument("--no-labels", action="store_true", help="ignore labels that the data has")
    parser.add_argument("--threads", metavar="N", type=int, help="threads of an operator (default: by profile)")
    parser.add_argument("--profile", metavar="NAME", help="device profile, by name or file (default: by this machine)")
    parser.add_argument("--state-dir", metavar="DIR", help="where what is learned is kept (default: per user)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the search (default 0)")
    parser.add_argument("--explain", action="store_true", help="list every candidate with what became of it")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Search, wait, explain. Where no subnet meets the budget, the document says which is the fastest."""
    budget = _budget(arguments)
    _leave_no_core()
    from edge_runtime.bundle import Bundle
    from edge_runtime.inputs import load_samples
    from edge_runtime.model import EdgeModel

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
            _write(arguments, bundle.digest, _unmet(error, model, budget))
            raise
        _print(status, model, samples, arguments, console)
        console.note(model.stats().state)
        _write(arguments, bundle.digest, status.to_json())
    return 0


def _leave_no_core() -> None:
    """A crash must not put the images into a core file.

    Linux ignores a limit of 0 where cores are piped to a program, but not one of 1 byte, less than any core file has.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


def _write(arguments: argparse.Namespace, digest: str, outcome: dict[str, Any]) -> None:
    if arguments.json:
        result = {"bundle": digest, "data": arguments.data, **outcome}
        write_document(arguments.json, document("adapt", result, read_device(), arguments.command))


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
    return Budget(latency.latency_ms, arguments.memory_mib, latency.fraction)


def _wait(model: EdgeModel, samples: Samples, arguments: argparse.Namespace, console: Console) -> AdaptStatus:
    labels = None if arguments.no_labels else samples.labels

    def tell(status: AdaptStatus) -> None:
        console.progress(f"{status.phase} on {len(samples)} images", status.progress)

    status = model.adapt(samples.images, labels, wait=True, tell=tell)
    console.clear_progress()
    return status


def _print(
    status: AdaptStatus, model: EdgeModel, samples: Samples, arguments: argparse.Namespace, console: Console
) -> None:
    bundle = model.bundle
    console.line(console.paint(f"{bundle.manifest.name} on {device_line(read_device(), model.threads)}", "bold"))
    limit = "" if status.limit_ms is None else f" = {status.limit_ms:.2f} ms"
    kind = "labelled" if status.labelled else "unlabelled"
    console.line(f"{status.samples} {kind} images, budget {status.budget}{limit}, searched in {status.seconds:.1f} s")
    if status.taken_up:
        console.line(f"the search went on: {status.taken_up} of its evaluations are from before a restart")
    console.line()
    shown = status.candidates if arguments.explain else tuple(c for c in status.candidates if c.score.measured)
    for line in score_table(console, shown, labelled=status.labelled):
        console.line(line)
    console.line()
    console.line(f"{console.paint('chosen', 'good')}  {status.active}")
    console.line(f"why     {status.reason}")
    if arguments.explain:
        for candidate in shown:
            console.line(
                console.paint(f"  {shorten(str(candidate.score.gates), _GATES_WIDTH)}: {candidate.reason}", "dim")
            )


def score_table(console: Console, candidates: tuple[Candidate, ...], *, labelled: bool) -> list[str]:
    """Candidates as a table: gates, p95, quality with its interval, and what became of each."""
    quality = "accuracy" if labelled else "agreement"
    columns = [
        Column("subnet", "left"),
        Column("p95 ms"),
        Column(quality),
        Column("95 % interval"),
        Column("", "left"),
    ]
    rows = [
        [
            shorten(str(candidate.score.gates), _GATES_WIDTH),
            f"{candidate.score.latency_ms:.2f}{'' if candidate.score.measured else '~'}",
            f"{candidate.score.quality:.3f}",
            f"{candidate.score.low:.3f} to {candidate.score.high:.3f}",
            candidate.fate,
        ]
        for candidate in candidates
    ]
    return render_table(console, columns, rows, [_STYLES.get(candidate.fate, "") for candidate in candidates])
