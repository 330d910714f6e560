"""Does what a device does with the bundled model and keeps every output, so that two machines can be compared.

    python tools/arm64_check.py --write FILE.npz           # on the machine to look at
    python tools/arm64_check.py --compare FILE.npz ...     # here: the same steps, then the comparison

`tools/arm64.sh` runs it on both sides of an emulation; it needs the installed package and nothing else. The last line
of stdout is one JSON object. The exit code is 1 where a step failed on either side, or an output differs by more than
1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from arm64_steps import INCOMPARABLE, STEPS, TOLERANCE, Look, difference

from edge_runtime.backends import Array
from edge_runtime.cli.documents import versions

Report = dict[str, Any]
Arrays = dict[str, Array]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", metavar="FILE.npz", type=Path, help="run the steps; keep report and outputs here")
    task.add_argument("--compare", metavar="FILE.npz", type=Path, nargs="+", help="what other machines kept")
    parser.add_argument("--emulator", help="with --compare: what the others ran in, for the report")
    parser.add_argument("--json", metavar="FILE", type=Path, help="with --compare: write the result to this file too")
    return parser.parse_args()


def main() -> int:
    """Run the steps, then keep or compare."""
    arguments = _arguments()
    if arguments.write:
        report, arrays = _look(())
        np.savez(arguments.write, report=np.array(json.dumps(report)), **arrays)
        result = report
    else:
        result = _compare(arguments.compare) | {"emulator": arguments.emulator}
    print(json.dumps(result))
    if arguments.json and arguments.compare:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["ok"] else 1


def _look(chosen_elsewhere: tuple[str, ...]) -> tuple[Report, Arrays]:
    """All steps on this machine. One that fails is reported, and the next ones are tried."""
    steps: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        look = Look(Path(folder), opened, chosen_elsewhere)
        for name, step in STEPS.items():
            print(f"{name} ..", file=sys.stderr)
            try:
                steps[name] = {"ok": True, **step(look)}
            except Exception as error:
                traceback.print_exc()
                steps[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        digest = look.bundle.digest
    report = {
        "machine": platform.machine(),
        "core": os.environ.get("QEMU_CPU"),
        "bundle": digest,
        "versions": versions(),
        "ok": all(step["ok"] for step in steps.values()),
        "steps": steps,
    }
    return report, look.arrays


def _compare(files: list[Path]) -> Report:
    """The same steps here, and how far every output of the others is from this machine's."""
    others = [_read(path) for path in files]
    chosen = tuple(report["steps"]["adapt"].get("chosen", "full") for report, _ in others)
    own, arrays = _look(chosen)
    found = [_judged(report, kept, own, arrays) for report, kept in others]
    worst = max(report["worst"] for report in found)
    return {
        "schema": "nnf-edge/arm64/1",
        "ok": own["ok"] and all(report["ok"] for report in found),
        "worst": worst,
        "tolerance": TOLERANCE,
        "others": found,
        "here": own,
    }


def _read(path: Path) -> tuple[Report, Arrays]:
    with np.load(path, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
    return json.loads(str(arrays.pop("report"))), arrays


def _judged(report: Report, kept: Arrays, own: Report, arrays: Arrays) -> Report:
    """Another machine's report with the largest difference of each step; what one side lacks counts as a fault."""
    differences: dict[str, float] = {}
    for name, array in kept.items():
        step = name.split("/")[0]
        found = difference(array, arrays[name]) if name in arrays else INCOMPARABLE
        differences[step] = max(found, differences.get(step, 0.0))
    worst = max(differences.values(), default=INCOMPARABLE)
    same = report["bundle"] == own["bundle"] and _libraries(report) == _libraries(own)
    # Both ran the same subnets, but for what `adapt` chose here.
    complete = report["ok"] and {name for name in arrays if not name.startswith("adapt/")} <= set(kept)
    return report | {
        "ok": complete and same and worst <= TOLERANCE,
        "worst": worst,
        "outputs": len(kept),
        "difference": differences,
    }


def _libraries(report: Report) -> dict[str, str]:
    """Versions of all but Python, whose last digits may differ between the two sides."""
    return {name: version for name, version in report["versions"].items() if name != "python"}


if __name__ == "__main__":
    sys.exit(main())
