"""The command as people run it: in a process of its own, on a tiny bundle."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_runtime import sense
from edge_runtime.errors import ResourceError
from edge_runtime.measure import machine_lock
from tests.support.tiny import CLASSES, tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sysconfig.get_path("scripts")) / "nnf-edge"
COMMAND = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "edge_runtime.cli"]
SIDE = 16
OTHERS = "the other benchmark"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.nnf"
    tiny_bundle(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 64 random labelled images."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    frames = rng.integers(0, 256, (64, SIDE, SIDE, 3), np.uint8)
    np.savez(path, images=frames, labels=rng.integers(0, len(CLASSES), 64))
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home and a state of its own, so that nothing else on this machine is touched."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "XDG_STATE_HOME")}
    return {
        **kept,
        "HOME": str(tmp_path),
        "NNF_EDGE_STATE": str(tmp_path / "state"),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }


class Ran:
    """A finished command."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def document(self) -> Any:
        return json.loads(self.out)

    def failed(self, code: int, *words: str) -> None:
        """The error is short, says `words`, and shows no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        for word in ("nnf-edge: ", *words):
            assert word in self.err


@pytest.fixture
def edge(environment: dict[str, str], tmp_path: Path) -> Any:
    def run(*words: object, **more: str) -> Ran:
        command = [*COMMAND, *map(str, words)]
        env = {**environment, **more}
        ran = Ran(subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300))
        if ran.code == 6 and OTHERS not in ran.err:
            pytest.skip(f"this machine measures or trains something else: {ran.err.strip()}")
        return ran

    return run


def test_without_a_verb_it_says_where_to_start(edge: Any) -> None:
    ran = edge()
    assert ran.code == 0
    assert "nnf-edge demo" in ran.out
    for verb in ("demo", "inspect", "verify", "benchmark", "adapt"):
        assert re.search(rf"^  {verb} +\S", ran.out, re.MULTILINE)
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("verb", ["demo", "inspect", "verify", "benchmark", "adapt"])
def test_help_of_every_verb_fits_a_terminal(edge: Any, verb: str) -> None:
    ran = edge(verb, "--help", COLUMNS="80")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["inspect"],
        ["inspect", "a.nnf", "--speed", "9"],
        ["benchmark", "{bundle}", "--subnets", "9-9-9"],
        ["benchmark", "{bundle}", "--budget-ms", "-1"],
        ["benchmark", "{bundle}", "--threads", "0"],
        ["adapt", "{bundle}", "--data", "{images}", "--seed", "-1"],
        ["adapt", "{bundle}", "--data", "{images}", "--budget", "fast"],
        ["adapt", "{bundle}", "--data", "/nowhere"],
        ["demo", "--bundle", "{bundle}"],
        ["demo", "--seconds", "inf"],
        ["demo", "--seconds", "nan"],
        ["demo", "--deadline-ms", "-5"],
        ["demo", "--deadline-ms", "0"],
        ["demo", "--deadline-ms", "nan"],
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(edge: Any, bundle: Path, images: Path, words: list[str]) -> None:
    edge(*[word.format(bundle=bundle, images=images) for word in words]).failed(2)


def test_inspect_shows_gates_and_loads_no_native_library(edge: Any, bundle: Path, environment: dict[str, str]) -> None:
    ran = edge("inspect", bundle)
    assert ran.code == 0
    assert "30 in 3 gates" in ran.out
    assert "merged2 (over 2)" in ran.out
    assert ran.out.isascii()
    program = (
        "import sys; from edge_runtime.cli import main; main(['inspect', sys.argv[1]]);"
        "sys.exit(str([n for n in ('numpy', 'onnx', 'onnxruntime', 'psutil') if n in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stderr.strip() == "[]"


def test_export_writes_a_plain_model_of_one_subnet(edge: Any, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "subnet.onnx"
    ran = edge("export", bundle, "--gates", "1-1-1", "-o", out)
    assert ran.code == 0
    assert "subnet 1-1-1" in ran.out
    assert b"1-1-1" in out.read_bytes()
    edge("export", bundle, "--gates", "9-1-1", "-o", out).failed(2, "9")
    edge("export", bundle).failed(2, "-o")
    edge("export", bundle, "-o", tmp_path / "no" / "x.onnx").failed(74, "cannot be written")


def test_json_on_stdout_is_the_only_thing_there(edge: Any, bundle: Path) -> None:
    document = edge("inspect", bundle, "--json", "-").document()
    assert document["schema"] == "nnf-edge/inspect/1"
    assert document["command"][:2] == ["nnf-edge", "inspect"]
    assert {"python", "numpy"} <= document["versions"].keys()
    assert document["result"]["subnets"] == 30


def test_json_in_a_file_leaves_the_text_on_stdout(edge: Any, bundle: Path, tmp_path: Path) -> None:
    ran = edge("verify", bundle, "--json", tmp_path / "result.json")
    assert ran.code == 0
    assert "ok" in ran.out
    assert json.loads((tmp_path / "result.json").read_text())["result"]["ok"] is True
    edge("verify", bundle, "--json", tmp_path / "no" / "result.json").failed(74, "cannot be written")


@pytest.mark.parametrize("verb", ["inspect", "verify", "benchmark", "adapt"])
def test_a_bundle_that_is_missing_or_damaged_is_refused(
    edge: Any, bundle: Path, images: Path, tmp_path: Path, verb: str
) -> None:
    more = ["--data", images] if verb == "adapt" else []
    edge(verb, tmp_path / "none.nnf", *more).failed(4, "none.nnf")
    damaged = tmp_path / "damaged.nnf"
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    edge(verb, damaged, *more).failed(4, "weights.bin")


def test_benchmark_withholds_what_it_cannot_state(edge: Any, bundle: Path) -> None:
    ran = edge("benchmark", bundle, "--subnets", "full,2-2-2", "--runs", 140)
    assert ran.code == 0, ran.err
    assert "n/a (needs 662)" in ran.out
    assert "n/a (needs 130)" not in ran.out
    assert re.search(r"^  subnet +p50 +p90 +p95 +p99 +spread +fps +MiB$", ran.out, re.MULTILINE)
    assert re.search(r"first run \d", ran.out)
    assert max(map(len, ran.out.splitlines())) <= 80


def test_benchmark_writes_every_sample_and_its_circumstances(edge: Any, bundle: Path) -> None:
    document = edge("benchmark", bundle, "--runs", 70, "--json", "-").document()
    assert document["schema"] == "nnf-edge/benchmark/1"
    assert {"cpu", "cores", "kernel", "onnxruntime"} <= document["device"].keys()
    result = document["result"]
    assert result["init_ms"] > 0
    assert result["first_run_ms"] > 0
    assert result["subnets"][0]["name"] == "full"
    assert len(result["subnets"]) > 2
    for subnet in result["subnets"]:
        assert len(subnet["latencies_ns"]) == 70
        assert subnet["p90_ms"] is not None
        assert subnet["p99_ms"] is None
        assert 10 << 20 < subnet["predicted_memory_bytes"] < 1 << 30


def test_benchmark_exits_3_when_the_budget_is_not_met(edge: Any, bundle: Path) -> None:
    words = ["benchmark", bundle, "--subnets", "full,2-2-2", "--runs", 140]
    assert edge(*words, "--budget-ms", 60_000).code == 0
    missed = edge(*words, "--budget-ms", 0.000_001)
    missed.failed(3, "no measured subnet")
    assert "full" in missed.out


def test_benchmark_does_not_run_beside_another(edge: Any, bundle: Path) -> None:
    try:
        with machine_lock(OTHERS):
            edge("benchmark", bundle, "--runs", 1).failed(6, OTHERS)
    except ResourceError as error:
        pytest.skip(f"this machine measures or trains something else: {error}")


def test_adapt_chooses_explains_and_reports(edge: Any, bundle: Path, images: Path, tmp_path: Path) -> None:
    words = ["adapt", bundle, "--data", images, "--budget", "1000", "--explain"]
    ran = edge(*words, "--json", tmp_path / "adapt.json")
    assert ran.code == 0, ran.err
    assert "chosen" in ran.out
    assert "64 labelled images" in ran.out
    result = json.loads((tmp_path / "adapt.json").read_text())["result"]
    assert result["phase"] == "done"
    assert result["active"] in ran.out
    assert {candidate["fate"] for candidate in result["candidates"]} & {"chosen", "kept"}


def _noise(folder: Path, count: int, brightest: int) -> Path:
    """A folder of images that are noise up to a brightness."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        Image.fromarray(rng.integers(0, brightest + 1, (40, 30, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_adapt_sets_what_was_chosen_beside_the_full_subnet(edge: Any, bundle: Path, images: Path) -> None:
    ran = edge("adapt", bundle, "--data", images, "--budget", "1000", "--memory-mib", "4000")
    assert ran.code == 0, ran.err
    table = re.findall(r"^  [\d-]+ +([\d.]+) +[\d.]+ +[\d.]+ to [\d.]+  (.*)$", ran.out, re.MULTILINE)
    latencies_ms = [float(latency_ms) for latency_ms, _ in table]
    assert latencies_ms == sorted(latencies_ms)
    assert [fate.endswith("◄") for _, fate in table].count(True) == 1
    assert re.search(r"^ {8}p95 [\d.]+ ms, full [\d.]+; accuracy [\d.]+, full [\d.]+$", ran.out, re.MULTILINE)
    assert re.search(r"^ {8}peak memory \d+ MiB$", ran.out, re.MULTILINE)
    assert "budget 1000 ms, 4000 MiB" in ran.out


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--budget", "", "budget '' is not understood"),
        ("--budget", "6000%", "limits nothing"),
        ("--data", "", "the data path is empty"),
        ("--memory-mib", "-1", "memory_mib"),
    ],
)
def test_adapt_refuses_what_cannot_be_meant(
    edge: Any, bundle: Path, images: Path, option: str, value: str, word: str
) -> None:
    edge("adapt", bundle, "--data", images, option, value).failed(2, word)


