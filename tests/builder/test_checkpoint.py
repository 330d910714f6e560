import pickle
import signal
import subprocess
import sys
import textwrap
import time

import pytest

torch = pytest.importorskip("torch")

from builder import checkpoint
from edge_runtime.errors import StateError

pytestmark = pytest.mark.builder


def test_what_is_saved_is_loaded(tmp_path):
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 7, "names": ["a"], "rng": checkpoint.rng_state()}
    checkpoint.save(tmp_path / "deep" / "run.pt", state)
    found = checkpoint.load(tmp_path / "deep" / "run.pt")
    assert found is not None
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    assert (found["step"], found["names"]) == (7, ["a"])
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["run.pt"]


def test_no_file_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "run.pt") is None


def test_random_numbers_go_on_where_they_were():
    state = checkpoint.rng_state()
    first = torch.rand(3)
    checkpoint.restore_rng(state)
    assert torch.equal(first, torch.rand(3))


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Harmful()), b"PK\x03\x04" + bytes(40)])
def test_a_damaged_or_foreign_file_is_refused_and_runs_nothing(tmp_path, capsys, content):
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(StateError, match=r"run\.pt"):
        checkpoint.load(tmp_path / "run.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"w": torch.rand(100)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(StateError):
        checkpoint.load(path)


def test_a_checkpoint_that_is_not_a_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "run.pt")
    with pytest.raises(StateError, match="not a dict"):
        checkpoint.load(tmp_path / "run.pt")


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "run.pt", {"step": 1})


WRITER = textwrap.dedent(
    """
    import itertools, sys
    from pathlib import Path
    from builder.files import write_atomically
    for step in itertools.count():
        write_atomically(Path(sys.argv[1]), bytes([step % 256]) * 1_000_000)
        print(step, flush=True)
    """
)


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.003, 0.007])
def test_kill_at_any_moment_leaves_the_old_or_the_new_file(tmp_path, delay_s):
    path = tmp_path / "run.pt"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 3:
                break
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    content = path.read_bytes()
    assert len(content) == 1_000_000
    assert len(set(content)) == 1
    assert content[0] >= 3
