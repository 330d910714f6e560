"""A pattern in a user's images is in no file that adapting to them writes, also where the process dies."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle import Bundle
from edge_runtime.inputs import normalise

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "edge_runtime" / "assets" / "demo.nnf"
CANARY = np.random.default_rng(7).integers(1, 255, (4, 3), np.uint8)
"""Four pixels that no other file has: 12 bytes, or 16 in each plane of the network's input."""

LOOP = """
import sys
import numpy as np
from edge_runtime import Budget, EdgeModel

images = np.load(sys.argv[2])["images"]
with EdgeModel.load(sys.argv[1], state_dir=sys.argv[3], buffer_frames=32, budget=Budget(fraction=0.8)) as model:
    for image in images:
        model(image)
        model.adapt()
    model.adapt(wait=True)
"""


def planted(path: Path) -> Path:
    """Random images of the model's size, each with the pattern in every eighth row."""
    shape = Bundle.read(DEMO).manifest.preprocessing
    images = np.random.default_rng(0).integers(0, 256, (48, shape.height, shape.width, 3), np.uint8)
    images[:, ::8, 4 : 4 + len(CANARY)] = CANARY
    np.savez_compressed(path, images=images)
    return path


def forms() -> dict[str, bytes]:
    """The pattern as it could lie in a file: pixels, planes of the network's input, text."""
    shape = Bundle.read(DEMO).manifest.preprocessing
    frame = np.zeros((shape.height, shape.width, 3), np.uint8)
    frame[0, : len(CANARY)] = CANARY
    tensor = np.ascontiguousarray(normalise(frame, shape)[0, 0, : len(CANARY)])
    raw, numbers = CANARY.tobytes(), CANARY.ravel().tolist()
    return {
        "pixels": raw,
        "tensor": tensor.tobytes(),
        "hex": raw.hex().encode(),
        "numbers": str(numbers)[1:-1].encode(),
    }


def found(folder: Path) -> list[str]:
    """Files below a folder that hold the pattern in one of its forms."""
    wanted = forms()
    return [
        f"{path.relative_to(folder)}: {name}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for name, content in wanted.items()
        if content in path.read_bytes()
    ]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Home, temporary folder, state and working folder of the process; the images lie elsewhere."""
    for name in ("home", "tmp", "state", "work"):
        (tmp_path / "place" / name).mkdir(parents=True)
    planted(tmp_path / "images.npz")
    return tmp_path / "place"


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    own = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NNF_", "ORT_"))}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=place / "work",
        env=kept | own,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard_core(),) * 2),
    )


def hard_core() -> int:
    return resource.getrlimit(resource.RLIMIT_CORE)[1]


def adapt_words(place: Path) -> list[str]:
    images, report = place.parent / "images.npz", place / "work" / "report.json"
    words = ["-m", "edge_runtime.cli", "adapt", str(DEMO), "--data", str(images), "--budget", "80%"]
    return [*words, "--state-dir", str(place / "state"), "--json", str(report), "--explain"]


def test_the_command_leaves_no_pixel_behind(place: Path) -> None:
    process = start(place, *adapt_words(place))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert (place / "work" / "report.json").stat().st_size > 1000
    assert any(path.is_file() for path in (place / "state").rglob("*"))
    (place / "work" / "printed.txt").write_text(out + err)
    assert found(place) == []


def test_the_loop_leaves_no_pixel_behind(place: Path) -> None:
    process = start(place, "-c", LOOP, str(DEMO), str(place.parent / "images.npz"), str(place / "state"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert any(path.is_file() for path in (place / "state").rglob("*"))
    assert found(place) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_process_that_dies_in_its_search_leaves_no_pixel_and_no_core(place: Path, number: signal.Signals) -> None:
    process = start(place, *adapt_words(place))
    deadline = time.monotonic() + 60
    while not any((place / "state").rglob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert found(place) == []


def test_the_check_finds_what_it_looks_for(place: Path) -> None:
    images = np.load(place.parent / "images.npz")["images"]
    shape = Bundle.read(DEMO).manifest.preprocessing
    np.save(place / "state" / "pixels.npy", images)
    (place / "state" / "tensor.bin").write_bytes(normalise(images[0], shape)[:, :, 4:].tobytes())
    (place / "work" / "log.txt").write_text(images[0, 0, 4:9].tobytes().hex())
    (place / "work" / "report.json").write_text(json.dumps({"row": images[0, 0].ravel().tolist()}))
    planted_in = ["state/pixels.npy: pixels", "state/tensor.bin: tensor", "work/log.txt: hex"]
    assert found(place) == [*planted_in, "work/report.json: numbers"]
