"""The parts of the command line that need no process of their own, and the workers that must not outlive theirs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adaptation.status import Fate
from edge_runtime.cli.adapt_view import FATES
from edge_runtime.cli.console import Console
from edge_runtime.cli.demo import _verdict
from edge_runtime.cli.documents import document, write_document
from edge_runtime.cli.pressure import MAX_WORKERS, Pressure, confined
from edge_runtime.cli.tables import Column, render_table, shorten
from edge_runtime.command import run_command

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import sys, time
from edge_runtime.cli.pressure import Pressure
pressure = Pressure(2, 120)
pressure.start()
print(*[process.pid for process in pressure._running], flush=True)
time.sleep(120)
"""


def _console(*, blocks: bool = True) -> Console:
    return Console(io.StringIO(), io.StringIO(), blocks=blocks)


@given(st.floats(allow_nan=False), st.integers(1, 40), st.booleans())
def test_a_bar_is_as_wide_as_asked(fraction: float, width: int, blocks: bool) -> None:
    bar = _console(blocks=blocks).bar(fraction, width)
    assert len(bar) == width
    assert blocks or bar.isascii()


@given(st.text(max_size=60), st.integers(5, 40))
def test_shortened_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert len(short) <= width
    assert short == text or (short[0] == text[0] and short[-1] == text[-1] and ".." in short)


def test_a_table_aligns_numbers_right_and_words_left() -> None:
    lines = render_table(_console(), [Column("name", "left"), Column("ms")], [["full", "10.25"], ["b", "3.50"]])
    assert lines == ["  name     ms", "  full  10.25", "  b      3.50"]


def test_a_console_that_gave_stdout_to_json_prints_no_result() -> None:
    console = _console()
    console.silent = True
    console.line("result")
    console.note("why")
    assert console.out.getvalue() == ""  # type: ignore[attr-defined]
    assert console.err.getvalue() == "why\n"  # type: ignore[attr-defined]


def test_a_document_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_document(str(target), document("test", {"value": float("nan")}, {}, []))
    assert target.read_text() == "old"
    write_document(str(target), document("test", {"value": 1}, {"cores": 2}, ["test"]))
    body = json.loads(target.read_text())
    assert (body["schema"], body["result"], body["device"]) == ("nnf-edge/test/1", {"value": 1}, {"cores": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_too_little_memory_is_a_limit_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (MemoryError("Unable to allocate 9 TiB"), MemoryError()):
        with mock.patch("signal.signal"):
            assert run_command("nnf-edge", mock.Mock(side_effect=error), []) == 6
    assert "nnf-edge: out of memory: Unable to allocate 9 TiB\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit("the configuration is broken"), 1, "program: the configuration is broken"),
        (SystemExit(7), 7, ""),
        (SystemExit(None), 0, ""),
        (OSError(28, "No space left on device", "/x"), 74, "program: No space left on device: /x"),
        (KeyboardInterrupt(), 130, "enough; it goes on later"),
        (ZeroDivisionError("by zero"), 1, "this is a fault of program"),
    ],
)
def test_every_ending_is_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    with mock.patch("signal.signal"):
        ending = run_command("program", mock.Mock(side_effect=error), [], interrupted="enough; it goes on later")
    assert ending == code
    assert said in capsys.readouterr().err


def test_workers_are_bounded_and_gone_after_the_block() -> None:
    assert Pressure(10_000, 1).workers == MAX_WORKERS
    pressure, pids = Pressure(2, 60), []

    def interrupted() -> None:
        with pressure:
            pressure.start()
            pressure.start()
            pids.extend(process.pid for process in pressure._running)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 2
    assert not pressure.on
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_workers_end_when_their_parent_was_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    until = time.monotonic() + 30
    while time.monotonic() < until and any(_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert [pid for pid in pids if _alive(pid)] == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system knows no affinity")
def test_confinement_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)
    with confined(1) as cores:
        assert cores == len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("fixed", "edge", "words"),
    [(40, 3, "missed 3"), (3, 40, "did not help"), (5, 5, "did not help"), (0, 4, "did not help"), (0, 0, "Neither")],
)
def test_the_closing_sentence_is_true_in_every_case(fixed: int, edge: int, words: str) -> None:
    assert words in _verdict(fixed, edge, 2)


def test_the_legend_of_adapt_explains_every_fate() -> None:
    assert set(FATES) == set(get_args(Fate))
