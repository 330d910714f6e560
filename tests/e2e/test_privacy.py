"""Seen from outside, by strace: load, inference and adaptation open no internet socket and write no file elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.tiny import tiny_bundle

ROOT = Path(__file__).parents[2]
CREATES = ("creat", "mkdir", "mkdirat", "mknod", "mknodat", "truncate")
RENAMES = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
OPENS = ("open", "openat", "openat2")
# A question mark: calls that this processor's kernel does not have are left out (aarch64 has no open, mkdir, rename).
TRACED = ",".join(f"?{name}" for name in ("socket", *CREATES, *RENAMES, *OPENS))
CALL = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)")
PATH = re.compile(r'(?:(AT_FDCWD|\d+)<((?:[^<>]|<[^<>]*>)*)>, )?"((?:[^"\\]|\\.)*)"(\.\.\.)?')

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
)

USE = """
import numpy as np
from edge_runtime import Budget, EdgeModel

rng = np.random.default_rng(0)
frames = [rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(24)]
with EdgeModel.load(sys.argv[1], state_dir=sys.argv[2] or None, buffer_frames=8) as model:
    for frame in frames:
        model(frame)
        model.adapt()
    status = model.adapt(frames, budget=Budget(latency_ms=1000.0), wait=True)
    model.swap("2-0-1", reason="test")
    model(frames[0])
    print(status.active, model.gates)
"""


def trace(code: str, tmp_path: Path, *arguments: str, **environment: str) -> list[str]:
    """Run Python code in a fresh home, in a fresh working directory, and return what the kernel was asked for."""
    home, work, log = tmp_path / "home", tmp_path / "work", tmp_path / "trace.txt"
    home.mkdir()
    work.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "NNF_"))}
    script = "import sys\n" + textwrap.dedent(code)
    strace = ["strace", "-f", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={TRACED}"]
    done = subprocess.run(
        [*strace, sys.executable, "-c", script, *arguments],
        env=kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here (no ptrace capability)")
    assert done.returncode == 0, done.stderr[-4000:]
    return log.read_text(errors="replace").splitlines()


def sockets(lines: list[str]) -> list[str]:
    return [line for line in lines if "socket(AF_INET" in line]


def writes(lines: list[str], work: Path) -> list[Path]:
    """Every path that was created, opened for writing, renamed or linked, whether or not it succeeded."""
    found: list[Path] = []
    for line in lines:
        match = CALL.match(line)
        if match is None:
            continue
        name, rest = match.groups()
        flagged = name in OPENS and re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)", rest)
        if flagged or name in CREATES or name in RENAMES:
            for _, folder, path, _ in PATH.findall(rest):
                found.append(Path(os.path.normpath(Path(folder or work) / path.encode().decode("unicode_escape"))))
    # The process that prepares a model tells the kernel about itself there: no file.
    own = Path("/proc/self/oom_score_adj")
    return [path for path in found if path not in (Path("/dev/null"), Path("/dev/tty"), own)]


def outside(paths: list[Path], folder: Path) -> list[Path]:
    return [path for path in paths if path != folder and folder not in path.parents]


def test_the_whole_life_of_a_model_stays_at_home(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "tiny.nnf")
    state = tmp_path / "state"
    lines = trace(USE, tmp_path, str(tmp_path / "tiny.nnf"), str(state))
    written = writes(lines, tmp_path / "work")
    assert sockets(lines) == []
    assert outside(written, state) == []
    assert written, "the state directory was used"
    assert [path for path in tmp_path.joinpath("home").rglob("*") if path.is_file()] == []


def test_without_a_state_directory_nothing_is_written_at_all(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "tiny.nnf")
    (tmp_path / "blocked").write_text("a file where a directory would have to be")
    blocked = tmp_path / "blocked" / "state"
    lines = trace(USE, tmp_path, str(tmp_path / "tiny.nnf"), "", XDG_STATE_HOME=str(blocked))
    assert sockets(lines) == []
    # Trying whether the directory can be made is the only attempt.
    assert outside(writes(lines, tmp_path / "work"), blocked) == []


def test_the_check_sees_what_it_looks_for(tmp_path: Path) -> None:
    """The positive control: the same trace of a program that does everything we promise not to do."""
    code = """
    import os, pathlib, socket
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except OSError:
            pass
    home = pathlib.Path.home()
    (home / "made").mkdir()
    (home / "secret.txt").write_text("pixels")
    os.rename(home / "secret.txt", home / "moved.txt")
    pathlib.Path("relative.txt").write_text("pixels")
    descriptor = os.open(home, os.O_RDONLY)
    os.close(os.open("by_descriptor.txt", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    """
    lines = trace(code, tmp_path)
    home, work = tmp_path / "home", tmp_path / "work"
    assert len(sockets(lines)) == 2
    expected = {home / n for n in ("made", "secret.txt", "moved.txt", "by_descriptor.txt")} | {work / "relative.txt"}
    assert set(outside(writes(lines, work), tmp_path / "state")) >= expected
