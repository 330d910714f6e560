"""Signals of boards that are folders of fixtures: a value, or unknown with its reason; never 0, never an error."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime import sense
from edge_runtime.sense import Unknown

ROOT = Path(__file__).resolve().parents[2]


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture
def pi5(tmp_path: Path) -> Path:
    return tree(
        tmp_path,
        {
            "proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n",
            "proc/meminfo": "MemTotal:        8245248 kB\n",
            "proc/self/status": "Name:\tpython\nVmHWM:\t   90000 kB\nVmRSS:\t   81234 kB\n",
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "51234\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        },
    )


READERS = [
    sense.anonymous_bytes,
    sense.board,
    sense.cpu_model,
    sense.cpu_pressure,
    sense.governor,
    sense.memory_available_bytes,
    sense.memory_total_bytes,
    sense.temperature_c,
]


def test_a_raspberry_pi_is_read(pi5: Path) -> None:
    assert sense.board(pi5) == "Raspberry Pi 5 Model B Rev 1.0"
    assert sense.temperature_c(pi5) == 51.234
    assert sense.governor(pi5) == "ondemand"
    assert sense.memory_total_bytes(pi5) == 8245248 * 1024
    assert sense.process_memory(pi5) == sense.Memory(81234 * 1024, 90000 * 1024)
    assert isinstance(sense.anonymous_bytes(pi5), Unknown), "a kernel before 4.5 does not tell"
    tree(pi5, {"proc/self/status": "VmRSS:\t   81234 kB\nRssAnon:\t   40000 kB\n"})
    assert sense.anonymous_bytes(pi5) == 40000 * 1024
    assert isinstance(sense.cpu_model(pi5), Unknown), "an ARM kernel names no model"


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_sensor_is_unknown_with_a_reason(tmp_path: Path, reader: object) -> None:
    found = reader(tmp_path)  # type: ignore[operator]
    assert isinstance(found, Unknown)
    assert found.reason
    assert str(found).startswith("unknown: ")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\0", b"-256000\n", b"hot", b"999999999\n", b"9" * 5000, b"nan"])
def test_a_temperature_that_cannot_be_one_is_unknown(pi5: Path, content: bytes) -> None:
    (pi5 / "sys/class/thermal/thermal_zone0/temp").write_bytes(content)
    assert isinstance(sense.temperature_c(pi5), Unknown)


def test_zones_are_found_by_their_type_not_by_their_number(pi5: Path) -> None:
    tree(
        pi5,
        {
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "70000\n",
            "sys/class/thermal/thermal_zone7/type": "cpu_thermal\n",
            "sys/class/thermal/thermal_zone7/temp": "42000\n",
            "sys/class/thermal/thermal_zone8/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone8/temp": "-256000\n",
        },
    )
    assert sense.temperature_c(pi5) == 42.0


def test_a_sensor_that_is_a_directory_is_unknown(pi5: Path) -> None:
    (pi5 / "proc/pressure/cpu").mkdir(parents=True)
    assert isinstance(sense.cpu_pressure(pi5), Unknown)


@pytest.mark.parametrize(
    ("text", "value"),
    [("some avg10=12.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=0.00\n", 0.125), ("some x\n", None)],
)
def test_pressure_is_a_share(pi5: Path, text: str, value: float | None) -> None:
    tree(pi5, {"proc/pressure/cpu": text})
    found = sense.cpu_pressure(pi5)
    assert found == value if value is not None else isinstance(found, Unknown)


def test_strain_says_what_is_known_and_nothing_else(pi5: Path, tmp_path: Path) -> None:
    assert sense.strain(pi5) == "51 C"
    tree(pi5, {"proc/pressure/cpu": "some avg10=62.60 avg60=1.00 avg300=0.10 total=5\n"})
    assert sense.strain(pi5) == "CPU pressure 63 %, 51 C"
    assert sense.strain(tmp_path / "nothing") == ""


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 4),
        ({"app.scope/cpu.max": "150000 100000\n"}, 1),
        ({"app.scope/cpu.max": "250000 100000\n"}, 2),
        ({"app.scope/cpu.max": "max 100000\n"}, 4),
        ({"app.scope/cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "200000 100000\n", "app.scope/cpu.max": "300000 100000\n"}, 2),
        ({"app.scope/cpu.max": "rubbish"}, 4),
        ({"app.scope/cpu.max": "100 0\n"}, 4),
    ],
)
def test_threads_respect_affinity_and_every_quota_above(
    pi5: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    tree(pi5, {f"sys/fs/cgroup/user.slice/{name}": text for name, text in files.items()})
    assert sense.cpu_threads(pi5) == threads


def test_memory_respects_the_cgroup(pi5: Path) -> None:
    tree(
        pi5,
        {
            "sys/fs/cgroup/user.slice/app.scope/memory.max": "268435456\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
        },
    )
    assert sense.memory_total_bytes(pi5) == 256 << 20


def test_memory_that_is_free_is_what_the_tightest_limit_leaves(pi5: Path) -> None:
    meminfo = "MemTotal:        8245248 kB\nMemAvailable:    4000000 kB\n"
    scope = "sys/fs/cgroup/user.slice/app.scope"
    tree(pi5, {"proc/meminfo": meminfo})
    assert sense.memory_available_bytes(pi5) == 4000000 * 1024
    files = {f"{scope}/memory.max": f"{1 << 30}\n", f"{scope}/memory.current": f"{900 << 20}\n"}
    tree(pi5, files)
    assert sense.memory_available_bytes(pi5) == 124 << 20
    # Files that were read long ago count as used, and are given up at once.
    tree(pi5, {f"{scope}/memory.stat": f"anon 1000\ninactive_file {800 << 20}\nslab_reclaimable x\n"})
    assert sense.memory_available_bytes(pi5) == 924 << 20
    tree(pi5, {f"{scope}/memory.high": f"{512 << 20}\n"})
    assert sense.memory_available_bytes(pi5) == 412 << 20


V1 = "12:cpuset:/\n9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/system.slice\n"
UNLIMITED = "9223372036854771712\n"
MEMINFO = "MemTotal:        8245248 kB\nMemAvailable:    4000000 kB\n"


@pytest.fixture
def version_1(pi5: Path) -> Path:
    """A container on JetPack 5: its path is the host's, its own limits are at the top."""
    files = {"memory.limit_in_bytes": UNLIMITED, "memory.usage_in_bytes": f"{900 << 20}\n"}
    tree(pi5, {"proc/self/cgroup": V1, "proc/meminfo": MEMINFO})
    return tree(pi5, {f"sys/fs/cgroup/memory/{name}": text for name, text in files.items()})


