"""State that survives: atomic files, unwritable directories, and a lock that a killed holder cannot keep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ResourceError, StateError, UsageError
from edge_runtime.state import StateDir, machine_lock

ROOT = Path(__file__).parents[2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.open(tmp_path / "state")


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A path below a file: no one, root included, can make a directory there."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "state"


@settings(max_examples=40, deadline=None)
@given(JSON)
def test_what_was_written_is_read(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = StateDir.open(folder)
        state.write_json("thing.json", value)
        assert state.read_json("thing.json") == value
        assert [path.name for path in Path(folder).iterdir()] == ["thing.json"]


def test_nothing_written_is_nothing_read(state: StateDir) -> None:
    assert state.enabled
    assert state.read_json("thing.json") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b'"text"',
        b"[" * 100_000,
        b'{"value": 1}',
        b'{"format": "other", "version": 1, "value": 1}',
        b'{"format": "nnf-state", "version": 2, "value": 1}',
    ],
)
def test_corrupt_or_foreign_content_counts_as_absent_and_is_written_anew(state: StateDir, content: bytes) -> None:
    assert state.path is not None
    (state.path / "thing.json").write_bytes(content)
    assert state.read_json("thing.json") is None
    state.write_json("thing.json", 7)
    assert state.read_json("thing.json") == 7


def test_every_truncation_of_a_file_counts_as_absent(state: StateDir) -> None:
    state.write_json("thing.json", {"a": [1, 2, 3]})
    assert state.path is not None
    whole = (state.path / "thing.json").read_bytes()
    for length in range(len(whole)):
        (state.path / "thing.json").write_bytes(whole[:length])
        assert state.read_json("thing.json") is None


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_what_is_no_plain_file_counts_as_absent(state: StateDir, tmp_path: Path, kind: str) -> None:
    assert state.path is not None
    target = state.path / "thing.json"
    if kind == "directory":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        (tmp_path / "outside").write_text('{"format": "nnf-state", "version": 1, "value": 1}')
        target.symlink_to(tmp_path / "outside")
    assert state.read_json("thing.json") is None


def test_a_failed_write_leaves_the_old_content_and_no_litter(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write_json("thing.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        state.write_json("thing.json", "new")
    assert state.read_json("thing.json") == "old"
    assert state.path is not None
    assert [path.name for path in state.path.iterdir()] == ["thing.json"]


@pytest.mark.parametrize("name", ["", "../thing.json", "/etc/passwd", "a/b", "Thing", "x" * 200, ".hidden"])
def test_names_never_leave_the_directory(state: StateDir, name: str) -> None:
    with pytest.raises(UsageError):
        state.write_json(name, 1)
    with pytest.raises(UsageError):
        state.read_json(name)


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_what_is_not_json_is_refused(state: StateDir, value: object) -> None:
    with pytest.raises(UsageError):
        state.write_json("thing.json", value)


def test_a_named_directory_that_cannot_be_written_is_an_error(unwritable: Path) -> None:
    with pytest.raises(StateError, match="cannot be written") as caught:
        StateDir.open(unwritable)
    assert caught.value.exit_code == 74


def test_a_directory_named_by_the_environment_counts_as_named(
    unwritable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNF_EDGE_STATE", str(unwritable))
    with pytest.raises(StateError):
        StateDir.open()
    monkeypatch.setenv("NNF_EDGE_STATE", str(tmp_path / "elsewhere"))
    assert StateDir.open().path == tmp_path / "elsewhere"


def test_an_unnamed_one_that_cannot_be_written_is_done_without(
    unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NNF_EDGE_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(unwritable))
    state = StateDir.open()
    assert not state.enabled
    assert "running without a cache" in state.note
    state.write_json("thing.json", 1)
    assert state.read_json("thing.json") is None
    with state.scratch() as scratch:
        assert scratch is None


def test_the_default_follows_the_desktop_standard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNF_EDGE_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert StateDir.open().path == tmp_path / "nnf-edge"


def test_scratch_lies_inside_and_is_removed(state: StateDir) -> None:
    with state.scratch() as scratch:
        assert scratch is not None
        assert scratch.parent == state.path
        (scratch / "profile.json").write_text("{}")
    assert not scratch.exists()


def test_a_disk_that_refuses_by_now_gives_no_scratch(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    (tmp_path / "state").rmdir()
    with state.scratch() as scratch:
        assert scratch is None


HOLD = """
import sys, time
from edge_runtime.state import machine_lock
with machine_lock("the other benchmark", folder=sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=f"mine cannot start: the other benchmark .process {holder.pid}. is running"),
        machine_lock("mine", folder=tmp_path),
    ):
        pytest.fail("the lock was given twice")


def test_a_killed_holder_leaves_no_stale_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with machine_lock("mine", folder=tmp_path):
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), machine_lock("first", folder=tmp_path):
        raise RuntimeError("in the middle")
    with (
        machine_lock("second", folder=tmp_path),
        pytest.raises(ResourceError, match="second"),
        machine_lock("third", folder=tmp_path),
    ):
        pytest.fail("the lock was given twice")


def test_a_lock_file_that_cannot_be_opened_is_a_state_error(unwritable: Path) -> None:
    with pytest.raises(StateError, match="lock"), machine_lock("mine", folder=unwritable):
        pytest.fail("there is no such folder")


def test_what_is_removed_is_gone_and_may_be_missing(state: StateDir) -> None:
    state.write_json("thing.json", 1)
    state.write_json("other.json", 2)
    for _ in range(2):
        state.remove("thing.json")
        assert state.read_json("thing.json") is None
    assert state.read_json("other.json") == 2
    StateDir(None, "none").remove("thing.json")


def test_what_killed_writers_left_is_removed_and_what_is_written_now_is_not(state: StateDir) -> None:
    assert state.path is not None
    old, new, other = (state.path / name for name in (".thing.json.aa.tmp", ".thing.json.bb.tmp", ".other.json.aa.tmp"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    state.write_json("thing.json", 1)
    assert not old.exists()
    assert new.exists()
    assert other.exists()
