"""Device profiles: what is sensible on a kind of machine before anything is measured. YAML in, `DeviceProfile` out.

The shipped ones lie in ``edge_runtime/_profiles`` (wheel) or ``profiles`` (source tree); an application may give the
path of its own. Form of a file, every key but `match` required, all mistakes reported together:

    name: raspberry-pi-5
    description: Raspberry Pi 5, 4 x Cortex-A76, active cooling assumed
    match: {machine: aarch64, board: Raspberry Pi 5}   # without `match` never chosen on its own
    threads: 3                                         # 1 to 64, cut to the CPUs that the process may use
    budget: {latency_ms: 50, memory_mib: 300}          # see `Budget`; {} for none
    limits: {adapt_cpu_percent: 25, adapt_seconds: 60} # of one CPU, in the background; of one search
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.checks import fields, finite, whole
from edge_runtime.errors import ProfileError, UsageError
from edge_runtime.objectives import Budget

__all__ = ["DeviceProfile", "Limits", "Match", "available_profiles", "choose_profile", "load_profile"]

MAX_BYTES = 64 * 1024
MAX_THREADS = 64
REQUIRED = ("name", "description", "threads", "budget", "limits")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Match:
    """Which machines a profile is for."""

    machine: str
    """As `platform.machine` says. Example: ``aarch64``."""

    board: str = ""
    """Part of the board's name, upper and lower case alike; empty: any board."""

    def fits(self, machine: str, board: str) -> bool:
        """Whether a machine is of this kind."""
        return machine == self.machine and self.board.lower() in board.lower()


@dataclass(frozen=True, slots=True)
class Limits:
    """What adaptation may take from the application."""

    adapt_cpu_percent: float
    """Share of one CPU for a search in the background, in (0, 100]."""

    adapt_seconds: float
    """Longest time of one search, seconds, above 0."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What is sensible on a kind of machine."""

    name: str
    """Lower-case letters, digits and ``_.-``. Example: ``raspberry-pi-5``."""

    description: str
    """One line for people."""

    match: Match | None
    """Machines that it is chosen for without being asked; None: only by name or path."""

    threads: int
    """Threads inside an operator, 1 to 64."""

    budget: Budget
    """What an application gets that names no budget."""

    limits: Limits
    """What adaptation may take."""


def load_profile(name_or_path: str | os.PathLike[str]) -> DeviceProfile:
    """A shipped profile by its name, or a file (anything with a ``/`` or ending in ``.yaml``).

    Raises:
        ProfileError: It is unknown, unreadable or invalid; every mistake in it is named.
    """
    text = os.fspath(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return _read(Path(text))
    if text not in available_profiles():
        raise ProfileError(
            f"there is no profile {text[:64]!r}", hint=f"one of {', '.join(available_profiles())}, or a path"
        )
    return _read(_folder() / f"{text}.yaml")


def choose_profile(machine: str, board: str = "") -> DeviceProfile:
    """The shipped profile that fits best: the one with the longest matching board name.

    Args:
        machine: As `platform.machine` says.
        board: As `edge_runtime.sense.board` says; empty where it is unknown.

    Raises:
        ProfileError: None fits this kind of processor.
    """
    profiles = [load_profile(name) for name in available_profiles()]
    fitting = [p for p in profiles if p.match is not None and p.match.fits(machine, board)]
    if not fitting:
        raise ProfileError(f"no profile is for machines of the kind {machine!r}", hint="name a profile or a path")
    return max(fitting, key=lambda profile: (len(profile.match.board) if profile.match else 0, profile.name))


def available_profiles() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / "_profiles", here.parent / "profiles"):
        if folder.is_dir():
            return folder
    raise ProfileError("the shipped device profiles are missing", hint="install nnf-edge again")


def _read(path: Path) -> DeviceProfile:
    import yaml

    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ProfileError(f"profile {str(path)!r} has more than {MAX_BYTES} bytes")
    try:
        # An alias can stand for another a thousand times over; nobody needs one in twelve lines.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(data)):
            raise ProfileError(f"profile {str(path)!r} uses a YAML alias", hint="write the value out")
        body = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProfileError(f"profile {str(path)!r} is not YAML: {' '.join(str(error).split())[:200]}") from error
    return _parse(body, str(path))


def _parse(body: object, source: str) -> DeviceProfile:
    mistakes: list[str] = []

    def keep(build: Callable[[], T]) -> T | None:
        try:
            return build()
        except UsageError as error:
            mistakes.append(str(error))
            return None

    known: dict[str, Any] = body if isinstance(body, dict) else {}
    mistakes += [f"the key {key!r} is missing" for key in REQUIRED if key not in known]
    mistakes += [f"the key {str(key)[:40]!r} is unknown" for key in known if key not in (*REQUIRED, "match")]
    name = keep(lambda: _name(known["name"])) if "name" in known else None
    description = keep(lambda: _line("description", known["description"])) if "description" in known else None
    threads = keep(lambda: _threads(known["threads"])) if "threads" in known else None
    budget = keep(lambda: Budget.from_json(known["budget"])) if "budget" in known else None
    limits = keep(lambda: _limits(known["limits"])) if "limits" in known else None
    match = keep(lambda: _match(known["match"])) if "match" in known else None
    if mistakes or not (name and description and threads and budget and limits):
        listed = "".join(f"\n  - {mistake}" for mistake in mistakes)
        raise ProfileError(f"profile {source!r} is not valid:{listed}")
    return DeviceProfile(name, description, match, threads, budget, limits)


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ProfileError(f"name is {str(value)[:60]!r}", hint="use lower-case letters, digits and _.-")
    return value


def _line(key: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ProfileError(f"{key} is not one line of 1 to 200 printable characters")
    return value


def _threads(value: object) -> int:
    threads = whole("threads", value, low=1)
    if threads > MAX_THREADS:
        raise ProfileError(f"threads is {threads}", hint=f"give 1 to {MAX_THREADS}")
    return threads


def _limits(value: object) -> Limits:
    values: Mapping[str, Any] = fields("limits", value, required=("adapt_cpu_percent", "adapt_seconds"))
    percent = finite("adapt_cpu_percent", values["adapt_cpu_percent"])
    seconds = finite("adapt_seconds", values["adapt_seconds"])
    if not 0 < percent <= 100:
        raise ProfileError(f"adapt_cpu_percent is {percent:g}", hint="give more than 0, at most 100")
    if not 0 < seconds <= 86_400:
        raise ProfileError(f"adapt_seconds is {seconds:g}", hint="give more than 0, at most a day (86400)")
    return Limits(percent, seconds)


def _match(value: object) -> Match:
    values = fields("match", value, required=("machine",), optional=("board",))
    return Match(_line("machine", values["machine"]), _line("board", values["board"]) if "board" in values else "")
