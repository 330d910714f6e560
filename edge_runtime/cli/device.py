"""The head of every measured result: what this machine is, as a record and as a line of at most 80 characters."""

from __future__ import annotations

from typing import TypeAlias

from edge_runtime.cli.tables import shorten

__all__ = ["DeviceRecord", "busy_note", "device_line", "read_device"]

DeviceRecord: TypeAlias = dict[str, str | int | float]


def read_device() -> DeviceRecord:
    """The machine and the libraries, now; a sensor that it does not have is ``unknown: <reason>``."""
    from edge_runtime import sense
    from edge_runtime.backends import runtime_versions

    return sense.device_context(runtime_versions())


def device_line(record: DeviceRecord, threads: int) -> str:
    """The record for people: processor or board, cores, libraries and threads."""
    cores, warmth = record["cores"], record["temperature_c"]
    parts = [
        shorten(_name(record), 28),
        f"{cores} core{'s' if cores != 1 else ''}",
        f"Python {record['python']}",
        f"onnxruntime {record['onnxruntime']}, {threads} thread{'s' if threads != 1 else ''}",
    ]
    if isinstance(warmth, float):
        parts.insert(2, f"{warmth:.0f} C")
    return " | ".join(parts)


def busy_note(record: DeviceRecord) -> str:
    """What to say where other work was running when the record was made; else nothing."""
    load, cores = record["load_1min"], record["cores"]
    if not isinstance(load, float) or load <= float(cores):
        return ""
    return f"note: other work was running (load {load} on {cores} cores), so these times are high"


def _name(record: DeviceRecord) -> str:
    """A single-board computer by its board, anything else by its processor."""
    board, cpu = str(record["board"]), str(record["cpu"])
    known = [name for name in (board, cpu) if not name.startswith("unknown:")]
    if str(record["machine"]) in ("aarch64", "armv7l"):
        return known[0] if known else str(record["machine"])
    return known[-1] if known else str(record["machine"])
