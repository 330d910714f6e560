"""Architectures that nobody here wrote, through the lowering and the runtime's check, against torch.

Weights are random; the statistics of their norms come from random images, so that signals keep their size through the
whole network. Most of these networks end in a pooling of 7 by 7 and take nothing smaller than 224 px.
"""

import importlib

import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorchcv")

from torch import nn

from builder.elastify.trace import trace
from tests.builder.convnext import ConvNext
from tests.builder.lowered import exported, relative_error, with_shapes

pytestmark = pytest.mark.builder

FX = {
    "bninception.bninception": 224,
    "darknet.darknet_tiny": 224,
    "densenet.densenet121": 224,
    "dla.dla46c": 224,
    "efficientnet.efficientnet_b0": 64,
    "espnetv2.espnetv2_wd2": 224,
    "fbnet.fbnet_cb": 224,
    "ghostnet.ghostnet": 224,
    "hardnet.hardnet39ds": 224,
    "hrnet.hrnet_w18_small_v1": 224,
    "igcv3.igcv3_wd4": 224,
    "mnasnet.mnasnet_small": 224,
    "mobilenet.mobilenet_wd4": 224,
    "mobilenetv2.mobilenetv2_wd4": 224,
    "mobilenetv3.mobilenetv3_small_wd2": 224,
    "peleenet.peleenet": 224,
    "preresnet.preresnet10": 224,
    "proxylessnas.proxylessnas_cpu": 224,
    "regnet.regnetx002": 64,
    "regnet.regnety002": 64,
    "resnesta.resnestabc14": 64,
    "resnet.resnet10": 224,
    "resnext.resnext14_16x4d": 224,
    "seresnet.seresnet10": 224,
    "shufflenet.shufflenet_g3_wd4": 224,
    "shufflenetv2.shufflenetv2_wd2": 224,
    "squeezenet.squeezenet_v1_1": 224,
    "vovnet.vovnet27s": 224,
    "wrn_cifar.wrn16_10_cifar10": 32,
    "xception.xception": 299,
}
"""What torch.fx can trace: module and function, and pixels."""

EXPORT = {"bagnet.bagnet9": 224, "efficientnet.efficientnet_b0b": 64, "mixnet.mixnet_s": 224}
"""What asks for sizes while it runs, so that torch.export has to resolve them."""

NARROW_VGG = {"channels": [[8], [16], [16, 16], [32, 32], [32, 32]], "use_bn": True}
NARROW_ALEXNET = {
    "channels": [[16], [32], [32, 32, 32]],
    "kernel_sizes": [[11], [5], [3, 3, 3]],
    "strides": [[4], [1], [1, 1, 1]],
    "paddings": [[0], [2], [1, 1, 1]],
    "use_lrn": True,
}


@pytest.mark.parametrize(("name", "pixels"), FX.items(), ids=FX)
def test_an_architecture_equals_torch(name, pixels, tmp_path):
    net, x = made(name, pixels)
    assert error_of(net, trace(net, x), x, tmp_path) <= 1e-4


@pytest.mark.filterwarnings("ignore")  # torch.export's own
@pytest.mark.parametrize(("name", "pixels"), EXPORT.items(), ids=EXPORT)
def test_an_architecture_that_asks_for_sizes_equals_torch(name, pixels, tmp_path):
    net, x = made(name, pixels)
    traced = with_shapes(torch.export.export(net, (x,)).module(), x)
    assert error_of(net, traced, x, tmp_path) <= 1e-4


@pytest.mark.parametrize(("name", "sizes"), [("vgg.VGG", NARROW_VGG), ("alexnet.AlexNet", NARROW_ALEXNET)])
def test_a_narrower_one_of_a_large_architecture_equals_torch(name, sizes, tmp_path):
    net, x = made(name, 224, **sizes)
    assert error_of(net, trace(net, x), x, tmp_path) <= 1e-4


def test_a_convnext_equals_torch(tmp_path):
    torch.manual_seed(0)
    net, x = ConvNext().eval(), torch.randn(2, 3, 64, 64)
    assert error_of(net, trace(net, x), x, tmp_path) <= 1e-4


def made(name, pixels, **sizes):
    """The network in eval mode and two random images."""
    family, _, function = name.partition(".")
    torch.manual_seed(0)
    net = getattr(importlib.import_module(f"pytorchcv.models.{family}"), function)(**sizes)
    x = torch.randn(2, 3, pixels, pixels)
    return with_statistics(net, x), x


def error_of(net, traced, x, folder):
    """The relative error of one image after the graph was checked; padding belongs into the convolutions."""
    bundle = exported(folder / "b", traced, x, net(x))
    assert "Pad" not in {node.op_type for node in onnx.load_from_string(bundle.model_bytes).graph.node}
    return relative_error(bundle, net, x[:1])


def with_statistics(net, x):
    """`net` in eval mode, each norm with a scale and shift of its own, and the statistics of `x` at half weight."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 0.5
    with torch.no_grad():
        net.train()(x)
    return net.eval()
