"""Find the best subnet of a bundle for this machine and your images.

Measures what each gate costs here, searches on the images of --data (a folder of image files, a folder with one
subfolder per class, or an .npz) and says which subnet is the best within the budget, and why. The images are read on
this machine and stay there. Without labels, quality is agreement with the full subnet.
"""

from __future__ import annotations

import argparse
import resource
from typing import TYPE_CHECKING, Any

from edge_runtime.cli.adapt_view import notes, show
from edge_runtime.cli.console import Console
from edge_runtime.cli.device import DeviceRecord, read_device
from edge_runtime.cli.documents import document, write_document
from edge_runtime.errors import BudgetError

if TYPE_CHECKING:
    from edge_runtime.adaptation import AdaptStatus
    from edge_runtime.inputs import Samples
    from edge_runtime.model import EdgeModel
    from edge_runtime.objectives import Budget

__all__ = ["add_arguments", "run"]

_MAX_IMAGES = 256


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
        show(status, model, device, console, explain=arguments.explain)
        for note in notes(status, model, samples, device):
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

    latency = Budget() if arguments.budget is None else Budget.parse(arguments.budget)
    return Budget(latency.latency_ms, arguments.memory_mib, latency.fraction, arguments.energy_mj)


def _wait(model: EdgeModel, samples: Samples, arguments: argparse.Namespace, console: Console) -> AdaptStatus:
    labels = None if arguments.no_labels else samples.labels

    def tell(status: AdaptStatus) -> None:
        console.progress(f"{status.phase} on {len(samples)} images", status.progress)

    status = model.adapt(samples.images, labels, wait=True, tell=tell)
    console.clear_progress()
    return status
