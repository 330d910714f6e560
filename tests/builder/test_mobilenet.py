import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from builder.mobilenet import InvertedResidual, MobileNetV2, load_folded, recenter_batch_norms, same_padding
from edge_runtime.errors import InputError
from tests.support.data import data_folder

pytestmark = pytest.mark.builder


def weights_path():
    file = "weights/mobilenet_v2_1.0_224_folded_f16.npz"
    return data_folder(file) / file


def folded_features(path, x):
    """The folded network in TensorFlow's terms, written on its own: features [N, 1280] before the classifier."""

    def layer(x, relu, stride=1):
        nonlocal number
        name = next(key for key in arrays if key.startswith(f"{number:02d}_") and key.endswith("_w"))
        weight = torch.from_numpy(arrays[name].astype(np.float32))
        depthwise = "_dw_" in name
        weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
        side, kernel = x.shape[-1], weight.shape[-1]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads = (total // 2, total - total // 2) * 2
        bias = torch.from_numpy(arrays[name[:-1] + "b"])
        x = F.conv2d(F.pad(x, pads), weight, bias, stride, groups=x.shape[1] if depthwise else 1)
        number += 1
        return F.relu6(x) if relu else x

    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files}
    number = 0
    x = layer(layer(layer(x, True, 2), True), False)
    for count, first_stride in ((2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)):
        for index in range(count):
            y = layer(layer(layer(x, True), True, first_stride if index == 0 else 1), False)
            x = x + y if index else y
    return layer(x, True).mean((2, 3))


def random_statistics(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "expected"),
    [(112, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (14, 3, 1, (1, 1)), (14, 1, 1, (0, 0)), (4, 1, 2, (0, 0))],
)
def test_same_padding_is_tensorflows(side, kernel, stride, expected):
    assert same_padding(side, kernel, stride) == expected


@pytest.mark.parametrize("resolution", [32, 112])
def test_shapes_and_parameters(resolution):
    model = MobileNetV2(31, resolution=resolution).eval()
    assert model(torch.zeros(2, 3, resolution, resolution)).shape == (2, 31)
    below = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("classifier"))
    assert below == 2_223_872  # the well-known 3,504,872 of MobileNetV2 1.0 without its 1000-way classifier
    assert sum(unit.residual for unit in model.units if isinstance(unit, InvertedResidual)) == 10


def test_it_is_traced_into_plain_calls():
    graph = fx.symbolic_trace(MobileNetV2(5, resolution=64)).graph
    calls = {type(node.target).__name__ for node in graph.nodes if node.op == "call_function"}
    modules = [node for node in graph.nodes if node.op == "call_module"]
    assert len(modules) > 100
    assert calls
    assert not [node for node in graph.nodes if node.op == "call_method"]


def test_recentring_keeps_the_function_and_finds_the_statistics():
    torch.manual_seed(0)
    model = MobileNetV2(5, resolution=32)
    random_statistics(model)
    model.eval()
    batches = [torch.randn(8, 3, 32, 32) for _ in range(3)]
    before = model(batches[0])
    recenter_batch_norms(model, batches)
    assert torch.allclose(model(batches[0]), before, atol=1e-4)
    stem = model.stem.conv(F.pad(torch.cat(batches), model.stem.pads))
    assert torch.allclose(model.stem.bn.running_mean, stem.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model.stem.bn.running_var, stem.var((0, 2, 3), correction=0), rtol=1e-3)


def test_recentring_without_images_is_refused():
    with pytest.raises(InputError, match="no images"):
        recenter_batch_norms(MobileNetV2(5, resolution=32), [])


@pytest.mark.parametrize(("classes", "resolution"), [(1, 112), (5, 16)])
def test_a_network_that_cannot_be_built_is_refused(classes, resolution):
    with pytest.raises(InputError):
        MobileNetV2(classes, resolution=resolution)


def test_missing_or_foreign_weights_are_refused(tmp_path):
    model = MobileNetV2(5, resolution=32)
    with pytest.raises(InputError, match="folded MobileNetV2"):
        load_folded(model, tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", **{"00_conv_w": np.zeros((8, 3, 3, 3), np.float16), "00_conv_b": np.zeros(8)})
    with pytest.raises(InputError, match="cannot be read"):
        load_folded(model, tmp_path / "other.npz")


@pytest.mark.data
@pytest.mark.parametrize("resolution", [112, 96])
def test_with_its_batch_norms_back_it_is_still_the_folded_network(resolution):
    path = weights_path()
    model = MobileNetV2(31, resolution=resolution).eval()
    load_folded(model, path)
    x = torch.rand(4, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
    recenter_batch_norms(model, x.split(2))
    with torch.no_grad():
        wanted = folded_features(path, x)
        found = model.flatten(model.pool(model.head(model.units(model.stem(x)))))
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-3
    assert ((found - wanted).abs().max() / wanted.abs().max()).item() < 1e-3