@pytest.mark.parametrize("where", ["", "docker/", "docker/abc/"])
def test_memory_respects_the_limits_of_version_1(version_1: Path, where: str) -> None:
    assert sense.memory_total_bytes(version_1) == 8245248 * 1024
    assert sense.memory_available_bytes(version_1) == 4000000 * 1024
    scope = f"sys/fs/cgroup/memory/{where}memory"
    tree(version_1, {f"{scope}.limit_in_bytes": f"{1 << 30}\n", f"{scope}.usage_in_bytes": f"{900 << 20}\n"})
    assert sense.memory_total_bytes(version_1) == 1 << 30
    assert sense.memory_available_bytes(version_1) == 124 << 20
    tree(version_1, {f"{scope}.stat": f"inactive_file 5\ntotal_inactive_file {800 << 20}\nrss x\n"})
    assert sense.memory_available_bytes(version_1) == 924 << 20


@pytest.mark.parametrize("text", ["", "-1\n", "max\n", "9" * 30, "\xff"])
def test_a_limit_of_version_1_that_is_none_is_ignored(version_1: Path, text: str) -> None:
    tree(version_1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": text})
    assert sense.memory_total_bytes(version_1) == 8245248 * 1024
    assert sense.memory_available_bytes(version_1) == 4000000 * 1024


def test_where_the_use_is_not_known_the_whole_limit_is_free(pi5: Path) -> None:
    scope = "sys/fs/cgroup/user.slice"
    tree(pi5, {"proc/meminfo": MEMINFO, f"{scope}/memory.max": f"{1 << 30}\n"})
    tree(pi5, {f"{scope}/memory.stat": f"inactive_file {800 << 20}\n"})
    assert sense.memory_available_bytes(pi5) == 1 << 30


@pytest.mark.parametrize("line", ["Max address space", "Max data size"])
def test_memory_that_is_free_respects_the_limits_of_the_process(pi5: Path, line: str) -> None:
    limits = f"Limit                     Soft Limit           Hard Limit           Units\n{line:<26}"
    tree(
        pi5, {"proc/meminfo": MEMINFO, "proc/self/limits": f"{limits}unlimited            unlimited            bytes\n"}
    )
    assert sense.memory_available_bytes(pi5) == 4000000 * 1024
    tree(pi5, {"proc/self/limits": f"{limits}{300 << 20}            unlimited            bytes\n"})
    assert sense.memory_available_bytes(pi5) == 300 << 20
    tree(pi5, {"proc/self/limits": line})
    assert sense.memory_available_bytes(pi5) == 4000000 * 1024


@pytest.mark.skipif(platform.system() != "Linux", reason="sets a limit of the real process")
def test_the_real_limit_of_address_space_is_seen() -> None:
    script = (
        "import resource; from edge_runtime import sense;"
        "resource.setrlimit(resource.RLIMIT_AS, (700 << 20, resource.RLIM_INFINITY));"
        "print(sense.memory_available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 0 < int(done.stdout) <= 700 << 20


@pytest.mark.parametrize(
    ("mount", "quota", "threads"),
    [
        ("cpu,cpuacct", "150000", 1),
        ("cpu,cpuacct", "250000", 2),
        ("cpu", "250000", 2),
        ("cpu", "-1", 4),
        ("cpu", "0", 4),
        ("cpu", "rubbish", 4),
        ("other", "100000", 4),
    ],
)
def test_threads_respect_a_quota_of_version_1(
    version_1: Path, monkeypatch: pytest.MonkeyPatch, mount: str, quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    scope = f"sys/fs/cgroup/{mount}/cpu.cfs"
    tree(version_1, {f"{scope}_quota_us": f"{quota}\n", f"{scope}_period_us": "100000\n"})
    assert sense.cpu_threads(version_1) == threads


def test_a_cgroup_path_of_version_1_cannot_leave_its_tree(version_1: Path) -> None:
    tree(version_1, {"proc/self/cgroup": "9:memory:/../../..\n", "memory.limit_in_bytes": "1\n"})
    assert sense.memory_total_bytes(version_1) == 8245248 * 1024


def test_a_cgroup_path_cannot_leave_its_tree(pi5: Path) -> None:
    tree(pi5, {"proc/self/cgroup": "0::/../../outside\n", "memory.max": "1\n"})
    assert sense.memory_total_bytes(pi5) == 8245248 * 1024


def test_without_proc_the_size_comes_from_psutil_and_the_peak_is_unknown(tmp_path: Path) -> None:
    memory = sense.process_memory(tmp_path)
    assert isinstance(memory.rss_bytes, int)
    assert memory.rss_bytes > 1 << 20
    assert isinstance(memory.peak_bytes, Unknown)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads the real /proc")
def test_this_process_is_read() -> None:
    memory = sense.process_memory()
    assert isinstance(memory.rss_bytes, int)
    assert isinstance(memory.peak_bytes, int)
    assert 0 < memory.rss_bytes <= memory.peak_bytes
    assert 1 <= sense.cpu_threads() <= 4096


def test_the_feature_key_tells_processors_apart(pi5: Path) -> None:
    before = sense.cpu_features_key(pi5)
    assert before == sense.cpu_features_key(pi5)
    tree(pi5, {"proc/cpuinfo": "Features\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"})
    assert sense.cpu_features_key(pi5) != before


def test_the_order_of_features_does_not_matter(pi5: Path) -> None:
    before = sense.cpu_features_key(pi5)
    tree(pi5, {"proc/cpuinfo": "Features\t: asimd fp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"})
    assert sense.cpu_features_key(pi5) == before


def test_the_context_of_a_result_is_flat_and_honest(pi5: Path, tmp_path: Path) -> None:
    found = sense.device_context({"onnxruntime": "1.31.1"}, pi5)
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["memory_mib"] == 8052
    assert found["onnxruntime"] == "1.31.1"
    assert str(found["cpu"]).startswith("unknown: ")
    assert all(isinstance(value, (str, int, float)) for value in found.values())
    empty = sense.device_context(root=tmp_path / "nothing")
    assert str(empty["temperature_c"]).startswith("unknown: ")