def test_adapt_reads_a_folder_without_labels(edge: Any, bundle: Path, tmp_path: Path) -> None:
    folder = _noise(tmp_path / "photos", count=24, brightest=255)
    ran = edge("adapt", bundle, "--data", folder, "--budget", "1000")
    assert ran.code == 0, ran.err
    assert "24 unlabelled images" in ran.out


def test_adapt_says_what_its_budget_is_a_share_of(edge: Any, bundle: Path, images: Path, tmp_path: Path) -> None:
    ran = edge("adapt", bundle, "--data", images, "--budget", "95%", "--json", tmp_path / "adapt.json")
    assert ran.code == 0, ran.err
    result = json.loads((tmp_path / "adapt.json").read_text())["result"]
    assert f"95% of the full subnet's {result['full_latency_ms']:.2f} ms" in ran.out
    assert f"= {result['limit_ms']:.2f} ms" in ran.out


def test_adapt_refuses_an_energy_budget_where_no_rail_can_be_read(edge: Any, bundle: Path, images: Path) -> None:
    if not isinstance(sense.find_rail(), sense.Unknown):
        pytest.skip("this machine has a power rail")
    edge("adapt", bundle, "--data", images, "--energy-mj", "30").failed(2, "limit the latency instead")
    edge("adapt", bundle, "--data", images, "--energy-mj", "-3").failed(2, "energy_mj")


