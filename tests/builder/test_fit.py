import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from builder import checkpoint
from builder.data import Augmentation, ImageSet
from builder.fit import FitConfig, accuracy, fit, logits_of
from builder.runlog import RunLog
from edge_runtime.errors import StateError, UsageError

pytestmark = pytest.mark.builder


def coloured(count, seed=0):
    """Noise that is brighter in the channel of its label: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 120, (count, 16, 16, 3))
    images[np.arange(count), :, :, labels] += 100
    return ImageSet(images.astype(np.uint8), labels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def config(**changes):
    return FitConfig(
        **({"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "augmentation": Augmentation()} | changes)
    )


def test_a_fit_learns():
    model, log = network(), RunLog()
    figures = fit(model, coloured(128), config(epochs=6), log=log)
    assert accuracy(model, coloured(64, seed=1)) > 0.9
    assert figures["steps"] == 48
    assert not model.training


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_run_that_is_cut_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch, ema_decay):
    monkeypatch.setattr("builder.training.keeper.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr("builder.training.keeper.SAVING_SHARE", math.inf)
    monkeypatch.setattr("builder.training.keeper.SNAPSHOT_EVERY", 1)
    settings = config(ema_decay=ema_decay)
    whole = network()
    fit(whole, coloured(70), settings, log=RunLog())

    class PowerCutError(Exception):
        pass

    save, saves = checkpoint.save, []

    def save_and_die(path, state):
        save(path, state)
        saves.append(state["done"])
        if state["done"] % 3 == 0:
            raise PowerCutError

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    for _ in range(20):
        resumed = network()
        try:
            fit(resumed, coloured(70), settings, log=RunLog(), checkpoint_path=tmp_path / "fit.pt")
            break
        except PowerCutError:
            torch.manual_seed(99)
            if saves[-1] == 12:
                monkeypatch.setattr(checkpoint, "save", save)
    else:
        pytest.fail("the run never ended")
    assert len(saves) > 3
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    kept = tmp_path / "fit.pt"
    fit(network(), coloured(32), config(epochs=1), log=RunLog(), checkpoint_path=kept)
    with pytest.raises(StateError, match="other settings"):
        fit(network(), coloured(32), config(epochs=2), log=RunLog(), checkpoint_path=kept)


def test_a_finished_checkpoint_gives_the_trained_network_at_once(tmp_path):
    kept, first, again = tmp_path / "fit.pt", network(), network()
    fit(first, coloured(32), config(epochs=1), log=RunLog(), checkpoint_path=kept)
    fit(again, coloured(32), config(epochs=1), log=RunLog(), checkpoint_path=kept)
    assert torch.equal(logits_of(first, coloured(8)), logits_of(again, coloured(8)))


def test_the_validation_accuracy_is_logged_per_epoch(tmp_path):
    with RunLog(tmp_path / "log.jsonl") as log:
        fit(network(), coloured(32), config(epochs=2, ema_decay=0.5), log=log, validation=coloured(16))
    assert (tmp_path / "log.jsonl").read_text().count("validation_accuracy") == 2


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 0}, {"learning_rate": math.nan}, {"ema_decay": 1.0}, {"label_smoothing": 1.0}, {"batch_size": 1}],
)
def test_settings_that_cannot_be_meant_are_refused(changes):
    with pytest.raises(UsageError):
        config(**changes)
