"""Child process of test_bundle_fuzz: reads damaged bundles and reports what came of each.

    python -m tests.support.fuzz_bundle raw|resealed|modules|wide FIRST COUNT WORKDIR

`modules` and `wide` are as `resealed`, of a bundle with layers of modules and of one with all operators. Prints one
JSON object. A case that takes longer than SECONDS_PER_CASE ends the process with a traceback; before every case its
number is written to WORKDIR/case, so that a crash names its seed.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from edge_runtime.backends import open_session
from edge_runtime.backends.base import random_inputs
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError
from edge_runtime.seeds import random_gates
from tests.support.modular import modular_parts
from tests.support.mutate import mutate_bytes, mutate_resealed
from tests.support.tiny import tiny_parts
from tests.support.wide import wide_parts

SECONDS_PER_CASE = 20


def main(kind: str, first: int, count: int, work: Path) -> None:
    path = work / f"{kind}_{first}.nnf"
    parts = modular_parts(path) if kind == "modules" else wide_parts() if kind == "wide" else tiny_parts()
    if kind != "modules":
        parts.write(path)
    whole = path.read_bytes()
    body = json.loads(manifest_bytes(path))
    outcomes: Counter[str] = Counter()
    for case in range(first, first + count):
        (work / f"case_{kind}_{first}").write_text(str(case))
        faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
        rng = np.random.default_rng([case, len(kind)])
        path.write_bytes(mutate_bytes(whole, rng) if kind == "raw" else mutate_resealed(parts, body, rng))
        outcomes[try_bundle(path, rng)] += 1
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcomes))


def manifest_bytes(path: Path) -> bytes:
    """The manifest's bytes, taken out of the zip by hand: it is the first member."""
    data = path.read_bytes()
    return data[data.index(b"{") : data.index(b"PK\3\4", 4)]


def try_bundle(path: Path, rng: np.random.Generator) -> str:
    """`valid` when it loads and runs, or the part that refused it; any other exception ends the process."""
    try:
        bundle = Bundle.read(path)
    except BundleError as error:
        check_clear(error)
        return "refused by the format"
    try:
        session = open_session(bundle)
    except BundleError as error:
        check_clear(error)
        return "refused by onnxruntime" if "onnxruntime" in error.message else "refused by the check"
    space = bundle.manifest.space
    for gates in (space.default, random_gates(space, random.Random(int(rng.integers(2**32))))):
        outputs = session.run(random_inputs(session.inputs, seed=0, batch=2), gates)
        for spec in session.outputs:
            found = outputs[spec.name]
            if found.dtype != spec.dtype or found.shape != (2, *spec.shape[1:]):
                raise AssertionError(f"{spec} came as {found.dtype} {found.shape}")
    session.close()
    return "valid"


def check_clear(error: BundleError) -> None:
    """One error that a terminal can show and a person can read."""
    text = str(error)
    if not error.message or len(text) > 10_000 or not text.replace("\n", "").isprintable():
        raise AssertionError(f"not a clear message: {text[:500]!r}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
