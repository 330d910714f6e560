"""The options of the project's commands: what is parsed, and what it means. Parsing imports neither numpy nor torch."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import StateError, UsageError

if TYPE_CHECKING:
    from builder.project.project import Project
    from builder.runlog import RunLog
    from builder.training import Compute

__all__ = ["VERBS", "add_verbs", "run_verb"]

VERBS = {
    "elastify": "make a supernet of your own network, and say what it offers",
    "train": "train its alternatives from the network itself; images need no labels",
    "export": "write the gated ONNX graph, its weights, and the network's own static graph",
    "check": "compare what was exported with torch",
    "pack": "write the bundle for nnf-edge",
}

_LONGEST_SIDE = 4096


def add_verbs(verbs: Any) -> None:
    """Declare the five commands on argparse's subparsers."""
    parsers = {verb: verbs.add_parser(verb, help=help, allow_abbrev=False) for verb, help in VERBS.items()}
    for verb, parser in parsers.items():
        parser.add_argument(
            "--work",
            type=Path,
            metavar="DIR",
            default=Path("work/project"),
            help="holds everything (default: work/project)",
        )
        _add_project(parser, begins=verb == "elastify")
    parsers["elastify"].add_argument(
        "--report", nargs="?", const="text", choices=("text", "json"), help="print what each unit got, and why not more"
    )
    _add_offer(parsers["elastify"])
    _add_training(parsers["train"])
    parsers["export"].add_argument(
        "--name", metavar="NAME", help="of the bundle, for people (default: the work folder's)"
    )
    parsers["export"].add_argument(
        "--no-int8", dest="int8", action="store_false", help="nothing computes in 8 bits, and nothing is stored so"
    )
    parsers["pack"].add_argument(
        "--out", type=Path, metavar="FILE", help="the bundle (default: WORK.nnf in the work folder)"
    )


def _add_project(parser: argparse.ArgumentParser, *, begins: bool) -> None:
    about = None if begins else "kept in the work folder; where given again, they have to be the same"
    group = parser.add_argument_group("the project", about)
    group.add_argument(
        "--model", metavar="FILE:FUNC", help="factory: path/to/model.py:function or package.module:function"
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors or a state dict "
                       "(without: the factory's network is trained)")  # fmt: skip
    group.add_argument("--data", type=Path, metavar="DIR", help="folder of images, one folder per class, folders train "
                       "and val of these, or an .npz")  # fmt: skip
    group.add_argument("--input-size", type=_size, metavar="3xHxW", help="of the network's input, e.g. 3x224x224")
    group.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line in the outputs' order "
                       "(default: the data's own)")  # fmt: skip
    group.add_argument("--mean", type=_channels, metavar="R,G,B", help="of pixels in [0, 1] (default: ImageNet's)")
    group.add_argument("--std", type=_channels, metavar="R,G,B", help="of pixels in [0, 1] (default: ImageNet's)")


def _add_offer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what each unit is offered")
    group.add_argument("--widths", type=_ratios, metavar="R,R,...", help="shares of the inner channels that narrower "
                       "copies keep, 0.01 to 0.99 (default: 0.5,0.25)")  # fmt: skip
    group.add_argument("--window", type=_window, metavar="N", help="most units that one merged alternative replaces, "
                       "1 for none (default: 3)")  # fmt: skip
    group.add_argument("--no-skip", dest="skip", action="store_false", default=None, help="never leave a unit out")
    group.add_argument("--storage-ratio", type=_storage, metavar="X", help="most bytes of the supernet as a multiple "
                       "of the network's (default: 2)")  # fmt: skip


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the training")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_epochs, metavar="N", help="passes over the images for whole subnets, "
                        "and a quarter as many before for each alternative (default: 30; more for few)")  # fmt: skip
    length.add_argument("--minutes", type=_minutes, metavar="M", help="about this long on this machine")
    group.add_argument("--batch-size", type=_batch, metavar="N", help="images of one step (default: 32)")
    group.add_argument("--augment", choices=("none", "mild"), help="random changes to the images (default: mild)")
    group.add_argument("--no-labels", dest="labels", action="store_false", default=None, help="do without the labels")
    group.add_argument("--latency", metavar="here|FILE", help="draw subnets evenly over the latency measured here, or "
                       "of a table (default: over multiply-accumulates)")  # fmt: skip
    group.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                       help="auto: what is faster here (default)")  # fmt: skip


