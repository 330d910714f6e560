"""What survives a restart: small JSON files, written atomically, and the lock that keeps two benchmarks apart.

Every write goes beside, is flushed to the disk, and is renamed: a power cut at any byte leaves the old content or the
new one. What cannot be read as our own is treated as absent and written anew. Where no directory was named and none can
be written, the runtime works without one and `StateDir.note` says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.errors import ResourceError, StateError, UsageError

__all__ = ["StateDir", "machine_lock", "write_file"]

FORMAT = "nnf-state"
VERSION = 1
MAX_BYTES = 16 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
BUILDING = "building-"
LOCK_SECONDS, LOCK_POLL_SECONDS = 120.0, 0.05
"""How long a process waits for another one that makes the same folder, and how often it looks."""
LEFT_SECONDS = 60.0
"""Age of a half-written file from which its writer is taken for dead."""
KEPT_FOLDERS = 4
"""Folders of one kind: of the models that were used last, or of one model under several versions."""
LOCK_FILE = "nnf-edge-benchmark.lock"
ROOT_STATE = Path("/var/lib/nnf-edge")


@dataclass(frozen=True, slots=True)
class StateDir:
    """The state directory, or the fact that there is none."""

    path: Path | None
    """Where files go; None: nothing is kept."""

    note: str
    """For people: where state is kept, or why it is not."""

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self.path is not None

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> StateDir:
        """The directory at `path`, made where it is missing.

        Args:
            path: None means ``$NNF_EDGE_STATE``, else ``$XDG_STATE_HOME/nnf-edge``, else ``~/.local/state/nnf-edge``
                (``/var/lib/nnf-edge`` for root).

        Raises:
            StateError: A directory that was named, here or in ``$NNF_EDGE_STATE``, cannot be written.
        """
        named = path if path is not None else os.environ.get("NNF_EDGE_STATE") or None
        folder = Path(named).expanduser() if named is not None else _default_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _probe(folder)
        except (OSError, RuntimeError) as error:
            reason = f"the state directory {str(folder)!r} cannot be written: {_reason(error)}"
            if named is not None:
                raise StateError(reason, hint="name a directory that can be written, or none") from error
            return cls(None, f"{reason}; running without a cache")
        return cls(folder.absolute(), f"state is kept in {str(folder.absolute())!r}")

    def read_json(self, name: str) -> Any | None:
        """What `write_json` wrote last; None where there is nothing, or nothing that we can read as our own."""
        if self.path is None:
            return None
        try:
            with open(self.path / _checked(name), "rb", opener=_open_regular) as stream:
                data = stream.read(MAX_BYTES + 1)
            body = json.loads(data) if len(data) <= MAX_BYTES else None
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(body, dict) or (body.get("format"), body.get("version")) != (FORMAT, VERSION):
            return None
        return body.get("value")

    def write_json(self, name: str, value: Any) -> None:
        """Replace `name` by `value` (JSON types, finite numbers), atomically. Does nothing where state is disabled.

        Raises:
            StateError: The disk refused; the old content is still there.
            UsageError: `name` is not a plain lower-case file name, or `value` is not JSON.
        """
        target = _checked(name)
        try:
            data = json.dumps({"format": FORMAT, "version": VERSION, "value": value}, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name!r} cannot be kept: {error}") from error
        if self.path is None:
            return
        try:
            _remove_left(self.path, target)
            _replace(self.path, target, data)
        except OSError as error:
            raise StateError(
                f"{str(self.path / target)!r} cannot be written: {_reason(error)}", hint="free some space"
            ) from error

    def remove(self, name: str) -> None:
        """Remove what `write_json` wrote, and what writers left that were killed; a disk that refuses keeps it."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            (self.path / _checked(name)).unlink(missing_ok=True)
            _remove_left(self.path, name)

    def folder(
        self, name: str, make: Callable[[Path], None], *, usable: Callable[[Path], bool] = Path.is_dir
    ) -> Path | None:
        """The folder `name`, made by `make` where it is missing or not `usable`; None where state is disabled.

        `make` gets an empty folder beside, which takes its name only when `make` is done: there is a whole folder or
        none. Of several processes one makes it and the others wait; what a killed one left is removed. Of the folders
        with the same beginning (up to the first ``-``) the last few stay.

        Raises:
            StateError: The disk refused, or another process takes too long.
        """
        if self.path is None:
            return None
        target = self.path / _checked(name)
        try:
            if not usable(target):
                with _waiting_lock(self.path / f"{BUILDING}{name}.lock"):
                    if not usable(target):  # whoever had the lock may have made it
                        _build(target, make)
            os.utime(target)
        except OSError as error:
            raise StateError(f"{str(target)!r} cannot be made: {_reason(error)}", hint="free some space") from error
        return target

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path | None]:
        """A temporary directory inside the state directory, removed at the end; None where none can be made."""
        folder = None
        if self.path is not None:
            with contextlib.suppress(OSError):  # A disk that refuses by now costs exactness, never the answer.
                folder = tempfile.TemporaryDirectory(prefix="scratch-", dir=self.path, ignore_cleanup_errors=True)
        if folder is None:
            yield None
            return
        with folder as name:
            yield Path(name)


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that a person named: the old content or the new one, whatever happens meanwhile.

    Raises:
        StateError: The disk refused; the old content is still there.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # /dev/stdout, a pipe: nothing to rename over
            target.write_bytes(data)
        else:
            _replace(target.absolute().parent, target.name, data, mode=0o666)
    except OSError as error:
        raise StateError(
            f"{str(target)!r} cannot be written: {_reason(error)}",
            hint="name a file in a folder that exists and is writable",
        ) from error


