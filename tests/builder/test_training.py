import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from builder import checkpoint
from builder.errors import BuildError
from builder.runlog import RunLog
from builder.training import Compute, LoopConfig, Ranks, identity_of, run_loop
from builder.training.guard import JumpGuard
from edge_runtime.errors import BackendError, StateError, UsageError
from tests.builder import train_child

pytestmark = pytest.mark.builder

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20


def data(epoch, first, broken=()):
    for number in range(first, STEPS):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(STEPS * epoch + number))
        y = (x.sum(1) > 0).long()
        yield (x * math.nan if (epoch, number) in broken else x), y


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def trained(model, config, source=data, saved=None, log=None, **options):
    def step(batch, progress, backward):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        backward(loss)
        return loss.item()

    model.train()
    return run_loop("fit", model, "none", config, source, step, saved, log or RunLog(), **options)


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def plain(value):
    """Tensors as lists, so that whole checkpoints can be compared; NaN equals NaN."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return repr(value)


# -- a killed process ----------------------------------------------------------------------------------------------


def kill_child(folder, batches):
    """Start the training as a process of its own and kill it -9 when it asks for so many batches."""
    command = [sys.executable, "-m", "tests.builder.train_child", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for count, _ in enumerate(child.stdout, start=1):
            if count == batches:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL


def test_a_process_that_is_killed_twice_ends_with_the_same_checkpoints(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    train_child.train(whole, whole=False)
    batches = capsys.readouterr().out.count("batch")
    rng = random.Random(11)
    kills = [rng.randrange(8, batches // 2) for _ in range(2)]
    for kill_at in kills:
        kill_child(cut, kill_at)
    train_child.train(cut, whole=False)
    repeated = capsys.readouterr().out.count("batch") + sum(kills) - batches
    assert repeated < 8 * len(kills), "a resumed run repeats a few steps only"
    for name in ("local.pt", "paths.pt"):
        wanted, found = (checkpoint.load(folder / name) for folder in (whole, cut))
        assert wanted["jumps"] == 1
        assert plain(wanted) == plain(found), name
    assert (whole / "loss.json").read_text() == (cut / "loss.json").read_text()


# -- the loop ------------------------------------------------------------------------------------------------------


class CutError(Exception):
    pass


@pytest.mark.parametrize("cut_at", [3, 17, 39])
def test_a_run_cut_between_two_steps_ends_with_the_same_bits(tmp_path, monkeypatch, cut_at):
    monkeypatch.setattr("builder.training.keeper.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr("builder.training.keeper.SAVING_SHARE", math.inf)
    monkeypatch.setattr("builder.training.keeper.SNAPSHOT_EVERY", 2)
    config = LoopConfig(2, STEPS, 1e-2)

    def cut(epoch, first):
        for number, batch in enumerate(data(epoch, first), start=epoch * STEPS + first):
            if number == cut_at:
                raise CutError
            yield batch

    whole, resumed = network(), network(seed=5)
    trained(whole, config)
    with pytest.raises(CutError):
        trained(network(), config, cut, tmp_path / "run.pt")
    trained(resumed, config, saved=tmp_path / "run.pt")
    if cut_at > 4:
        assert same(whole, resumed)
    assert (tmp_path / "run.pt").exists()


def test_an_interrupted_run_writes_its_last_good_state(tmp_path):
    def interrupted(epoch, first):
        for number, batch in enumerate(data(epoch, first), start=epoch * STEPS + first):
            if number == 37:
                raise KeyboardInterrupt
            yield batch

    whole, resumed, config = network(), network(), LoopConfig(2, STEPS, 1e-2)
    trained(whole, config)
    with pytest.raises(KeyboardInterrupt):
        trained(network(), config, interrupted, tmp_path / "run.pt")
    assert checkpoint.load(tmp_path / "run.pt")["done"] == 16
    trained(resumed, config, saved=tmp_path / "run.pt")
    assert same(whole, resumed)


def test_the_result_is_the_moving_average_of_the_weights():
    config = LoopConfig(2, STEPS, 1e-2, ema_decay=0.9)
    seen, model = [], network()

    def watched(epoch, first):
        for batch in data(epoch, first):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            yield batch

    plain_model = network()
    trained(model, config, watched)
    trained(plain_model, LoopConfig(2, STEPS, 1e-2, ema_decay=None))
    weights = [state["0.weight"] for state in seen[1:]] + [plain_model.state_dict()["0.weight"]]
    average = seen[0]["0.weight"].clone()
    for done, weight in enumerate(weights, start=1):
        average = torch.lerp(average, weight, 1 - min(0.9, (1 + done) / (10 + done)))
    assert torch.allclose(model.state_dict()["0.weight"], average, atol=1e-6)
    assert not torch.equal(model.state_dict()["0.weight"], plain_model.state_dict()["0.weight"])


def test_a_broken_batch_is_left_behind_and_logged(tmp_path):
    model = network()

    def broken(epoch, first):
        return data(epoch, first, broken={(1, 5)})

    with RunLog(tmp_path / "log.jsonl") as log:
        loss = trained(model, LoopConfig(3, STEPS, 1e-2), broken, log=log)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (jump,) = [event for event in events if event["event"] == "fit.jump"]
    assert (jump["step"], jump["back_to"], jump["jumps"]) == (STEPS + 5, 0, 1)
    assert math.isfinite(loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_run_that_only_diverges_ends_with_a_clear_error():
    def broken(epoch, first):
        return ((x * math.nan, y) for x, y in data(epoch, first))

    with pytest.raises(BuildError, match="diverges") as caught:
        trained(network(), LoopConfig(3, STEPS, 1e-2), broken)
    assert "learning rate" in caught.value.hint


def test_a_rate_that_is_far_too_high_is_lowered_until_it_trains(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def step(batch, progress, backward):
        loss = (model(batch[0]) - batch[0].sum(1, keepdim=True)).pow(2).mean()
        backward(loss * 1.0)
        return loss.item() * (100 if 30 < len(seen) < 60 else 1)

    seen = []

    def source(epoch, first):
        for batch in data(epoch, first):
            seen.append(epoch)
            yield batch

    with RunLog(tmp_path / "log.jsonl") as log:
        run_loop("fit", model, "none", LoopConfig(4, STEPS, 1e-2), source, step, None, log)
    assert '"fit.jump"' in (tmp_path / "log.jsonl").read_text()
    assert max(seen) >= 4, "another part of the data is used after a jump"


def test_the_guard_sees_jumps_but_not_noise():
    noise = random.Random(0)
    guard = JumpGuard()
    assert not any(guard.jumped(3.0 * 0.99**step * noise.lognormvariate(0, 1)) for step in range(600))
    assert any(guard.jumped(40.0) for _ in range(16))
    assert JumpGuard().jumped(math.inf)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trained(network(), LoopConfig(1, STEPS, 1e-2), saved=tmp_path / "run.pt")
    with pytest.raises(StateError, match="does not belong"):
        run_loop("fit", network(), "other", LoopConfig(1, STEPS, 1e-2), data, None, tmp_path / "run.pt", RunLog())
    assert identity_of(1, network()) != identity_of(2, network())
    assert identity_of(1, network()) != identity_of(1, network(seed=1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_and_keeps_float32_weights(tmp_path, precision):
    model = network()
    loss = trained(model, LoopConfig(6, STEPS, 2e-2), saved=tmp_path / "run.pt", compute=Compute(precision=precision))
    assert loss < 0.4
    kept = checkpoint.load(tmp_path / "run.pt")
    assert kept["precision"] == precision
    assert bool(kept["scaler"]) == (precision == "fp16")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("fast", ["fp32", "bf16"])
def test_auto_measures_once_and_changes_nothing_else(tmp_path, monkeypatch, fast):
    def measured(compute, step, steps):
        step()
        return fast

    monkeypatch.setattr("builder.training.loop.faster_precision", measured)
    auto, fixed, config = network(), network(), LoopConfig(1, STEPS, 1e-2)
    trained(auto, config, compute=Compute(precision="auto"), saved=tmp_path / "run.pt")
    trained(fixed, config, compute=Compute(precision=fast))
    assert same(auto, fixed)
    monkeypatch.setattr("builder.training.loop.faster_precision", None)  # a resumed run does not ask again
    trained(network(), config, compute=Compute(precision="auto"), saved=tmp_path / "run.pt")


def test_what_cannot_be_meant_is_refused():
    for changes in ({"epochs": 0}, {"learning_rate": math.nan}, {"ema_decay": 1.0}, {"clip_norm": 0.0}, {"seed": -1}):
        with pytest.raises(UsageError):
            LoopConfig(**({"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1.0} | changes))
    for changes in ({"device": "abacus"}, {"precision": "fp8"}, {"device": "meta"}):
        with pytest.raises(UsageError):
            Compute(**changes)
    with pytest.raises(UsageError):
        Ranks(2, 2)
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="CUDA"):
            Compute(device="cuda")