def test_adapt_says_where_images_tell_little(edge: Any, bundle: Path, tmp_path: Path) -> None:
    folder = _noise(tmp_path / "black", count=40, brightest=31)
    (folder / "0.png").write_bytes(b"cut off")
    ran = edge("adapt", bundle, "--data", folder, "--budget", "1000", "--explain")
    assert ran.code == 0, ran.err
    assert "names hardly more than one class for these images" in ran.err
    assert "left out: image" in ran.err
    assert "0.png" in ran.err
    for number in range(2, 40):
        (folder / f"{number}.png").unlink()
    (folder / "0.png").unlink()
    assert "note: 1 images tell little" in edge("adapt", bundle, "--data", folder, "--budget", "1000").err


def test_a_result_that_could_not_be_written_is_refused_before_the_work(edge: Any, bundle: Path, images: Path) -> None:
    ran = edge("adapt", bundle, "--data", images, "--json", "/nowhere/at/all.json")
    ran.failed(74, "/nowhere/at/all.json", "folder that exists")
    assert ran.out == ""


def test_adapt_names_the_fastest_subnet_when_nothing_fits(edge: Any, bundle: Path, images: Path) -> None:
    ran = edge("adapt", bundle, "--data", images, "--budget", "0.000001", "--json", "-")
    ran.failed(3, "fastest", "ms")
    result = ran.document()["result"]
    assert (result["phase"], result["budget"]["latency_ms"]) == ("failed", 0.000001)
    assert result["fastest"]["gates"] in ran.err
    assert f"{result['fastest']['latency_ms']:.2f} ms" in ran.err


