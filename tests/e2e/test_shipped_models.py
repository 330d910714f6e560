"""What is committed is what it says it is: the bundled demo model with its images, and the runway bundle."""

import platform
from pathlib import Path

import numpy as np
import pytest

from builder.fod import FILE_NAME, load_crops  # noqa: TID251 - numpy and Pillow only
from edge_runtime import EdgeModel
from edge_runtime.additive import AdditiveCost, Plan, fastest
from edge_runtime.backends import SessionOptions, open_session, open_static
from edge_runtime.backends.onnx.layout import convolution_layouts
from edge_runtime.bundle import Bundle
from edge_runtime.cli.assets import demo_bundle, demo_images
from edge_runtime.inputs import load_npz, preprocess_all
from edge_runtime.measure import calibrate
from tests.support.data import data_folder

MODELS = Path(__file__).resolve().parents[1] / "data"
BUNDLES = [Path(demo_bundle()), MODELS / "runway.nnf"]
ORACLES = {"demo.nnf": MODELS / "demo_oracle.onnx", "runway.nnf": MODELS / "runway_oracle.onnx"}


def accuracy(session, images, labels, bundle):
    tensors = preprocess_all(images, bundle.manifest.preprocessing)
    gates = bundle.manifest.space.default
    logits = [session.run({"image": tensors[i : i + 32]}, gates)["logits"] for i in range(0, len(tensors), 32)]
    return float((np.concatenate(logits).argmax(1) == labels).mean())


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_default_gates_equal_the_static_export_of_the_oracle(path):
    bundle = Bundle.read(path)
    gated = open_session(bundle, SessionOptions(threads=2))
    static = open_static(ORACLES[path.name].read_bytes(), SessionOptions(threads=2))
    x = np.random.default_rng(0).normal(0, 1, (32, *gated.inputs[0].shape[1:])).astype(np.float32)
    wanted = static.run({"image": x})["logits"]
    np.testing.assert_allclose(gated.run({"image": x}, bundle.manifest.space.default)["logits"], wanted, atol=1e-4)


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_units_have_two_narrower_copies_and_windows_are_merged(path):
    groups = Bundle.read(path).manifest.space.groups
    narrower = [sum(label.startswith("narrow") for label in group.labels) for group in groups]
    assert min(narrower) >= 2
    assert any(group.window > 1 for group in groups)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the NCHWc layout exists on x86 only")
@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_every_convolution_runs_in_the_blocked_layout(path, tmp_path):
    bundle = Bundle.read(path)
    report = convolution_layouts(bundle.model_bytes, bundle.weights, SessionOptions(), tmp_path)
    assert report.plain == ()
    assert len(report.blocked) > 100


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_merged_alternative_is_the_best_plan_at_some_cost(path, tmp_path):
    bundle = Bundle.read(path)
    damage = AdditiveCost.damage(bundle.manifest.space, bundle.manifest.prior)
    table = calibrate(bundle, open_session(bundle), SessionOptions(), seed=0, scratch=tmp_path).cost  # as a model does
    levels = [table(fastest(table)) * (1 + 0.1 * step) for step in range(20)]
    chosen = [Plan(table, damage, level).best() for level in levels]
    assert any(gates.space.groups[i].spans[int(v)] > 1 for gates in chosen for i, v in enumerate(gates.values))


def test_demo_oracle_is_good_but_not_perfect_and_the_shipped_images_are_of_the_same_kind():
    samples, bundle = load_npz(demo_images()), Bundle.read(demo_bundle())
    assert len(samples) >= 200
    assert len(set(samples.conditions)) >= 4
    held_out = bundle.manifest.figures["oracle_test_accuracy"]  # 2,000 images of the seed that these are the first of
    assert 0.80 <= held_out <= 0.95
    found = accuracy(open_session(bundle), samples.images, samples.labels, bundle)
    standard_error = (held_out * (1 - held_out) / len(samples)) ** 0.5
    assert abs(found - held_out) <= 3 * standard_error


def test_sizes_stay_within_what_is_promised():
    assert BUNDLES[0].stat().st_size < 12 * 2**20
    assert BUNDLES[1].stat().st_size <= 24 * 2**20


@pytest.mark.data
def test_runway_oracle_reaches_96_percent_on_the_full_test_split():
    crops = load_crops(data_folder(FILE_NAME)).split("test")
    bundle = Bundle.read(BUNDLES[1])
    assert bundle.manifest.task.class_names == crops.class_names
    assert len(crops) == 944
    assert accuracy(open_session(bundle, SessionOptions(threads=2)), crops.images, crops.labels, bundle) >= 0.96


@pytest.mark.data
def test_runway_bundle_adapts_to_photographs(tmp_path):
    crops = load_crops(data_folder(FILE_NAME)).split("validation")
    with EdgeModel.load(BUNDLES[1], state_dir=tmp_path) as model:
        status = model.adapt(crops.images[::8], wait=True, seconds=5)
        assert status.phase == "done"
        assert status.frontier is not None
        assert model(crops.images[0]).label in crops.class_names
