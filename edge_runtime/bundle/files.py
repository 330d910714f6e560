"""The three files of a bundle as ranges of open files, from a directory or a stored zip. Trusts no name, size or link.

Nothing is opened but the path that the user named and, in a directory, regular files with the three known names.
Nothing is extracted, and every size is known and bounded before the first byte of content is read.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from edge_runtime.bundle.stored_zip import MAX_MEMBERS, OVERHEAD_BYTES, list_members
from edge_runtime.errors import BundleError

__all__ = ["FILE_NAMES", "MANIFEST", "MAX_MANIFEST_BYTES", "MAX_TOTAL_BYTES", "MODEL", "WEIGHTS", "Files", "open_files"]

MANIFEST, MODEL, WEIGHTS = FILE_NAMES = ("manifest.json", "model.onnx", "weights.bin")
MAX_MANIFEST_BYTES = 2**20
MAX_TOTAL_BYTES = 512 * 2**20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class _Range:
    fd: int
    offset: int
    size_bytes: int
    crc32: int | None


@dataclass(slots=True)
class Files:
    """What a directory or a zip holds under the known names, and what is wrong with the rest."""

    faults: list[str] = field(default_factory=list)
    """One line per missing, unlisted or unusable file."""

    _ranges: dict[str, _Range] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._ranges

    def size_bytes(self, name: str) -> int:
        """Size of one file, without reading it."""
        return self._ranges[name].size_bytes

    def read(self, name: str) -> bytes:
        """The content of one file. Raises `BundleError`."""
        where, chunks, done = self._ranges[name], [], 0
        while done < where.size_bytes:
            chunks.append(os.pread(where.fd, where.size_bytes - done, where.offset + done))
            done += len(chunks[-1])
            if not chunks[-1]:
                raise BundleError(f"{name} ends after {done} of {where.size_bytes} bytes")
        content = b"".join(chunks)
        if where.crc32 is not None and zlib.crc32(content) != where.crc32:
            raise BundleError(f"{name} does not have the checksum that the zip gives")
        return content

    def add(self, name: str, where: _Range) -> None:
        """Note where one of the known files lies."""
        if name in self._ranges:
            self.faults.append(f"{name} is there twice")
        self._ranges[name] = where

    def check_sizes(self) -> None:
        """Raise `BundleError` by the sizes alone, before anything is read."""
        total = sum(where.size_bytes for where in self._ranges.values())
        if total > MAX_TOTAL_BYTES:
            raise BundleError(f"the bundle has {total} bytes, more than {MAX_TOTAL_BYTES}")
        if MANIFEST in self and self.size_bytes(MANIFEST) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} has {self.size_bytes(MANIFEST)} bytes, more than {MAX_MANIFEST_BYTES}")


@contextmanager
def open_files(path: str) -> Iterator[Files]:
    """Open the bundle at `path` for reading, a directory or a zip. Raises `BundleError`."""
    with ExitStack() as stack:
        try:
            mode = os.stat(path).st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise BundleError(f"{path!r} is neither a directory nor a file")
            fd = os.open(path, _READ)
            stack.callback(os.close, fd)
            yield _list(path, fd, stack)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BundleError(f"bundle {path!r} cannot be read: {reason}", hint="check the path") from error


def _list(path: str, fd: int, stack: ExitStack) -> Files:
    files = Files()
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            _list_directory(fd, stack, files)
        else:
            _list_zip(fd, files)
        files.check_sizes()
    except BundleError as error:
        raise BundleError(f"{path!r} is not a valid bundle", faults=(error.message,), hint=error.hint) from error
    return files


def _list_zip(fd: int, files: Files) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_TOTAL_BYTES + OVERHEAD_BYTES:
        raise BundleError(f"the file has {status.st_size} bytes, more than {MAX_TOTAL_BYTES}, or is not a plain file")
    for member in list_members(fd, status.st_size):
        if member.name in FILE_NAMES:
            files.add(member.name, _Range(fd, member.offset, member.size_bytes, member.crc32))
        else:
            files.faults.append(_unlisted(member.name))
    files.faults += [f"{name} is missing" for name in FILE_NAMES if name not in files]


def _list_directory(fd: int, stack: ExitStack, files: Files) -> None:
    with os.scandir(fd) as entries:
        for count, entry in enumerate(entries):
            if count == MAX_MEMBERS:
                files.faults.append("there are more files than a bundle has")
                break
            if entry.name not in FILE_NAMES:
                files.faults.append(_unlisted(entry.name))
    for name in FILE_NAMES:
        _open_member(fd, name, files, stack)


def _open_member(directory: int, name: str, files: Files, stack: ExitStack) -> None:
    """Look before opening (a FIFO or device must not be touched), and again at what was opened."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        files.faults.append(f"{name} is missing")
        return
    if stat.S_ISREG(status.st_mode):
        fd = os.open(name, _READ | os.O_NOFOLLOW, dir_fd=directory)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        files.add(name, _Range(fd, 0, status.st_size, None))
    if not stat.S_ISREG(status.st_mode):
        files.faults.append(f"{name} is a link, a directory or a special file")
    elif status.st_nlink != 1:
        files.faults.append(f"{name} is known under a second name (hard link); copy the bundle to use it")


def _unlisted(name: str) -> str:
    return f"the file {name[:60]!r} is not listed"
