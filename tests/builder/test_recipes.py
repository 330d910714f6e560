import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from builder.elastify import elastify
from builder.recipes import demo
from builder.recipes.common import Request, claim_work, kept_prior
from builder.recipes.demo_config import DemoSettings
from builder.runlog import RunLog
from edge_runtime.errors import StateError
from edge_runtime.inputs import load_npz
from tests.builder.nets import BottleneckNet, images

pytestmark = pytest.mark.builder

SETTINGS = DemoSettings(train_images=48, validation_images=16, test_images=10, epochs=1, batch_size=16)
STAGES = demo.Stages(local_epochs=1, path_epochs=1, shipped=8)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The demo recipe on a handful of scenes, run to its end."""
    work = tmp_path_factory.mktemp("demo")
    request = Request(work=work, out=work / "out" / "demo.nnf", command="nnf-build demo")
    with RunLog(work / "log.jsonl") as log:
        bundle = demo.build(request, log, settings=SETTINGS, stages=STAGES)
    return request, bundle


def events(request):
    return [json.loads(line)["event"] for line in (request.work / "log.jsonl").read_text().splitlines()]


def test_the_recipe_ends_with_a_verified_bundle(built):
    request, bundle = built
    assert bundle.manifest.provenance.command == "nnf-build demo"
    assert bundle.manifest.task.class_names
    assert max(span for group in bundle.manifest.space.groups for span in group.spans) > 1
    assert {"oracle.end", "local.end", "paths.end", "prior.end", "export.end"} <= set(events(request))
    assert (request.work / "oracle.onnx").exists()


def test_the_shipped_images_are_readable_by_the_runtime(built):
    request, bundle = built
    samples = load_npz(request.out.with_name("demo_images.npz"))
    assert len(samples.images) == STAGES.shipped
    assert tuple(samples.class_names) == bundle.manifest.task.class_names
    assert len(set(samples.conditions)) > 1
    assert samples.images[0].shape == (64, 64, 3)
    assert np.asarray(samples.labels).max() < 16


def test_a_second_run_trains_nothing_and_gives_the_same_weights(built):
    request, bundle = built
    before = (
        events(request).count("fit.epoch"),
        events(request).count("local.epoch"),
        events(request).count("prior.begin"),
    )
    again = dataclasses.replace(request, out=request.work / "again.nnf")
    with RunLog(request.work / "log.jsonl") as log:
        repeated = demo.build(again, log, settings=SETTINGS, stages=STAGES)
    found = events(request)
    assert (found.count("fit.epoch"), found.count("local.epoch"), found.count("prior.begin")) == before
    assert repeated.weights == bundle.weights
    assert repeated.model_bytes == bundle.model_bytes


def test_a_work_folder_of_other_settings_is_refused(built):
    request, _ = built
    with RunLog() as log, pytest.raises(StateError, match="other settings"):
        demo.build(dataclasses.replace(request, seed=1), log, settings=SETTINGS, stages=STAGES)


def test_a_work_folder_can_be_claimed_again(tmp_path):
    claim_work(tmp_path, "demo", {"epochs": 3, "widths": (0.5, 0.25)})
    claim_work(tmp_path, "demo", {"widths": (0.5, 0.25), "epochs": 3})
    with pytest.raises(StateError):
        claim_work(tmp_path, "runway", {"epochs": 3, "widths": (0.5, 0.25)})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"weights": 1}', b"\xff\xfe"])
def test_a_damaged_prior_is_measured_again(tmp_path, content):
    supernet, x = elastify(BottleneckNet().eval(), images(8)), images(8)
    with RunLog(None) as log:
        wanted = kept_prior(supernet, x, tmp_path, log)
        good = (tmp_path / "prior.json").read_bytes()
        (tmp_path / "prior.json").write_bytes(content)
        assert kept_prior(supernet, x, tmp_path, log) == wanted
    assert (tmp_path / "prior.json").read_bytes() == good
