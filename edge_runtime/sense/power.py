"""The electric power of the whole board, where a sensor on its input rail tells it.

Boards name that rail differently, and the other rails of a Jetson are parts of it: they are never added up. A chip with
one channel and no name for it (an INA219 under a Raspberry Pi) is taken for the input where it is the only one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.sense.files import Known, Unknown, read_int, read_text

__all__ = ["Rail", "find_rail"]

CHIPS = ("ina3221", "ina238", "ina219", "ina220", "ina226", "ina230", "ina231", "ina260")
INPUT_RAILS = ("VDD_IN", "VIN", "POM_5V_IN", "5V_IN")
"""Names of the rail that feeds the whole board: Jetson Xavier NX and Orin, Thor, Nano, and older device trees."""

CHANNELS = range(1, 4)
MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Rail:
    """One power rail; read it as often as wanted, each reading is a few small files."""

    name: str
    """Chip and rail. Example: ``ina3221 VDD_IN``."""

    files: tuple[Path, ...]
    """One file in microwatts, or voltage in millivolts and current in milliamperes."""

    def power_w(self) -> Known[float]:
        """Power now, watts, above 0."""
        power = MICRO  # millivolts times milliamperes are microwatts, too
        for path in self.files:
            value = read_int(path)
            if value is None or value <= 0:
                return Unknown(f"{self.name} gives no power now")
            power *= value
        return power


def find_rail(root: Path = Path("/")) -> Known[Rail]:
    """The rail that feeds the whole board, or why there is none.

    Args:
        root: Stands for ``/``.
    """
    found = list(_rails(root / "sys/class/hwmon"))
    for name in INPUT_RAILS:
        for label, rail in found:
            if label == name:
                return rail
    unnamed = [rail for label, rail in found if not label]
    if len(unnamed) == len(found) == 1:
        return unnamed[0]
    if not found:
        return Unknown("no power sensor in /sys/class/hwmon")
    listed = ", ".join(rail.name for _, rail in found)
    return Unknown(f"none of the rails of /sys/class/hwmon ({listed}) is known to feed the whole board")


def _rails(folder: Path) -> Iterator[tuple[str, Rail]]:
    """Every rail of a known chip, with its label; empty where it has none."""
    try:
        chips = sorted(folder.glob("hwmon*"))
    except OSError:
        return
    for chip in chips:
        kind = read_text(chip / "name")
        if isinstance(kind, Unknown) or kind.strip() not in CHIPS:
            continue
        for channel in CHANNELS:
            names = (f"in{channel}_label", f"power{channel}_label", "label")  # the last one is of the chip
            told = [read_text(chip / name) for name in names]
            label = next((text.strip() for text in told if isinstance(text, str)), "")
            files = _files(chip, channel)
            if files:
                yield label, Rail(f"{kind.strip()} {label}".strip(), files)


def _files(chip: Path, channel: int) -> tuple[Path, ...]:
    power = chip / f"power{channel}_input"
    if power.exists():
        return (power,)
    pair = chip / f"in{channel}_input", chip / f"curr{channel}_input"
    return pair if all(path.exists() for path in pair) else ()
