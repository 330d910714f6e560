"""Bundles that point outside themselves, in a child process that records every file it opens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("paths")
    command = [sys.executable, "-m", "tests.support.hostile_paths", str(work)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    found: dict[str, Any] = json.loads(child.stdout)
    return found | {"secret": str(work / "secret")}


def test_the_recorder_sees_an_open(report: dict[str, Any]) -> None:
    assert report["control"] == [report["secret"]]


def test_every_vector_is_refused_with_a_clear_error(report: dict[str, Any]) -> None:
    assert len(report["rows"]) >= 90
    for name, outcome, _ in report["rows"]:
        assert outcome.startswith("BundleError: "), f"{name}: {outcome}"
        assert outcome.replace("\n", "").isprintable(), f"{name}: {outcome!r}"


def test_no_vector_opens_a_file_outside_its_bundle(report: dict[str, Any]) -> None:
    assert [row for row in report["rows"] if row[2]] == []
