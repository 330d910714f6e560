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
from PIL import Image

torch = pytest.importorskip("torch")

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import elastify_arms
import elastify_pace
from elastify_arms import BUNDLE, FIGURES, Arm, train_arm
from elastify_data import PER_CLASS, load_images
from elastify_points import keep, kept_points, right_within, shared_points, shared_right
from elastify_quantised import WHOLE, quantised_folder, quantised_graph
from elastify_recipes import Training, adaptivenet_stages, purpose_stages
from elastify_report import report
from elastify_supernets import adaptivenet, in_pieces, sliced
from elastify_trained import TRAINED

from builder.data import ImageSet, source_of
from builder.distill.losses import normalised_error
from builder.elastify import elastify
from builder.export import static_model
from builder.runlog import RunLog
from edge_runtime.backends import open_static
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError, StateError
from tests.builder.nets import BottleneckNet, images, made

pytestmark = pytest.mark.builder

CLASSES, TRAIN_EACH, TEST_EACH = 3, 24, 2


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A set of plain images in the container of Tiny-ImageNet: green tells the class, red the number in the class."""
    folder, arrays = tmp_path_factory.mktemp("data"), {}
    for part, each in (("train", TRAIN_EACH), ("test", TEST_EACH)):
        files = [jpeg((8 * number, 60 * label, 0)) for label in range(CLASSES) for number in range(each)]
        arrays[f"{part}_jpeg"] = np.concatenate(files)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{part}_fine"] = np.repeat(np.arange(CLASSES, dtype=np.uint8), each)
    np.savez(folder / "tinyimagenet100_64px.npz", fine_names=np.array(["cat", "dog", "owl"]), **arrays)
    return folder


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


def test_the_report_pairs_arms_by_image(tmp_path):
    arms = (Arm("ours", 0), Arm("ours", 1), Arm("adaptivenet", 0), Arm("adaptivenet", 1), Arm("naive", 0))
    rights = {"ours": 0.8, "adaptivenet": 0.75}
    (tmp_path / "oracle.json").write_text("{}")
    for arm in arms[:4]:
        folder = tmp_path / arm.folder
        folder.mkdir()
        (folder / "arm.json").write_text(json.dumps({"arm": arm.name}))
        right = np.arange(100) < 100 * rights[arm.name] - 2 * arm.seed
        keep(folder, 0.6, {"reachable": True, "accuracy": float(right.mean())}, right.astype(float))
    keep(tmp_path / "ours-seed0", 0.4, {"reachable": False, "reason": "too slow"}, None)
    found = report(tmp_path, arms, (0.8, 0.6, 0.4), (np.arange(100) < 85).astype(float))
    pair = found["ours_minus"]["adaptivenet"]["0.60"]
    assert pair["points"] == pytest.approx(5.0)
    assert pair["low"] < 5.0 < pair["high"]
    assert found["ours_minus"]["oracle"]["0.60"]["points"] == pytest.approx(-6.0)
    assert set(found["ours_minus"]["adaptivenet"]) == {"0.60"}
    assert found["ours_minus_adaptivenet_up_to_70"]["budgets"] == 1
    met = {bar["bar"].split(",")[0]: bar["met"] for bar in found["bars"]}
    assert met["over AdaptiveNet"] is True
    assert met["under the oracle at 60 %"] is False
    assert met["under the oracle at 80 %"] is None
    assert set(found["arms"]) == {arm.folder for arm in arms[:4]}


def test_the_report_sets_ours_beside_what_the_runtime_itself_quantises(tmp_path):
    (tmp_path / "oracle.json").write_text("{}")
    ours, quantised = tmp_path / "ours-seed0", quantised_folder(tmp_path, "oracle")
    for folder in (ours, quantised):
        folder.mkdir()
    (ours / "arm.json").write_text(json.dumps({"arm": "ours"}))
    for fraction, ratio, right in ((0.6, 0.58, 90), (0.5, 0.49, 80)):
        point = {"fraction": fraction, "ratio": ratio, "estimate": right, "accuracy": right}
        keep(ours, fraction, point, (np.arange(100) < right).astype(float))
    keep(quantised, WHOLE, {"ratio": 0.55, "accuracy": 0.78}, (np.arange(100) < 78).astype(float))
    found = report(tmp_path, (Arm("ours", 0),), (0.6, 0.5), np.ones(100))["ours_minus"]["quantised"]
    assert found["oracle"]["ratio"] == 0.55
    assert found["oracle"]["points"] == pytest.approx(2.0)  # what is at 0.58 is too slow for it


def test_of_further_shares_too_the_best_within_any_latency_is_found(tmp_path):
    for fraction, ratio, right in ((0.6, 0.58, 1), (0.45, 0.44, 0)):
        point = {"fraction": fraction, "ratio": ratio, "estimate": right, "further": fraction == 0.45}
        keep(tmp_path, fraction, point, np.array([float(right)]))
    assert right_within(tmp_path, 0.7).tolist() == [1.0]
    assert right_within(tmp_path, 0.5).tolist() == [0.0]
    assert right_within(tmp_path, 0.4) is None


def test_the_runtime_quantises_what_it_computes_nearly_alike():
    net, x = made(BottleneckNet), images(16, seed=3)
    coded = quantised_graph(static_model(net, x[:2]), (batch.numpy() for batch in x.split(4)))
    with torch.no_grad():
        wanted = net(x)
    session = open_static(coded)
    found = torch.from_numpy(next(iter(session.run({session.inputs[0].name: x.numpy()}).values())))
    assert not torch.equal(found, wanted)
    assert normalised_error(found, wanted) < 0.05
    assert b"QLinearConv" in coded


def test_a_share_that_was_given_another_subnet_still_serves_smaller_ones_with_its_own(tmp_path):
    for fraction, ratio, accuracy, right in ((0.9, 0.55, 0.6, 0.0), (0.8, 0.78, 0.7, 1.0), (0.6, 0.58, 0.5, 0.5)):
        keep(tmp_path, fraction, {"fraction": fraction, "ratio": ratio, "estimate": accuracy}, np.array([right]))
    points = shared_points(tmp_path)
    assert [points[f"{f:.4f}"]["ratio"] for f in (0.9, 0.8, 0.6)] == [0.78, 0.78, 0.55]
    assert [shared_right(tmp_path, f).tolist() for f in (0.9, 0.8, 0.6)] == [[1.0], [1.0], [0.0]]


def test_a_share_gets_the_best_subnet_within_it_whichever_search_found_it(tmp_path):
    rows = {0.9: (0.85, 0.70, 1), 0.6: (0.58, 0.50, 0), 0.5: (0.49, 0.55, 1), 0.4: (0.39, 0.52, 0)}
    for fraction, (ratio, estimate, right) in rows.items():
        point = {"fraction": fraction, "ratio": ratio, "estimate": estimate}
        keep(tmp_path, fraction, point, np.array([float(right)]))
    for fraction in (0.3, 0.45):
        keep(tmp_path, fraction, {"fraction": fraction, "reachable": False}, None)
    points = shared_points(tmp_path)
    assert [points[f"{f:.4f}"].get("found_at", f) for f in (0.9, 0.6, 0.5, 0.45, 0.4)] == [0.9, 0.5, 0.5, 0.4, 0.4]
    assert points["0.6000"]["ratio"] == 0.49
    assert points["0.6000"]["fraction"] == 0.6
    assert shared_right(tmp_path, 0.6).tolist() == [1.0]
    assert points["0.3000"] == {"fraction": 0.3, "reachable": False}
    assert kept_points(tmp_path)["0.6000"]["ratio"] == 0.58  # what its own search found stays


def test_what_is_found_where_others_are_not_searched_serves_no_common_share(tmp_path):
    for fraction, ratio, estimate, further in (
        (0.6, 0.58, 0.5, False),
        (0.5, 0.49, 0.4, False),
        (0.55, 0.54, 0.7, True),
    ):
        point = {"fraction": fraction, "ratio": ratio, "estimate": estimate, "further": further}
        keep(tmp_path, fraction, point, np.array([estimate]))
    points = shared_points(tmp_path)
    assert [points[f"{f:.4f}"]["ratio"] for f in (0.6, 0.55, 0.5)] == [0.58, 0.54, 0.49]
    keep(tmp_path, 0.5, {"fraction": 0.5, "ratio": 0.49, "estimate": 0.8, "further": False}, np.array([0.8]))
    assert shared_points(tmp_path)["0.5500"]["found_at"] == 0.5
