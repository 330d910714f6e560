"""Damaged bundles, in a child process: a valid model or one clear BundleError; never a crash, a hang or another error.

Half of the random mutants get fresh hashes and a fresh digest, so that they reach the manifest's reader, the graph
check, onnxruntime and one inference. The rest are raw.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edge_runtime.backends import check_graph
from edge_runtime.bundle import Bundle, write_bundle
from edge_runtime.bundle.schema import read_manifest, seal_manifest
from edge_runtime.errors import BundleError
from tests.support.golden import MODEL, WEIGHTS, golden_manifest
from tests.support.tiny import tiny_bundle

ROOT = Path(__file__).parents[2]
SECONDS = 300


def run_children(kinds: list[tuple[str, int, int]], work: Path) -> Counter[str]:
    """Run the fuzzer's children side by side and add up what they report."""
    children = []
    for kind, first, count in kinds:
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.support.fuzz_bundle",
            kind,
            str(first),
            str(count),
            str(work),
        ]
        children.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outcomes: Counter[str] = Counter()
    try:
        for (kind, first, _), child in zip(kinds, children, strict=True):
            out, err = child.communicate(timeout=SECONDS)
            last = (work / f"case_{kind}_{first}").read_text() if child.returncode else ""
            assert child.returncode == 0, f"{kind} case {last} ended with {child.returncode}:\n{err[-3000:]}"
            outcomes.update(json.loads(out.splitlines()[-1]))
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return outcomes


def test_random_mutations_give_a_valid_model_or_one_clear_error(tmp_path: Path) -> None:
    outcomes = run_children([("resealed", 0, 500), ("resealed", 500, 500), ("raw", 0, 1000)], tmp_path)
    assert sum(outcomes.values()) == 2000
    # Not vacuous: many mutants got through every stage, and the graph check, not onnxruntime, refused the rest.
    assert outcomes["valid"] > 200
    assert outcomes["refused by the check"] > 200
    assert outcomes["refused by onnxruntime"] <= 5


def test_random_mutations_of_layers_of_modules_do_too(tmp_path: Path) -> None:
    pytest.importorskip("builder.onnx_writer")
    outcomes = run_children([("modules", 0, 200), ("modules", 200, 200)], tmp_path)
    assert sum(outcomes.values()) == 400
    assert outcomes["valid"] > 40
    assert outcomes["refused by the check"] > 40
    assert outcomes["refused by onnxruntime"] <= 2


def test_random_mutations_of_every_operator_do_too(tmp_path: Path) -> None:
    outcomes = run_children([("wide", 0, 250), ("wide", 250, 250)], tmp_path)
    assert sum(outcomes.values()) == 500
    assert outcomes["valid"] > 50
    assert outcomes["refused by the check"] > 50
    assert outcomes["refused by onnxruntime"] <= 2


def refused_at_every_size(bundle: Path, file: Path, *, step: int = 1) -> None:
    """Shorten `file` a little at a time; `bundle` must be refused each time."""
    with file.open("r+b") as stream:
        for size in range(file.stat().st_size - 1, -1, -step):
            stream.truncate(size)
            with pytest.raises(BundleError):
                Bundle.read(bundle)


def test_every_truncation_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.nnf"
    write_bundle(path, golden_manifest(), MODEL, WEIGHTS)
    refused_at_every_size(path, path)
    tiny_bundle(path)
    refused_at_every_size(path, path, step=53)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "weights.bin"])
def test_every_truncation_of_a_file_in_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path / "b", golden_manifest(), MODEL, WEIGHTS)
    refused_at_every_size(tmp_path / "b", tmp_path / "b" / name)


def cuts_of(bundle: Bundle, part: str) -> Iterator[Callable[[], object]]:
    """Ways to read `bundle` with a shorter `part`, past every hash."""
    if part == "manifest.json":
        manifest = seal_manifest(bundle.manifest, ())
        yield from (partial(read_manifest, manifest[:size]) for size in range(len(manifest)))
    elif part == "model.onnx":
        model = bundle.model_bytes
        yield from (partial(check_graph, replace(bundle, model_bytes=model[:size])) for size in range(len(model)))
    else:
        # Every length is judged alike, by the end of the last tensor, and a whole check takes milliseconds.
        weights = bundle.weights
        yield from (partial(check_graph, replace(bundle, weights=weights[:n])) for n in range(0, len(weights), 997))


@pytest.mark.parametrize("part", ["manifest.json", "model.onnx", "weights.bin"])
def test_every_truncation_of_a_part_is_refused_although_its_hash_fits(tmp_path: Path, part: str) -> None:
    for read in cuts_of(tiny_bundle(tmp_path / "b.nnf"), part):
        with pytest.raises(BundleError):
            read()
