"""`nnf-edge`: one file a verb, and no logic that a user of the library would miss.

`main` parses, runs one verb and turns every ending into an exit code: 0 ok; 1 failed; 2 usage; 3 measured, but a budget
was not met; 4 bundle invalid or refused; 5 device or runtime incompatible; 6 refused by a resource limit; 74 input or
output; 130, 141, 143 interrupted, reader gone, terminated. An error is one line on stderr that says what is wrong, and
one that says what to do. ``--debug`` shows the traceback. Parsing imports neither numpy nor any inference library.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from edge_runtime import __version__
from edge_runtime.cli import adapt, benchmark, demo, inspect, verify
from edge_runtime.cli.console import Console
from edge_runtime.errors import BundleError, EdgeError, ResourceError, StateError, UsageError

__all__ = ["main"]

_VERBS = (demo, inspect, verify, benchmark, adapt)
_INTERRUPTED, _READER_GONE, _TERMINATED = 130, 141, 143

_HELP_WIDTH = 79
_PAGE = """\
usage: nnf-edge VERB ...          nnf-edge VERB --help for one of them

One model file, many speeds: measure, adapt and watch a bundle on this machine.

{verbs}

start here
  nnf-edge demo

your own model
  nnf-edge inspect MODEL.nnf
  nnf-edge benchmark MODEL.nnf --budget-ms 33
  nnf-edge adapt MODEL.nnf --data FOLDER --budget 33

exit codes
  0 ok   1 failed   2 usage   3 measured, but the budget is not met
  4 bundle refused   5 device or runtime incompatible   6 resource limit
  74 input or output   130, 141, 143 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name. Returns the exit code and raises nothing."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _end_on_sigterm()
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _reader_gone()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        return _explain(error, debug="--debug" in words)


def _run(words: list[str]) -> int:
    arguments = _parser().parse_args(words)
    if arguments.verb is None:
        _parser().print_help()
        return 0
    console = Console.standard(silent=arguments.json == "-", quiet=arguments.quiet, no_colour=arguments.no_color)
    arguments.command = words
    code: int = arguments.run(arguments, console)
    console.clear_progress()
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in our form and one page of its own."""

    page = ""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")

    def format_help(self) -> str:
        return self.page or super().format_help()


def _parser() -> _Parser:
    parser = _Parser(prog="nnf-edge", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nnf-edge {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    lines = []
    for verb in _VERBS:
        name = verb.__name__.rpartition(".")[2]
        paragraphs = [textwrap.fill(text, _HELP_WIDTH) for text in (verb.__doc__ or "").strip().split("\n\n")]
        sub = verbs.add_parser(
            name,
            description="\n\n".join(paragraphs),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        _add_common(sub)
        sub.set_defaults(run=verb.run)
        lines.append(f"  {name:<10} {paragraphs[0].rstrip('.').lower()}")
    parser.page = _PAGE.format(verbs="\n".join(lines))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the result as JSON; '-' for stdout and nothing else there")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")
    group.add_argument("--no-color", action="store_true", help="no colour (also: NO_COLOR=1)")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _end_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that worker processes are reaped and locks released."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _reader_gone() -> int:
    """The reader of our stdout left (``| head``): end quietly, and keep the interpreter's last flush quiet as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _READER_GONE


def _explain(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError) and not isinstance(error, EdgeError):
        error = StateError(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    if isinstance(error, MemoryError):
        what = _first_line(error)
        error = ResourceError("out of memory" + (f": {what}" if what else ""), hint="use fewer images, or free memory")
    if not isinstance(error, EdgeError):
        print(f"nnf-edge: {type(error).__name__}: {_first_line(error)}", file=sys.stderr)
        print("  this is a fault of nnf-edge; run it again with --debug and report what it prints", file=sys.stderr)
        return EdgeError.exit_code
    print(f"nnf-edge: {error.message}", file=sys.stderr)
    for fault in error.faults if isinstance(error, BundleError) else ():
        print(f"  - {fault}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return error.exit_code


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
