from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from builder.demo_net import ORACLE, SMALL, DemoNet, Stage
from builder.elastify import find_segments
from builder.elastify.trace import trace
from builder.recipes.demo_config import DemoSettings, as_image_set, fit_config
from edge_runtime.errors import UsageError

pytestmark = pytest.mark.builder


def test_oracle_is_small_and_made_of_blocks_of_sixteen():
    network = DemoNet(16)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 700_000
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(conv.out_channels % 16 == 0 for conv in convolutions)


@pytest.mark.parametrize("config", [ORACLE, SMALL])
def test_one_row_of_logits_per_image(config):
    network = DemoNet(5, config).eval()
    assert network(torch.zeros(3, 3, 64, 64)).shape == (3, 5)


def test_every_stage_has_neighbouring_units_of_one_shape_for_a_merged_window():
    segments = find_segments(trace(DemoNet(16).eval(), torch.zeros(1, 3, 64, 64)))
    units = [segment for segment in segments if segment.elastic]
    assert len(units) == sum(stage.units for stage in ORACLE.stages) + 1  # the head
    pairs = [a.out_shape for a, b in pairwise(units) if a.keeps_shape and b.keeps_shape]
    assert len(set(pairs)) == len(ORACLE.stages)


@pytest.mark.parametrize("sizes", [(24, 2, 4), (0, 2, 4), (32, 0, 4), (32, 2, 0)])
def test_a_stage_that_cannot_be_is_refused(sizes):
    with pytest.raises(UsageError):
        Stage(*sizes)


def test_demo_sets_are_disjoint_and_fit_the_network():
    settings = DemoSettings(train_images=8, validation_images=4, test_images=4)
    sets = {part: as_image_set(settings.render(part)) for part in ("train", "validation", "test")}
    assert [len(images) for images in sets.values()] == [8, 4, 4]
    assert len({images.images[:4].tobytes() for images in sets.values()}) == 3
    assert fit_config(settings, 3).seed == 3
    with pytest.raises(UsageError):
        settings.render("holiday")


@pytest.mark.parametrize("changes", [{"test_seed": 1001}, {"train_images": 0}])
def test_demo_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(UsageError):
        DemoSettings(**changes)
