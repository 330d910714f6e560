"""`nnf-build`: train a bundle, one recipe a verb. Needs ``pip install 'nnf-edge[build]'``.

Every recipe goes on where it was stopped, keeps its steps in a work folder, and holds the machine's one lock, so that
it never runs beside a benchmark. Exit codes are those of ``nnf-edge``: 0 ok; 1 failed; 2 usage; 5 torch is missing; 6
the machine is in use or out of memory; 74 input or output; 130, 141, 143 interrupted, reader gone, terminated. Parsing
imports neither numpy nor torch.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from builder import require_torch
from edge_runtime import __version__
from edge_runtime.command import CommandParser, run_command

if TYPE_CHECKING:
    from builder.recipes.common import Request
    from builder.runlog import RunLog
    from edge_runtime.bundle import Bundle

__all__ = ["main"]

_EPILOG = """\
start here
  nnf-build demo                          from nothing to a bundle, about 15 minutes on two cores
  nnf-build runway --data shared/data     real photographs (FOD-A) and ImageNet weights, about 45 minutes

Stop it whenever you like: the same command goes on where it was.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one recipe; `argv` without the program's name. Returns the exit code and raises nothing."""
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

    from builder.recipes.common import Request
    from builder.runlog import RunLog
    from edge_runtime.measure import machine_lock

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    work = arguments.work or Path("work") / arguments.verb
    out = arguments.out or work / f"{arguments.verb}.nnf"
    command = shlex.join(["nnf-build", *words])
    request = Request(
        work=work, out=out, seed=arguments.seed, data=getattr(arguments, "data", None), command=_repeatable(arguments)
    )
    with machine_lock(f"nnf-build {arguments.verb}"), RunLog(work / "log.jsonl") as log:
        log.event("begin", {"command": command})
        bundle = _recipe(arguments, request, log)
    print(f"{out}: {bundle.manifest.name}, digest {bundle.digest[:12]}")
    return 0


def _repeatable(arguments: argparse.Namespace) -> str:
    """The command for the bundle's provenance: what shapes the result, and no path of this machine."""
    words = ["nnf-build", arguments.verb, *(["--data", "DIR"] if arguments.verb == "runway" else [])]
    words += ["--dry-bright-only"] if getattr(arguments, "dry_bright_only", False) else []
    return shlex.join([*words, "--seed", str(arguments.seed)])


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
        verb.add_argument("--seed", type=_count, default=0, metavar="N", help="0 or more (default: 0)")
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
