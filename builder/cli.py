"""`nnf-build`: make a network elastic and pack it as a bundle. Needs ``pip install 'nnf-edge[build]'``.

Five verbs take a developer's own network from its weights to a bundle (`builder.project`), two are recipes that begin
with a network of ours. Each goes on where it was stopped, keeps its steps in a work folder, and holds the machine's one
lock, so that it never runs beside a benchmark. Exit codes are those of ``nnf-edge``: 0 ok; 1 failed; 2 usage; 4 the
bundle would be refused; 5 torch or a device is missing; 6 the machine is in use or out of memory; 74 input or output;
130, 141, 143 interrupted, reader gone, terminated. Parsing imports neither numpy nor torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from builder import require_torch
from builder.project.arguments import VERBS, add_verbs, run_verb
from edge_runtime import __version__
from edge_runtime.command import CommandParser, run_command
from edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from builder.recipes.common import Request
    from builder.runlog import RunLog
    from builder.training import Compute
    from edge_runtime.bundle import Bundle

__all__ = ["main"]

_EPILOG = """\
start here
  nnf-build elastify --model model.py:network --weights weights.pt --data images --input-size 3x224x224 --report
  nnf-build train                         then export, check and pack: docs/walkthrough.md
  nnf-build demo                          from nothing to a bundle, about 15 minutes on two cores
  nnf-build runway --data shared/data     real photographs (FOD-A) and ImageNet weights, about 45 minutes

Stop it whenever you like: the same command goes on where it was.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; `argv` without the program's name. Returns the exit code and raises nothing."""
    return run_command("nnf-build", _run, argv, interrupted="interrupted; the same command goes on from here")


def _run(words: list[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.verb is None:
        parser.print_help()
        return 0
    require_torch()
    # Worker threads that sleep at once cost small networks a third of their speed, and those that spin on and on slow
    # down whatever else the machine does: spin for some tenths of a millisecond.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.verb in VERBS:
        return _run_project(arguments, words)
    return _run_recipe(arguments, words)


def _run_project(arguments: argparse.Namespace, words: list[str]) -> int:
    from builder.runlog import RunLog
    from builder.training import Compute, joined_ranks, started_processes

    if arguments.verb != "train" and started_processes() > 1:
        raise UsageError(f"{arguments.verb} runs in one process", hint="start only train with torchrun")
    device, precision = getattr(arguments, "device", "cpu"), getattr(arguments, "precision", "fp32")
    with _locked(arguments.verb), joined_ranks(device) as ranks:
        compute = Compute(device, precision, ranks=ranks)
        with RunLog(arguments.work / "log.jsonl") if ranks.first else RunLog(stream=io.StringIO()) as log:
            log.event("begin", {"command": shlex.join(["nnf-build", *words]), "processes": ranks.world})
            lines = _lines(arguments, log, compute)
    for line in lines:
        print(line)
    return 0


def _lines(arguments: argparse.Namespace, log: RunLog, compute: Compute) -> list[str]:
    """What a verb has to print; what the user's own code prints meanwhile goes to stderr."""
    from builder.elastify import NothingElasticError
    from builder.project.verbs import report_lines

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return run_verb(arguments, log, compute)
    except NothingElasticError as error:
        print("\n".join(report_lines(error.report, getattr(arguments, "report", None) or "text")))
        raise


@contextlib.contextmanager
def _locked(verb: str) -> Iterator[None]:
    """The machine's lock; of the processes that torchrun started here, the first takes it for all."""
    from edge_runtime.measure import machine_lock

    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    with machine_lock(f"nnf-build {verb}"):
        yield


def _run_recipe(arguments: argparse.Namespace, words: list[str]) -> int:
    from builder.recipes.common import Request
    from builder.runlog import RunLog

    work = arguments.work or Path("work") / arguments.verb
    out = arguments.out or work / f"{arguments.verb}.nnf"
    request = Request(
        work=work,
        out=out,
        seed=arguments.seed or 0,
        data=getattr(arguments, "data", None),
        command=_repeatable(arguments),
    )
    with _locked(arguments.verb), RunLog(work / "log.jsonl") as log:
        log.event("begin", {"command": shlex.join(["nnf-build", *words])})
        bundle = _recipe(arguments, request, log)
    print(f"{out}: {bundle.manifest.name}, digest {bundle.digest[:12]}")
    return 0


def _repeatable(arguments: argparse.Namespace) -> str:
    """The command for the bundle's provenance: what shapes the result, and no path of this machine."""
    words = ["nnf-build", arguments.verb, *(["--data", "DIR"] if arguments.verb == "runway" else [])]
    words += ["--dry-bright-only"] if getattr(arguments, "dry_bright_only", False) else []
    return shlex.join([*words, "--seed", str(arguments.seed or 0)])


def _recipe(arguments: argparse.Namespace, request: Request, log: RunLog) -> Bundle:
    if arguments.verb == "demo":
        from builder.recipes import demo

        return demo.build(request, log)
    from builder.recipes import runway

    return runway.build(request, log, dry_bright_only=arguments.dry_bright_only)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="nnf-build",
        description="Train a network, make it elastic, and pack it as a bundle for nnf-edge.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nnf-build {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_verbs(verbs)
    demo = verbs.add_parser("demo", help="the model that nnf-edge ships, from rendered scenes", allow_abbrev=False)
    runway = verbs.add_parser(
        "runway", help="runway debris (FOD-A) with a MobileNetV2 from ImageNet", allow_abbrev=False
    )
    runway.add_argument("--data", type=Path, metavar="DIR", default=os.environ.get("NNF_DATA"), help="folder with "
                        "fod_a_224px.npz and weights/ (default: $NNF_DATA)")  # fmt: skip
    runway.add_argument(
        "--dry-bright-only", action="store_true", help="train on dry, bright frames of the 14 common classes only"
    )
    for verb in (demo, runway):
        verb.add_argument("--work", type=Path, metavar="DIR", help="kept between runs (default: work/VERB)")
        verb.add_argument("--out", type=Path, metavar="FILE", help="the bundle (default: VERB.nnf in the work folder)")
    for verb in verbs.choices.values():
        verb.add_argument("--seed", type=_count, metavar="N", help="0 or more (default: 0)")
        verb.add_argument("--threads", type=_threads, metavar="N", help="torch's threads (default: one per core)")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 999999999")
    return int(text)


def _threads(text: str) -> int:
    if not 1 <= (count := _count(text)) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads from 1 to 1024")
    return count
