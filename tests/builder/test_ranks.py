"""Two real processes, started by torchrun, train what one process trains with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from builder import checkpoint
from builder.training import joined_ranks
from edge_runtime.errors import BackendError, UsageError
from tests.builder import train_child

pytestmark = pytest.mark.builder

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_as_two(folder):
    command = [sys.executable, *TORCHRUN, "-m", "tests.builder.train_child", str(folder), "--whole"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of both runs, what each lost, and what the ranks of the second printed."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("one", "two"):
        (folder / name).mkdir()
    train_child.train(folder / "one", whole=True)
    printed = run_as_two(folder / "two")
    return folder, *(json.loads((folder / name / "loss.json").read_text()) for name in ("one", "two")), printed


@pytest.mark.parametrize("stage", ["local", "paths"])
def test_two_processes_reach_the_loss_of_one(both, stage):
    _, one, two, _ = both
    # BN layers normalise over each rank's own half of the batch; all else is the same.
    assert two[stage] == pytest.approx(one[stage], rel=0.05)


def test_the_weights_are_those_of_one_process_but_for_bn(both):
    folder, *_ = both
    one, two = (checkpoint.load(folder / name / "paths.pt") for name in ("one", "two"))
    assert one["done"] == two["done"]
    assert one["rng"]["cpu"].equal(two["rng"]["cpu"])  # the same paths were drawn
    distance = sum(float((one["average"][k] - two["average"][k]).pow(2).sum()) for k in one["average"] if "weight" in k)
    size = sum(float(value.pow(2).sum()) for name, value in one["average"].items() if "weight" in name)
    assert distance < 0.01 * size


def test_a_run_of_two_goes_on_as_a_run_of_one(both):
    folder, _, two, _ = both
    (folder / "two" / "loss.json").unlink()
    train_child.train(folder / "two", whole=True)
    assert json.loads((folder / "two" / "loss.json").read_text()) == pytest.approx(two)


def test_no_thread_of_the_group_outlives_it(both):
    # One that does aborts its process now and then, while the interpreter ends.
    lines = [line for line in both[-1].splitlines() if line.startswith("threads:")]
    assert len(lines) == 2
    assert not [line for line in lines if "gloo" in line]


@pytest.mark.parametrize(
    ("device", "variables", "error", "said"),
    [
        ("cpu", {"WORLD_SIZE": ""}, UsageError, "WORLD_SIZE is ''"),
        ("cuda:1", {"WORLD_SIZE": "2"}, UsageError, "one card for 2 processes"),
        ("cuda", {"WORLD_SIZE": "99", "LOCAL_RANK": "98"}, BackendError, "process 98 of this machine"),
        ("cpu", {"WORLD_SIZE": "2"}, BackendError, "cannot join"),
    ],
)
def test_what_torchrun_did_not_set_or_the_machine_does_not_have_is_said(monkeypatch, device, variables, error, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=said), joined_ranks(device):
        pass
