"""The README is true: its example runs, its paths exist, and it names every room."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CAMERA = """
import numpy as np
camera = list(np.random.default_rng(0).integers(0, 256, (20, 30, 40, 3), np.uint8))
"""


def test_the_python_example_is_short_and_runs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    assert len(example[1].strip().splitlines()) <= 10
    tiny_bundle(tmp_path / "parts.nnf")
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-c", head + CAMERA + example[1]]
    environment = {"HOME": str(tmp_path), "NNF_EDGE_STATE": str(tmp_path / "state"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 21


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:edge_runtime|builder|tests|tools|docs)/[\w/.]*)`", README)))
)
def test_every_path_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("package", ["edge_runtime", "builder"])
def test_every_room_is_in_the_table(package: str) -> None:
    rooms = {
        f"{package}/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    small = {f"{package}/__init__.py", "builder/errors.py", "builder/files.py"}
    assert sorted(room for room in rooms - small if f"`{room}`" not in README) == []


def test_every_make_verb_and_command_that_is_named_exists() -> None:
    from edge_runtime.cli import verbs

    names = {module.__name__.rpartition(".")[2] for module in verbs()}
    assert set(re.findall(r"`nnf-edge (\w+)", README)) == names
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for verb in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert f"\n{verb}: " in makefile
