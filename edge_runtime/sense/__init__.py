"""What this machine is and how it feels: the only reader of /proc and /sys, and the only importer of psutil.

Each signal is a value or `Unknown` with its reason; a missing sensor is never 0 and never an error. Every read is
unprivileged: open, read, close. `root` stands for ``/`` everywhere, so that a folder of fixtures can play any board.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.sense.files import Known, Unknown, read_int, read_table, read_text
from edge_runtime.sense.limits import cpu_quotas, memory_left, memory_limits
from edge_runtime.sense.power import Rail, find_rail

__all__ = [
    "Known",
    "Memory",
    "Rail",
    "Unknown",
    "anonymous_bytes",
    "board",
    "cpu_features_key",
    "cpu_model",
    "cpu_pressure",
    "cpu_threads",
    "device_context",
    "find_rail",
    "governor",
    "memory_available_bytes",
    "memory_total_bytes",
    "process_memory",
    "process_share_bytes",
    "strain",
    "temperature_c",
]

ROOT = Path("/")
COLDEST_C, HOTTEST_C = -40.0, 150.0
"""A powered-off zone of a Jetson reads -256 degrees; nothing that runs us is outside this range."""

CPU_ZONES = ("cpu-thermal", "cpu_thermal", "x86_pkg_temp", "soc-thermal", "soc_thermal", "tj-thermal", "acpitz")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this process."""

    rss_bytes: Known[int]
    """Resident now, shared pages included, bytes."""

    peak_bytes: Known[int]
    """Largest resident size since the process began, bytes."""


