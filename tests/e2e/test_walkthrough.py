"""The walk-through is true: its files and commands are run in order, as written, in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.builder

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
PROGRAMS = {"nnf-build": ["-m", "builder"], "nnf-edge": ["-m", "edge_runtime.cli"], "python": []}


def blocks() -> list[tuple[str, str, str]]:
    """All fenced blocks in order: language, the file that the line above names (or nothing), content."""
    found = re.findall(r"(?:^`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    return [(language, file, content) for file, language, content in found]


def run(words: list[str], folder: Path) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "NNF_EDGE_STATE": str(folder / "state"), "HOME": str(folder),
    }  # fmt: skip
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed, by its first two words; the folder is under the key ``folder``."""
    folder = tmp_path_factory.mktemp("walkthrough")
    outputs = {"folder": str(folder)}
    for language, file, content in blocks():
        if file:
            (folder / file).write_text(content, encoding="utf-8")
        elif language == "python":
            outputs["example"] = run(["-c", content], folder)
        for line in content.splitlines() if language == "console" else ():
            program, *words = shlex.split(line.removeprefix("$ "))
            if program != "pip":
                outputs[f"{program} {words[0]}"] = run([*PROGRAMS[program], *words], folder)
    return outputs


def test_every_command_of_the_project_is_shown_and_ends_well(said: dict[str, str]) -> None:
    verbs = {key.partition(" ")[2] for key in said if key.startswith("nnf-build")}
    assert verbs == {"elastify", "train", "export", "check", "pack"}
    assert {"nnf-edge verify", "nnf-edge benchmark"} <= set(said)


def test_the_report_and_the_files_are_where_the_page_says(said: dict[str, str]) -> None:
    work = Path(said["folder"]) / "work" / "parts"
    assert "held-out images right" in said["nnf-build elastify"]
    assert json.loads((work / "report.json").read_text())
    assert {path.name for path in (work / "export").iterdir()} == {"manifest.json", "model.onnx", "weights.bin"}
    assert (work / "oracle.onnx").is_file()
    assert (work / "log.jsonl").read_text().count("paths.epoch") == 2


def test_the_bundle_is_accepted_and_answers(said: dict[str, str]) -> None:
    assert "full" in said["nnf-edge benchmark"]
    label, confidence = said["example"].split()
    assert label in ("bar", "disc", "ring", "washer")
    assert 0 < float(confidence) <= 1


def test_the_python_example_of_the_training_page_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    head = """
from pathlib import Path
import torch
from tests.builder.nets import BasicNet, images, made
network, first_images, work = made(BasicNet), images(16), Path("work")
dataset = [(image, number % 5) for number, image in enumerate(images(64))]
"""
    run(["-c", head + example], tmp_path)
    assert (tmp_path / "work" / "paths.pt").is_file()
