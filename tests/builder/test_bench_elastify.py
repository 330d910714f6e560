"""The parts of tools/bench/elastify.py that a wrong figure could come from; the bench itself takes hours."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import elastify_arms
import elastify_pace
from elastify_arms import BUNDLE, FIGURES, Arm, train_arm
from elastify_data import PER_CLASS, load_images
from elastify_recipes import Training, adaptivenet_stages, purpose_stages
from elastify_supernets import adaptivenet, in_pieces, sliced
from elastify_trained import TRAINED

from builder.data import ImageSet, source_of
from builder.elastify import elastify
from builder.runlog import RunLog
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError, StateError
from tests.builder.nets import BottleneckNet, images, made
from tests.builder.tiny_images import CLASSES, TRAIN_EACH, write_images

pytestmark = pytest.mark.builder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ours():
    return elastify(made(BottleneckNet), images(16, seed=1))


def labelled_source():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3)).astype(np.uint8)
    return source_of(ImageSet(pixels, np.arange(32) % 5, (0.5,) * 3, (0.5,) * 3), 8)


def test_splits_keep_images_of_every_class_apart(data):
    found = load_images(data, seed=0)
    parts = {name: getattr(found, name) for name in ("train", "search", "validation")}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": CLASSES * (TRAIN_EACH - sum(PER_CLASS.values())),
        **{name: CLASSES * count for name, count in PER_CLASS.items()},
    }
    colours = np.concatenate([part.images[:, 48, 48, :2] for part in parts.values()])
    assert len(np.unique(np.round(colours / (8, 60)), axis=0)) == CLASSES * TRAIN_EACH
    for part in (*parts.values(), found.test):
        assert (np.round(part.images[:, 48, 48, 1] / 60).astype(int) == part.labels).all()


def test_a_missing_data_folder_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(InputError, match="--data"):
        load_images(tmp_path, seed=0)
    command = [sys.executable, str(BENCH / "elastify.py"), "oracle", "--work", str(tmp_path), "--data", str(tmp_path)]
    paths = os.environ | {"PYTHONPATH": str(BENCH.parents[1])}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_adaptivenet_has_our_space_made_of_first_channels(ours):
    theirs = adaptivenet(ours)
    for own, other in zip(ours.space.groups, theirs.space.groups, strict=True):
        assert own.spans == other.spans
        assert "skip" not in other.labels
    unit = next(i for i, group in enumerate(theirs.space.groups) if "narrow50" in group.labels)
    original = [p for p in theirs.alternative(unit, 0).parameters() if p.ndim == 4]
    copied = theirs.alternative(unit, theirs.space.groups[unit].labels.index("narrow50"))
    kernels = [p for p in copied.parameters() if p.ndim == 4]
    assert torch.equal(kernels[0], original[0][: len(kernels[0])])
    assert torch.equal(kernels[2], original[2][:, : kernels[2].shape[1]])
    x = images(2, seed=5)
    assert torch.equal(theirs(x, theirs.space.default), ours(x, ours.space.default))


def test_adaptivenets_stages_train_branches_and_nothing_else(ours):
    theirs = adaptivenet(ours)
    frozen = [value.clone() for value in theirs.fixed.state_dict().values()]
    before = [value.clone() for value in theirs.bodies.state_dict().values()]
    for stage in adaptivenet_stages(theirs, 4, 0, Training(1.0)):
        assert stage.train(6, labelled_source(), None, RunLog(stream=io.StringIO())) > 0
        after = [value.clone() for value in theirs.bodies.state_dict().values()]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        before = after
    assert all(torch.equal(a, b) for a, b in zip(frozen, theirs.fixed.state_dict().values(), strict=True))


def test_a_network_of_its_own_is_narrower_and_wholly_trained():
    oracle, x = made(BottleneckNet), images(16, seed=1)
    student, teacher = sliced(oracle, x, 0.5, seed=0), in_pieces(oracle, x[:2])
    with torch.no_grad():
        assert torch.equal(teacher(x), oracle(x))
    assert sum(p.numel() for p in student.parameters()) < 0.8 * sum(p.numel() for p in oracle.parameters())
    before = [p.detach().clone() for p in student.parameters()]
    (stage,) = purpose_stages(student, teacher, 4, 0, Training(1.0))
    stage.train(4, labelled_source(), None, RunLog(stream=io.StringIO()))
    assert all(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_the_arm_without_training_is_built_in_a_folder_of_its_own(data, tmp_path, monkeypatch):
    monkeypatch.setattr(elastify_arms, "load_oracle", lambda work: made(BottleneckNet))
    arm, five = Arm("pruned", 0), tuple("abcde")  # as many as the network names
    splits = dataclasses.replace(load_images(data, seed=0), class_names=five)
    train_arm(arm, splits, tmp_path, RunLog(stream=io.StringIO()), Training(1.0))
    figures = json.loads((tmp_path / arm.folder / FIGURES).read_text())
    assert figures["parity"] < 1e-3
    assert figures["subnets"] == float(Bundle.read(tmp_path / arm.folder / BUNDLE).manifest.space.size())


def test_what_one_machine_trained_another_one_exports(data, tmp_path, monkeypatch):
    monkeypatch.setattr(elastify_arms, "load_oracle", lambda work: made(BottleneckNet))
    monkeypatch.setattr(elastify_pace, "alone", lambda what: nullcontext())
    arm, splits = Arm("naive", 0), dataclasses.replace(load_images(data, seed=0), class_names=tuple("abcde"))
    splits = dataclasses.replace(splits, train=dataclasses.replace(splits.train, labels=splits.train.labels % 5))
    folder = tmp_path / arm.folder
    train_arm(arm, splits, tmp_path, RunLog(stream=io.StringIO()), Training(0.01, batch_size=4))
    made_here, figures = (folder / BUNDLE).read_bytes(), json.loads((folder / FIGURES).read_text())
    for path in folder.iterdir():
        if path.name != TRAINED:
            path.unlink()
    train_arm(arm, splits, tmp_path, RunLog(stream=io.StringIO()), Training(0.01, batch_size=4))
    again = json.loads((folder / FIGURES).read_text())
    assert {name: again[name] for name in ("steps", "losses", "trained_on", "prior")} == {
        name: figures[name] for name in ("steps", "losses", "trained_on", "prior")
    }
    (tmp_path / "first.nnf").write_bytes(made_here)
    first, second = Bundle.read(tmp_path / "first.nnf"), Bundle.read(folder / BUNDLE)
    assert (first.model_bytes, first.weights) == (second.model_bytes, second.weights)
    (folder / FIGURES).unlink()
    for other in (Training(0.02, batch_size=4), Training(0.01, batch_size=8)):
        with pytest.raises(StateError, match="trained with another"):
            train_arm(arm, splits, tmp_path, RunLog(stream=io.StringIO()), other)
    monkeypatch.setattr(elastify_arms, "load_oracle", lambda work: made(BottleneckNet, seed=1))
    with pytest.raises(StateError, match="another oracle"):
        train_arm(arm, splits, tmp_path, RunLog(stream=io.StringIO()), Training(0.01, batch_size=4))


def test_the_pace_is_settled_once_and_leaves_no_trace(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(elastify_pace, "alone", lambda what: nullcontext())
    theirs = adaptivenet(ours)
    before = [value.clone() for value in theirs.bodies.state_dict().values()]
    reference = elastify_pace.Reference(made(BottleneckNet), (8, 3, 32, 32), tmp_path / "reference.json")
    stages = adaptivenet_stages(theirs, 4, 0, Training(1.0))

    def settle(minutes):
        path, source = tmp_path / "pace.json", labelled_source()
        return elastify_pace.settled_steps(path, stages, theirs.bodies, source, reference, minutes=minutes, used_s=0.0)

    steps = settle(0.1)
    assert set(steps) == {stage.name for stage in stages}
    assert min(steps.values()) >= 1
    assert settle(0.1) == steps
    assert all(torch.equal(a, b) for a, b in zip(before, theirs.bodies.state_dict().values(), strict=True))
    with pytest.raises(StateError, match="minutes"):
        settle(0.2)
    kept = json.loads((tmp_path / "pace.json").read_text())
    (tmp_path / "pace.json").write_text(json.dumps(kept | {"device": "another"}))
    with pytest.raises(StateError, match="another"):
        settle(0.1)
    (tmp_path / "pace.json").unlink()
    (tmp_path / "reference.json").write_text(
        json.dumps({"reference_step_s": 1.0, "device": "cpu", "precision": "bf16"})
    )
    with pytest.raises(StateError, match="bf16"):
        settle(0.1)


def test_what_took_long_on_a_busy_machine_counts_as_on_the_one_that_was_measured(tmp_path, monkeypatch):
    kept = {"reference_step_s": 0.2, "device": "cpu", "precision": "fp32"}
    (tmp_path / "reference.json").write_text(json.dumps(kept))
    reference = elastify_pace.Reference(made(BottleneckNet), (8, 3, 32, 32), tmp_path / "reference.json")
    monkeypatch.setattr(elastify_pace.Reference, "__call__", lambda self: 0.5)
    assert reference.as_when_measured(10.0) == pytest.approx(4.0)
