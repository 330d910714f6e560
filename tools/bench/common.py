"""What every bench of the runtime shares: the lock, the one JSON object at the end, and where a result comes from."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from edge_runtime import sense
from edge_runtime.backends import runtime_versions
from edge_runtime.errors import EdgeError, StateError
from edge_runtime.measure import machine_lock

Bench = Callable[[argparse.Namespace], dict[str, Any]]


def run(name: str, bench: Bench, arguments: argparse.Namespace, *, alone: bool = True) -> int:
    """Run a bench alone on this machine; exit code 0, or the error's own with its message on stderr.

    The result is the last line of stdout, and goes to the file `arguments.json` where one is named. A bench that takes
    hours and times little of them is not `alone`: it takes the machine's lock itself, for what it times.
    """
    try:
        with machine_lock(f"tools/bench/{name}.py") if alone else nullcontext():
            result = _origin(name) | bench(arguments)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result))
    try:
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"error: the result above cannot be written to {arguments.json}: {error.strerror}", file=sys.stderr)
        return StateError.exit_code
    return 0


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` on."""

    def number(text: str) -> int:
        found = int(text)
        if found < least:
            raise argparse.ArgumentTypeError(f"{found} is below {least}")
        return found

    return number


def rounded(value: float, digits: int = 4) -> float | None:
    """For JSON, which knows no nan."""
    return None if math.isnan(value) else round(value, digits)


def _origin(name: str) -> dict[str, Any]:
    return {
        "schema": f"nnf-edge/bench-{name}/1",
        "command": shlex.join(["python", *map(_without_folder, sys.argv)]),
        "device": sense.device_context(runtime_versions()),
    }


def _without_folder(word: str) -> str:
    """An argument of the command; of a path outside the project only the file's name."""
    return Path(word).name if Path(word).is_absolute() or ".." in Path(word).parts else word
