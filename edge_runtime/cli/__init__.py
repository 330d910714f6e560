"""`nnf-edge`: one file a verb, and no logic that a user of the library would miss.

`main` parses, runs one verb and turns every ending into an exit code: 0 ok; 1 failed; 2 usage; 3 measured, but a budget
was not met; 4 bundle invalid or refused; 5 device or runtime incompatible; 6 refused by a resource limit; 74 input or
output; 130, 141, 143 interrupted, reader gone, terminated. An error is one line on stderr that says what is wrong, and
one that says what to do. ``--debug`` shows the traceback. Parsing imports neither numpy nor any inference library.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType

from edge_runtime import __version__
from edge_runtime.command import CommandParser, run_command

__all__ = ["main", "verbs"]

_HELP_WIDTH = 79
_PAGE = """\
usage: nnf-edge VERB ...    nnf-edge VERB --help    nnf-edge --version

One model file, many speeds: measure, adapt and watch a bundle on this machine.

{verbs}

start here
  nnf-edge demo

your own model
  nnf-edge inspect MODEL.nnf
  nnf-edge benchmark MODEL.nnf --budget-ms 33
  nnf-edge adapt MODEL.nnf --data FOLDER --budget 33
  nnf-edge export MODEL.nnf --gates GATES -o subnet.onnx

exit codes
  0 ok   1 failed   2 usage   3 measured, but the budget is not met
  4 bundle refused   5 device or runtime incompatible   6 resource limit
  74 input or output   130, 141, 143 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name. Returns the exit code and raises nothing."""
    words = list(sys.argv[1:] if argv is None else argv)
    interrupted = "interrupted; the same command goes on where it was" if words[:1] == ["adapt"] else "interrupted"
    return run_command("nnf-edge", _run, words, interrupted=interrupted)


def verbs() -> tuple[ModuleType, ...]:
    """The modules of the verbs, in the order of the help; imported where Ctrl-C ends the command as any time later."""
    from edge_runtime.cli import adapt, benchmark, demo, export, inspect, verify

    return demo, inspect, verify, benchmark, adapt, export


def _run(words: list[str]) -> int:
    from edge_runtime.cli.console import Console
    from edge_runtime.cli.documents import check_target

    arguments = _parser().parse_args(words)
    if arguments.verb is None:
        _parser().print_help()
        return 0
    console = Console.standard(silent=arguments.json == "-", quiet=arguments.quiet, no_colour=arguments.no_color)
    arguments.command = words
    if arguments.json:
        check_target(arguments.json)
    code: int = arguments.run(arguments, console)
    console.clear_progress()
    return code


class _Parser(CommandParser):
    """A parser with one page of its own."""

    page = ""

    def format_help(self) -> str:
        return self.page or super().format_help()


def _parser() -> _Parser:
    parser = _Parser(prog="nnf-edge", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nnf-edge {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB")
    lines = []
    for verb in verbs():
        name = verb.__name__.rpartition(".")[2]
        paragraphs = [textwrap.fill(text, _HELP_WIDTH) for text in (verb.__doc__ or "").strip().split("\n\n")]
        sub = subparsers.add_parser(
            name,
            description="\n\n".join(paragraphs),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        _add_common(sub)
        sub.set_defaults(run=verb.run)
        lines.append(f"  {name:<10} {paragraphs[0][0].lower()}{paragraphs[0][1:].rstrip('.')}")
    parser.page = _PAGE.format(verbs="\n".join(lines))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the result as JSON; '-' for stdout and nothing else there")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")
    group.add_argument("--no-color", action="store_true", help="no colour (also: NO_COLOR=1)")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