@contextlib.contextmanager
def machine_lock(what: str, *, folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Hold the one lock of this machine while something is timed or trained.

    The kernel gives it back when the process ends, however it ends. The file stays; it holds the last holder's name.

    Args:
        what: What the holder does, for the message that the next one gets. Example: ``nnf-edge benchmark``.
        folder: Where the lock file lies; None means ``/tmp``, so that every user and program finds the same one.

    Raises:
        ResourceError: Another process, or another call in this one, holds it; the message names it.
        StateError: The lock file cannot be opened.
    """
    path = Path(folder if folder is not None else "/tmp") / LOCK_FILE
    try:
        descriptor = _open_lock(path)
    except OSError as error:
        raise StateError(f"the lock {str(path)!r} cannot be opened: {_reason(error)}") from error
    try:
        _lock(descriptor, what)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise StateError(f"the machine lock failed: {_reason(error)}") from error
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        raise ResourceError(
            f"{what} cannot start: {holder or 'another process'} is running",
            hint="wait until it ends; two at once would falsify each other's times",
        ) from error
    with contextlib.suppress(OSError):  # Another user's file cannot be written; the lock holds all the same.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{what[:100]} (process {os.getpid()})\n".encode(), 0)


@contextlib.contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "another process has been making it for too long") from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
    finally:
        os.close(descriptor)


def _build(target: Path, make: Callable[[Path], None]) -> None:
    for left in target.parent.glob(f"{BUILDING}{target.name}.*.tmp"):  # of a process that is gone: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    beside = target.parent / f"{BUILDING}{target.name}.{secrets.token_hex(4)}.tmp"
    beside.mkdir(mode=0o700)
    try:
        make(beside)
        _remove(target)
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    kin = [path for path in target.parent.glob(f"{target.name.partition('-')[0]}-*") if path.is_dir()]
    for old in sorted(kin, key=lambda path: path.stat().st_mtime)[:-KEPT_FOLDERS]:
        shutil.rmtree(old, ignore_errors=True)


def _remove(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _open_lock(path: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    except PermissionError:  # In /tmp only the owner may open with O_CREAT or write; a lock needs to read only.
        return os.open(path, os.O_RDONLY | flags)


def _default_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "nnf-edge"
    if os.geteuid() == 0:
        return ROOT_STATE
    return Path("~/.local/state").expanduser() / "nnf-edge"


def _probe(folder: Path) -> None:
    """Raise `OSError` unless a file can be made in `folder`; permissions alone do not tell (read-only mounts)."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"nnf")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"state file name {name!r} is not valid", hint="use lower-case letters, digits and ._-")
    return name


def _open_regular(path: str, flags: int) -> int:
    """Open without following a link or waiting for a pipe."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _replace(folder: Path, name: str, data: bytes, mode: int = 0o600) -> None:
    beside = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    # The rename itself is on the disk only when its directory is.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_left(folder: Path, name: str) -> None:
    """Remove what killed writers left beside a file; younger files may be of a process that is writing now."""
    for left in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process removes it too, or it is another user's
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