def run_verb(arguments: argparse.Namespace, log: RunLog, compute: Compute) -> list[str]:
    """Open the project that the arguments mean and run their verb; gives the lines to print."""
    from builder.project import verbs

    project = _open(arguments, log)
    if arguments.verb == "elastify":
        return verbs.elastify(project, report=arguments.report)
    if arguments.verb == "train":
        names = ("epochs", "minutes", "batch_size", "augment", "labels", "latency")
        given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
        return verbs.train(project, given, compute)
    if arguments.verb == "export":
        return verbs.export(project, arguments.name, int8=arguments.int8)
    if arguments.verb == "check":
        return verbs.check(project)
    return verbs.pack(project, arguments.out or arguments.work / f"{arguments.work.resolve().name}.nnf")


def _open(arguments: argparse.Namespace, log: RunLog) -> Project:
    from builder.project.project import Project
    from builder.project.settings import file_digest, kept_settings, new_settings

    given: dict[str, Any] = {
        "model": None if arguments.model is None else _absolute_factory(arguments.model),
        "weights": None if arguments.weights is None else file_digest(arguments.weights, "weights file"),
        "data": None if arguments.data is None else os.path.abspath(arguments.data),
        "input_size": arguments.input_size,
        "classes": None if arguments.classes is None else _class_names(arguments.classes),
        "mean": arguments.mean,
        "std": arguments.std,
        "seed": arguments.seed,
        **{name: getattr(arguments, name, None) for name in ("widths", "window", "skip", "storage_ratio")},
    }
    given = {name: value for name, value in given.items() if value is not None}
    if (settings := kept_settings(arguments.work, given)) is not None:
        return Project(settings, arguments.work, log)
    if arguments.verb != "elastify":
        raise StateError(
            f"there is no project in {arguments.work}", hint="begin it: nnf-build elastify --model ... --work DIR"
        )
    return Project(new_settings(given), arguments.work, log, begins=True, weights=arguments.weights)


def _absolute_factory(reference: str) -> str:
    where, colon, name = reference.rpartition(":")
    return f"{os.path.abspath(where)}{colon}{name}" if where.endswith(".py") else reference


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the class names {str(path)!r} cannot be read: {error}", hint="a text file, one a line"
        ) from error
    if not names:
        raise UsageError(f"{path} holds no class names", hint="one a line, in the order of the outputs")
    return names


def _size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not CHANNELSxHEIGHTxWIDTH, e.g. 3x224x224")
    channels, height, width = (int(part) for part in parts)
    if not (1 <= channels <= 4 and 8 <= height <= _LONGEST_SIDE and 8 <= width <= _LONGEST_SIDE):
        raise argparse.ArgumentTypeError(f"{text!r} is not an image: sides of 8 to {_LONGEST_SIDE} pixels")
    return channels, height, width


def _channels(text: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers R,G,B") from error
    return first, second, third


def _ratios(text: str) -> tuple[float, ...]:
    ratios = tuple(_number(part) for part in text.split(","))
    percents = {round(100 * ratio) for ratio in ratios if 0 < ratio < 1}  # what alternatives are named by
    if len(percents) < len(ratios) or not percents.isdisjoint({0, 100}):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different shares of 0.01 to 0.99, e.g. 0.5,0.25")
    return ratios


def _window(text: str) -> int:
    return _whole(text, "units", 1, 4)


def _storage(text: str) -> float:
    if not 1 < (ratio := _number(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple above 1, to 100")
    return ratio


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(text: str, what: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what} from {low} to {high}")
    return int(text)


def _epochs(text: str) -> int:
    return _whole(text, "epochs", 1, 100_000)


def _batch(text: str) -> int:
    return _whole(text, "images", 2, 65_536)


def _minutes(text: str) -> float:
    if not 0 < (minutes := _number(text)) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return minutes
