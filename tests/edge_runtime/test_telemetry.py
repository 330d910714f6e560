"""onnxruntime's telemetry stays off, whoever imports it first; each order in a process and a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPEN = """
from tests.support.tiny import SPACE, tiny_bundle
from edge_runtime.backends import open_session
from edge_runtime.backends.base import random_inputs
session = open_session(tiny_bundle(sys.argv[1]))
session.run(random_inputs(session.inputs, seed=0), SPACE.default)
"""


def run(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "PYTHONWARN"))}
    home.mkdir()
    return subprocess.run(
        [sys.executable, "-c", "import sys\n" + textwrap.dedent(code), str(home.parent / "tiny.nnf")],
        env=kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def sends_by_default(home: Path) -> bool:
    """The control: does this onnxruntime write its device id where nobody stops it?"""
    run("import onnxruntime\n" + OPEN.replace("import open_session", "import open_session  # too late"), home)
    return bool(files(home))


def test_our_import_first_writes_nothing_and_says_nothing(tmp_path: Path) -> None:
    done = run("import edge_runtime\n" + OPEN, tmp_path / "home")
    assert files(tmp_path / "home") == []
    assert done.stderr == ""


def test_onnxruntime_imported_after_us_by_somebody_else_writes_nothing(tmp_path: Path) -> None:
    done = run("import edge_runtime\nimport onnxruntime\n" + OPEN, tmp_path / "home")
    assert files(tmp_path / "home") == []
    assert "RuntimeWarning" not in done.stderr


def test_onnxruntime_imported_first_is_warned_about(tmp_path: Path) -> None:
    done = run("import onnxruntime\nimport edge_runtime\n", tmp_path / "home")
    assert "RuntimeWarning: onnxruntime was imported before edge_runtime" in done.stderr
    assert "ORT_DISABLE_TELEMETRY=1" in done.stderr


def test_onnxruntime_imported_first_with_the_switch_set_is_fine(tmp_path: Path) -> None:
    code = "import onnxruntime\nimport edge_runtime\n" + OPEN
    done = run(code, tmp_path / "home", ORT_DISABLE_TELEMETRY="1")
    assert files(tmp_path / "home") == []
    assert done.stderr == ""


def test_the_check_would_have_seen_the_files(tmp_path: Path) -> None:
    if not sends_by_default(tmp_path / "control"):
        pytest.skip("this onnxruntime writes no device id by default (before 1.29, or built without telemetry)")
    assert any("Microsoft" in name for name in files(tmp_path / "control"))


def test_children_inherit_the_switch() -> None:
    code = "import edge_runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "1"