def test_adapt_refuses_data_that_it_cannot_use(edge: Any, bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    edge("adapt", bundle, "--data", empty).failed(2, "no images")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "photo.jpg").write_bytes(b"not an image")
    edge("adapt", bundle, "--data", broken).failed(2, "photo.jpg")
    odd = tmp_path / "odd.npz"
    np.savez(odd, images=np.zeros((4, SIDE, SIDE, 3), np.uint8), labels=np.zeros(3, np.int64))
    edge("adapt", bundle, "--data", odd).failed(2, "labels")


def test_a_named_state_directory_must_be_writable(edge: Any, bundle: Path, images: Path) -> None:
    edge("adapt", bundle, "--data", images, "--state-dir", "/proc/nnf").failed(74, "/proc/nnf")


def test_an_unwritable_default_state_directory_is_only_said(edge: Any, bundle: Path, images: Path) -> None:
    ran = edge("adapt", bundle, "--data", images, NNF_EDGE_STATE="", XDG_STATE_HOME="/proc")
    assert ran.code == 0, ran.err
    assert "running without a cache" in ran.err


def _demo(bundle: Path, images: Path, seconds: float) -> list[str]:
    words = ["demo", "--bundle", bundle, "--data", images, "--seconds", seconds, "--workers", 1]
    return [*COMMAND, *map(str, words)]


def test_demo_races_both_models_on_the_same_frames(
    bundle: Path, images: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [*_demo(bundle, images, 3), "--json", str(tmp_path / "demo.json")]
    ran = Ran(subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300))
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert max(map(len, ran.out.splitlines())) <= 80
    result = json.loads((tmp_path / "demo.json").read_text())["result"]
    assert result["fixed"]["frames"] == result["edge"]["frames"] > 0
    assert [phase["phase"] for phase in result["edge"]["phases"]] == ["idle", "busy", "idle again"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_stopped_in_the_middle_leaves_no_worker(
    bundle: Path, images: Path, environment: dict[str, str], tmp_path: Path, number: int, code: int
) -> None:
    with subprocess.Popen(
        _demo(bundle, images, 600),
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "BUSY" in line or "idle" in line:
                break
        workers = _children(process.pid)
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(timeout=60) == code
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


def test_ctrl_c_while_the_command_is_still_being_imported_ends_it_as_any_time_later(
    environment: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'edge_runtime.cli.demo':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    done = subprocess.run(
        [*COMMAND, "inspect", str(bundle)],
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=_heed_interrupts,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def _heed_interrupts() -> None:
    """A shell starts its background jobs with SIGINT ignored, and this run of the tests may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _children(pid: int) -> list[int]:
    """Direct children, waited for briefly: the busy phase may just begin."""
    until = time.monotonic() + 5
    path = Path(f"/proc/{pid}/task/{pid}/children")
    while time.monotonic() < until:
        if found := [int(word) for word in path.read_text().split()]:
            return found
        time.sleep(0.05)
    return []


def test_colour_and_progress_are_for_terminals_only(
    edge: Any, bundle: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    words = ["benchmark", str(bundle), "--runs", "5"]
    piped = edge(*words)
    assert "\x1b" not in piped.out
    assert "\r" not in piped.err
    assert "\x1b[" in _on_terminal([*COMMAND, *words], environment, tmp_path)
    assert "\x1b[" not in _on_terminal([*COMMAND, *words], {**environment, "NO_COLOR": "1"}, tmp_path)
    assert "\x1b[" not in _on_terminal([*COMMAND, *words, "--no-color"], environment, tmp_path)


def _on_terminal(command: list[str], environment: dict[str, str], folder: Path) -> str:
    """What the command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    env = {**environment, "TERM": "xterm"}
    with subprocess.Popen(command, env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the terminal closes with its last writer
            pass
        process.wait(timeout=120)
    os.close(ours)
    return shown.decode()


def test_a_reader_that_leaves_is_no_error(environment: dict[str, str], bundle: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "inspect", str(bundle), "--json", "-"],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # empty: as it is where a user sets nothing
def test_a_full_disk_is_an_input_output_error(
    environment: dict[str, str], bundle: Path, tmp_path: Path, unbuffered: str
) -> None:
    env = environment | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "inspect", str(bundle)]
        done = subprocess.run(command, env=env, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 74
    assert "No space left" in done.stderr


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_program_without_an_output_says_nothing_there(environment: dict[str, str], bundle: Path, closed: str) -> None:
    for path, code in ((bundle, 0), (bundle.with_name("nothing.nnf"), 4)):
        command = ["sh", "-c", f'"$@" {closed}>&-', "sh", *COMMAND, "inspect", str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == code
        assert "Traceback" not in done.stdout + done.stderr