def cpu_threads(root: Path = ROOT) -> int:
    """CPUs that this process may really use, at least 1: the lesser of its affinity mask and its cgroup's quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        allowed = os.cpu_count() or 1
    return max(1, math.floor(min([float(allowed), *cpu_quotas(root)])))


def process_memory(root: Path = ROOT) -> Memory:
    """Resident memory of this process, now and at its peak."""
    status = read_table(root / "proc/self/status")
    if isinstance(status, Unknown):
        return Memory(_rss_by_psutil(), status)
    return Memory(_kib(status, "VmRSS"), _kib(status, "VmHWM"))


def process_share_bytes(root: Path = ROOT) -> Known[int]:
    """Memory of this process now, bytes: its own pages, and its share of those that it shares (PSS).

    Unlike the resident size it counts a file that is mapped twice, as by two sessions of one model, only once.
    """
    table = read_table(root / "proc/self/smaps_rollup")
    return table if isinstance(table, Unknown) else _kib(table, "Pss")


def anonymous_bytes(root: Path = ROOT) -> Known[int]:
    """Memory of this process that nothing else shares and no file backs, resident now, bytes."""
    status = read_table(root / "proc/self/status")
    return status if isinstance(status, Unknown) else _kib(status, "RssAnon")


def memory_total_bytes(root: Path = ROOT) -> Known[int]:
    """Memory that this process may use at most, bytes: the machine's, or its cgroup's limit where that is less."""
    total = _meminfo(root, "MemTotal")
    limits = memory_limits(root)
    return min([total, *limits]) if isinstance(total, int) else total


def memory_available_bytes(root: Path = ROOT) -> Known[int]:
    """Memory that a new process may take now, bytes: by the machine, by the cgroups, by the limit of address space."""
    free = _meminfo(root, "MemAvailable")
    return min([free, *memory_left(root)]) if isinstance(free, int) else free


def temperature_c(root: Path = ROOT) -> Known[float]:
    """Temperature of the processor, degrees Celsius, from the thermal zone that is named like one."""
    folder = root / "sys/class/thermal"
    found: dict[str, float] = {}
    try:
        zones = sorted(folder.glob("thermal_zone*"))
    except OSError as error:
        return Unknown(f"{folder}: {error.strerror}")
    for zone in zones:
        kind, milli = read_text(zone / "type"), read_int(zone / "temp")
        if isinstance(kind, str) and milli is not None and COLDEST_C <= milli / 1000 <= HOTTEST_C:
            found.setdefault(kind.strip(), milli / 1000)
    for kind in CPU_ZONES:
        if kind in found:
            return found[kind]
    return Unknown("no thermal zone of the processor can be read")


def cpu_pressure(root: Path = ROOT) -> Known[float]:
    """Share of the last 10 s in which some task waited for a CPU, 0 to 1 (pressure stall information)."""
    text = read_text(root / "proc/pressure/cpu")
    if isinstance(text, Unknown):
        return text
    for line in text.splitlines():
        if line.startswith("some avg10="):
            try:
                return float(line.split()[1].removeprefix("avg10=")) / 100
            except ValueError:
                break
    return Unknown("/proc/pressure/cpu has another form")


def strain(root: Path = ROOT) -> str:
    """What may slow the processor down, for people; only what is known. Example: ``CPU pressure 63 %, 82 C``."""
    pressure, heat = cpu_pressure(root), temperature_c(root)
    said = [] if isinstance(pressure, Unknown) else [f"CPU pressure {pressure:.0%}".replace("%", " %")]
    return ", ".join(said if isinstance(heat, Unknown) else [*said, f"{heat:.0f} C"])


def board(root: Path = ROOT) -> Known[str]:
    """Name of the board or machine. Example: ``Raspberry Pi 5 Model B Rev 1.0``."""
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = read_text(root / path)
        if isinstance(text, str) and (name := text.strip("\0 \n")):
            return name
    return Unknown("neither a device tree nor a DMI product name")


def cpu_model(root: Path = ROOT) -> Known[str]:
    """Name of the processor; many ARM kernels give none."""
    table = read_table(root / "proc/cpuinfo")
    if isinstance(table, Unknown):
        return table
    for key in ("model name", "Model", "Hardware"):
        if table.get(key):
            return table[key]
    return Unknown("/proc/cpuinfo has no model name")


def cpu_features_key(root: Path = ROOT) -> str:
    """16 hex digits that change when the processor or its instruction sets do; part of the key of device caches."""
    table = read_table(root / "proc/cpuinfo")
    parts = [platform.machine()]
    if not isinstance(table, Unknown):
        parts += [table.get(key, "") for key in ("model name", "CPU implementer", "CPU part")]
        parts += sorted((table.get("flags") or table.get("Features") or "").split())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def governor(root: Path = ROOT) -> Known[str]:
    """Frequency governor of the first CPU. Example: ``ondemand``."""
    text = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return text.strip() if isinstance(text, str) else text


def device_context(versions: Mapping[str, str] | None = None, root: Path = ROOT) -> dict[str, str | int | float]:
    """One flat record of the machine for the head of every result; what is not known is ``unknown: <reason>``.

    Args:
        versions: Versions of libraries, added as they are (`edge_runtime.backends.runtime_versions`).
        root: Stands for ``/``.
    """
    total = memory_total_bytes(root)
    signals: dict[str, Known[str] | Known[int] | Known[float]] = {
        "board": board(root),
        "cpu": cpu_model(root),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": cpu_threads(root),
        "memory_mib": total if isinstance(total, Unknown) else total // (1 << 20),
        "governor": governor(root),
        "temperature_c": temperature_c(root),
        "load_1min": _load(),
    }
    known = {name: str(value) if isinstance(value, Unknown) else value for name, value in signals.items()}
    return {**known, **(versions or {})}


def _load() -> Known[float]:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return Unknown("the system gives no load average")


def _kib(table: Mapping[str, str], key: str) -> Known[int]:
    number, _, unit = table.get(key, "").partition(" ")
    if unit != "kB" or not number.isdigit():
        return Unknown(f"no {key} in kB")
    return int(number) * 1024


def _meminfo(root: Path, key: str) -> Known[int]:
    table = read_table(root / "proc/meminfo")
    return table if isinstance(table, Unknown) else _kib(table, key)


def _rss_by_psutil() -> Known[int]:
    import psutil

    try:
        return int(psutil.Process().memory_info().rss)
    except psutil.Error as error:
        return Unknown(f"psutil: {error}")
