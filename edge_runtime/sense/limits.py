"""What somebody allowed this process to use: its cgroups, of version 1 and 2, and its resource limits.

A limit holds for everything below it, so each folder from this process's own up to the top counts. Without a cgroup
namespace a container reads the host's path of itself but sees its own limits at the top; that too is on the way up.
JetPack 5 mounts version 1; Raspberry Pi OS mounts version 2, often without the memory controller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.sense.files import read_int, read_text

__all__ = ["cpu_quotas", "memory_left", "memory_limits"]

UNLIMITED_BYTES = 1 << 60
"""Version 1 has no word for no limit: it gives the greatest multiple of the page size below 2^63."""

PROCESS_LIMITS = ("Max address space", "Max data size")
"""Lines of /proc/self/limits, in bytes. A new process inherits them and starts at nothing."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one version of cgroups names what is read here."""

    limits: tuple[str, ...]
    """Files of limits; version 2 throttles at ``memory.high`` already."""

    usage: str
    reclaimable: tuple[str, ...]
    """Lines of ``memory.stat`` of what the kernel gives up at once: files that were read long ago."""


_V1 = _Layout(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file",))
_V2 = _Layout(("memory.max", "memory.high"), "memory.current", ("inactive_file", "slab_reclaimable"))


def memory_limits(root: Path) -> list[int]:
    """Hard limits of the cgroups, bytes: what all their processes may use together."""
    found = (_limit(folder / layout.limits[0]) for layout in (_V1, _V2) for folder in _memory_folders(root, layout))
    return [limit for limit in found if limit is not None]


def memory_left(root: Path) -> list[int]:
    """What each limit leaves to a new process, bytes, at least 0."""
    left = []
    for layout in (_V1, _V2):
        for folder in _memory_folders(root, layout):
            used = max(0, (read_int(folder / layout.usage) or 0) - _reclaimable(folder, layout))
            limits = (_limit(folder / name) for name in layout.limits)
            left += [max(0, limit - used) for limit in limits if limit is not None]
    return [*left, *_process_limits(root)]


def cpu_quotas(root: Path) -> list[float]:
    """CPUs that each cgroup with a quota may use, e.g. 1.5."""
    found = [_quota_v1(folder) for folder in _folders(root, "cpu")]
    found += [_quota_v2(folder) for folder in _folders(root, "")]
    return [quota for quota in found if quota is not None]


def _memory_folders(root: Path, layout: _Layout) -> Iterator[Path]:
    return _folders(root, "memory" if layout is _V1 else "")


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and its ancestors in the tree of a controller of version 1; of version 2 where it is ""."""
    text = read_text(root / "proc/self/cgroup")
    for line in text.splitlines() if isinstance(text, str) else []:
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or not path.startswith("/") or controller not in controllers.split(","):
            continue
        inner = Path(path[1:]) if ".." not in Path(path).parts else Path()
        top = _top(root / "sys/fs/cgroup", controllers, controller)
        yield from (top / part for part in dict.fromkeys([inner, *inner.parents]))


def _top(mounts: Path, controllers: str, controller: str) -> Path:
    """The folder of a tree: named after all its controllers, or a link or mount that is named after one of them."""
    return next((mounts / name for name in (controllers, controller) if (mounts / name).is_dir()), mounts / controller)


def _limit(path: Path) -> int | None:
    value = read_int(path)
    return value if value is not None and 0 <= value < UNLIMITED_BYTES else None


def _reclaimable(folder: Path, layout: _Layout) -> int:
    text = read_text(folder / "memory.stat")
    counts = dict(line.split(None, 1) for line in text.splitlines() if " " in line) if isinstance(text, str) else {}
    found = (counts.get(name, "") for name in layout.reclaimable)
    return sum(int(count) for count in found if count.isdigit())


def _quota_v1(folder: Path) -> float | None:
    quota, period = read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _quota_v2(folder: Path) -> float | None:
    text = read_text(folder / "cpu.max")
    parts = text.split() if isinstance(text, str) else []
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return None
    return int(parts[0]) / int(parts[1])


def _process_limits(root: Path) -> list[int]:
    text = read_text(root / "proc/self/limits")
    found = []
    for line in text.splitlines() if isinstance(text, str) else []:
        name = next((name for name in PROCESS_LIMITS if line.startswith(name)), None)
        soft = line[len(name) :].split() if name else []
        if soft and soft[0].isdigit():
            found.append(int(soft[0]))
    return found
