"""A zip of stored members, written and read by hand: one layout, so one meaning for every unzip program.

MUST: members lie side by side from byte 0, then the central directory, then the end record, with nothing between,
before or behind; each local header repeats its directory entry; no compression, encryption, data descriptor, 64-bit
field, link or comment. So nothing overlaps and nothing grows when it is read. Timestamps and extra fields are free.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime.errors import BundleError

__all__ = ["MAX_MEMBERS", "OVERHEAD_BYTES", "Member", "list_members", "zip_stored"]

MAX_MEMBERS = 16
OVERHEAD_BYTES = 64 * 1024
"""More than the headers of a valid file ever take."""

# Signature, version needed, flags, method, time, date, crc, stored size, size, name length, extra length.
_LOCAL = struct.Struct("<4s5H3L2H")
# The same with the version made by in front, then comment length, disk, internal and external attributes, offset.
_ENTRY = struct.Struct("<4s6H3L5H2L")
# Signature, disk, directory's disk, entries here, entries, directory size, directory offset, comment length.
_END = struct.Struct("<4s4H2LH")
_VERSION = 20
_MADE_BY_UNIX = (3 << 8) | _VERSION
_JAN_1_1980 = (1 << 5) | 1
_FILE_MODE = (stat.S_IFREG | 0o644) << 16
_UTF8 = 0x800


@dataclass(frozen=True, slots=True)
class Member:
    """One member: where its bytes lie in the zip."""

    name: str
    """As stored; not yet checked against anything."""

    offset: int
    """Of the first byte of the content."""

    size_bytes: int
    """Of the content."""

    crc32: int
    """Of the content."""


def zip_stored(files: Mapping[str, bytes]) -> bytes:
    """A stored zip of `files` in the order given; equal contents give equal bytes."""
    body, directory = bytearray(), bytearray()
    for name, content in files.items():
        raw = name.encode("ascii")
        shared = (_VERSION, 0, 0, 0, _JAN_1_1980, zlib.crc32(content), len(content), len(content), len(raw), 0)
        directory += _ENTRY.pack(b"PK\1\2", _MADE_BY_UNIX, *shared, 0, 0, 0, _FILE_MODE, len(body)) + raw
        body += _LOCAL.pack(b"PK\3\4", *shared) + raw + content
    end = _END.pack(b"PK\5\6", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + end)


def list_members(fd: int, size_bytes: int) -> tuple[Member, ...]:
    """The members of the zip open as `fd`, `size_bytes` long. Reads headers only. Raises `BundleError`."""
    try:
        return _list_members(fd, size_bytes)
    except struct.error as error:
        raise BundleError("the zip is cut short") from error


def _list_members(fd: int, size_bytes: int) -> tuple[Member, ...]:
    if size_bytes < _END.size:
        raise BundleError(f"the file of {size_bytes} bytes is too short for a zip")
    end = _END.unpack(os.pread(fd, _END.size, size_bytes - _END.size))
    signature, disk, start_disk, here, count, length, offset, comment = end
    if signature != b"PK\5\6" or disk or start_disk or comment:
        raise BundleError("the file does not end as a zip without comment does")
    if here != count or not 1 <= count <= MAX_MEMBERS:
        raise BundleError(f"the zip claims {count} members, not 1 to {MAX_MEMBERS}")
    if length > OVERHEAD_BYTES or offset + length + _END.size != size_bytes:
        raise BundleError("the zip's directory is not where it must be, or the zip is 64-bit")
    directory = os.pread(fd, length, offset)
    members, position, covered = [], 0, 0
    for _ in range(count):
        member, position, covered = _read_member(fd, directory, position, covered)
        members.append(member)
    if position != length or covered != offset:
        raise BundleError("the zip has bytes that belong to no member")
    return tuple(members)


def _read_member(fd: int, directory: bytes, position: int, covered: int) -> tuple[Member, int, int]:
    """The member at `position` of the directory; the one before it ends at byte `covered` of the file."""
    fields = _ENTRY.unpack_from(directory, position)
    signature, _, *shared, name_length, extra, comment, disk, _, mode, offset = fields
    _, flags, method, _, _, crc, stored, size = shared
    position += _ENTRY.size
    raw = directory[position : position + name_length]
    position += name_length + extra
    if signature != b"PK\1\2" or comment or disk or len(raw) != name_length:
        raise BundleError("the zip's directory is damaged")
    if flags & ~_UTF8 or method or stored != size:
        raise BundleError(f"zip member {raw[:60]!r} is compressed or encrypted", hint="bundles are stored: zip -0 -X")
    if mode >> 16 and not stat.S_ISREG(mode >> 16):
        raise BundleError(f"zip member {raw[:60]!r} is a link or a special file")
    local = _LOCAL.unpack(os.pread(fd, _LOCAL.size, offset))
    start = offset + _LOCAL.size + name_length
    if local[:1] + local[2:4] + local[6:10] != (b"PK\3\4", flags, method, crc, stored, size, name_length):
        raise BundleError(f"zip member {raw[:60]!r} has a header unlike its directory entry")
    if offset != covered or os.pread(fd, name_length, offset + _LOCAL.size) != raw:
        raise BundleError(f"zip member {raw[:60]!r} does not follow the one before it")
    start += local[10]
    return Member(raw.decode("ascii", "backslashreplace"), start, size, crc), position, start + size
