"""Device profiles: the shipped ones load, mistakes are all named, and the machine finds its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.errors import ProfileError
from edge_runtime.objectives import Budget
from edge_runtime.profiles import available_profiles, choose_profile, load_profile

GOOD = """
name: mine
description: A board of my own
threads: 2
budget: {latency_ms: 33}
limits: {adapt_cpu_percent: 25, adapt_seconds: 60}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", available_profiles())
def test_every_shipped_profile_loads_and_is_named_like_its_file(name: str) -> None:
    assert load_profile(name).name == name


def test_the_three_promised_profiles_are_shipped() -> None:
    assert set(available_profiles()) >= {"generic-x86_64", "generic-aarch64", "raspberry-pi-5"}


@pytest.mark.parametrize(
    ("machine", "board", "name"),
    [
        ("x86_64", "", "generic-x86_64"),
        ("x86_64", "ThinkPad X1", "generic-x86_64"),
        ("aarch64", "", "generic-aarch64"),
        ("aarch64", "Raspberry Pi 4 Model B Rev 1.5", "generic-aarch64"),
        ("aarch64", "Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("aarch64", "RASPBERRY PI 5", "raspberry-pi-5"),
    ],
)
def test_a_machine_finds_its_own(machine: str, board: str, name: str) -> None:
    assert choose_profile(machine, board).name == name


def test_an_unknown_kind_of_machine_is_told_what_to_do() -> None:
    with pytest.raises(ProfileError, match=r"riscv64.*name a profile"):
        choose_profile("riscv64")


def test_a_profile_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert (profile.name, profile.threads, profile.budget) == ("mine", 2, Budget(latency_ms=33))
    assert profile.match is None


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError, match=r"no profile 'rpi9' \(one of .*raspberry-pi-5"):
        load_profile("rpi9")


def test_all_mistakes_are_named_together(tmp_path: Path) -> None:
    text = (
        "name: My Pi\nthreads: 0\nbudget: {latency_ms: -1}\nlimits: {adapt_cpu_percent: 200, adapt_seconds: 5}\nx: 1\n"
    )
    with pytest.raises(ProfileError) as caught:
        load_profile(write(tmp_path, text))
    said = str(caught.value)
    for part in (
        "'description' is missing",
        "'x' is unknown",
        "name is 'My Pi'",
        "threads",
        "latency_ms",
        "percent is 200",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "just words",
        "name: [",
        "{" * 2000,
        b"\xff\xfe\x00",
        GOOD.replace("threads: 2", "threads: two"),
        GOOD.replace("threads: 2", "threads: 65"),
        GOOD.replace("threads: 2", "threads: true"),
        GOOD.replace("latency_ms: 33", "latency_ms: .nan"),
        GOOD.replace("latency_ms: 33", "latency: 33"),
        GOOD.replace("adapt_seconds: 60", "adapt_seconds: 0"),
        GOOD + "match: {board: Pi}\n",
        GOOD + "match: {machine: 7}\n",
        GOOD + "extra: !!python/object/apply:os.system ['true']\n",
        "a: &a [x]\nb: [*a, *a]\n",
        "#" * 70_000,
    ],
)
def test_anything_else_is_a_profile_error(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ProfileError):
        load_profile(write(tmp_path, text))


def test_a_missing_file_is_a_profile_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path / "none.yaml")
