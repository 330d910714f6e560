import io
import json

import pytest

from builder.runlog import RunLog
from edge_runtime.errors import StateError

pytestmark = pytest.mark.builder


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_json_lines_with_time_and_figures(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    with RunLog(path) as log:
        log.event("fit.epoch", {"epoch": 1, "loss": 0.5, "word": "é"})
    (line,) = lines(path)
    assert line["event"] == "fit.epoch"
    assert (line["epoch"], line["loss"], line["word"]) == (1, 0.5, "é")
    assert line["elapsed_s"] >= 0
    assert line["time"].endswith("+00:00")


def test_a_second_run_appends(tmp_path):
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with RunLog(path) as log:
            log.event("begin")
    assert len(lines(path)) == 2


def test_numbers_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.event("fit.epoch", {"loss": float("nan"), "rate": float("inf")})
    assert lines(path)[0]["loss"] is None
    assert lines(path)[0]["rate"] is None


def test_a_step_logs_its_seconds_and_figures(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log, log.step("oracle") as figures:
        figures["accuracy"] = 0.9
    begin, end = lines(path)
    assert begin["event"] == "oracle.begin"
    assert (end["event"], end["accuracy"]) == ("oracle.end", 0.9)
    assert end["seconds"] >= 0


def test_a_step_that_fails_is_logged_and_raises(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log, pytest.raises(ValueError, match="no"), log.step("oracle"):
        raise ValueError("no")
    assert lines(path)[-1]["event"] == "oracle.failed"
    assert "ValueError: no" in lines(path)[-1]["error"]


def test_the_bar_is_drawn_on_a_terminal_with_the_time_left():
    stream = Terminal()
    with RunLog(stream=stream) as log, log.progress("fit", 4) as bar:
        for _ in range(4):
            bar.advance(note="loss 0.1")
    text = stream.getvalue()
    assert "4/4" in text
    assert "left" in text
    assert "loss 0.1" in text
    assert text.endswith("\n")


def test_nothing_is_drawn_where_there_is_no_terminal():
    stream = io.StringIO()
    with RunLog(stream=stream) as log, log.progress("fit", 2) as bar:
        bar.advance(2)
        log.say("done")
    assert stream.getvalue() == ""


def test_a_log_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        RunLog(tmp_path / "file" / "log.jsonl")
