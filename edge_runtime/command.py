"""How a command begins and ends: every ending becomes an exit code and at most a few lines on stderr.

Exit codes: those of the errors (1 failed, 2 usage, 3 budget, 4 bundle, 5 incompatible, 6 resource limit, 74 input or
output), and 130, 141, 143 for interrupted, reader gone, terminated. Imports no native library.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from edge_runtime.errors import BundleError, EdgeError, ResourceError, StateError, UsageError

__all__ = ["CommandParser", "run_command"]

_INTERRUPTED, _READER_GONE, _TERMINATED = 130, 141, 143


class CommandParser(argparse.ArgumentParser):
    """argparse, with its errors in our form."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of leaving the process."""
        raise UsageError(message, hint=f"see {self.prog} --help")


def run_command(
    program: str, run: Callable[[list[str]], int], argv: Sequence[str] | None, *, interrupted: str = "interrupted"
) -> int:
    """Run a program to its end; returns the exit code and raises nothing.

    Args:
        program: Its name, which begins every error. Example: ``nnf-edge``.
        run: Takes the words, gives the exit code, may raise whatever it likes.
        argv: Words without the program's name; None: those of this process. ``--debug`` among them shows tracebacks.
        interrupted: What is said after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    try:
        _end_on_sigterm()
        code = run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _reader_gone()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(f"{program}: {stop.code}", file=sys.stderr)
        return EdgeError.exit_code
    except Exception as error:
        _settle_stdout()
        return _explain(program, error, debug="--debug" in words)


def _open_missing_streams() -> None:
    """A program that is started without stdout or stderr (``>&-``) says nothing there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def _end_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that worker processes are reaped and locks released."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _reader_gone() -> int:
    """The reader of our stdout left (``| head``): end quietly, and keep the interpreter's last flush quiet as well."""
    _drop_stdout()
    return _READER_GONE


def _settle_stdout() -> None:
    """Drop what stdout cannot take: else the interpreter's last flush fails too, and ends with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(program: str, error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError) and not isinstance(error, EdgeError):
        error = StateError(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    if isinstance(error, MemoryError):
        what = _first_line(error)
        error = ResourceError("out of memory" + (f": {what}" if what else ""), hint="use fewer images, or free memory")
    if not isinstance(error, EdgeError):
        print(f"{program}: {type(error).__name__}: {_first_line(error)}", file=sys.stderr)
        print(f"  this is a fault of {program}; run it again with --debug and report what it prints", file=sys.stderr)
        return EdgeError.exit_code
    print(f"{program}: {error.message}", file=sys.stderr)
    for fault in error.faults if isinstance(error, BundleError) else ():
        print(f"  - {fault}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return error.exit_code


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
