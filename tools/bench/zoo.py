"""The architectures of `architectures.py`: names in pytorchcv, with random weights and true statistics."""

# ruff: noqa: TID251 - a bench may use torch; only the runtime must not

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch
from torch import nn

from edge_runtime.errors import UsageError

__all__ = ["ARCHITECTURES", "Architecture"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network of pytorchcv."""

    family: str
    """What it is built of, for the table."""

    module: str
    """File in `pytorchcv.models`."""

    name: str
    """Function in it."""

    pixels: int = 224
    """Side of its images."""

    def build(self) -> nn.Module:
        """The network in eval mode; its BatchNorms hold random scales and the statistics of random images."""
        try:
            models = importlib.import_module(f"pytorchcv.models.{self.module}")
        except ImportError as error:
            raise UsageError("pytorchcv is missing", hint="pip install --no-deps pytorchcv") from error
        net = getattr(models, self.name)(pretrained=False)
        norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
            norm.momentum = None
        if norms:
            with torch.no_grad():
                net.train()(torch.randn(4, 3, self.pixels, self.pixels))
        return net.eval()


ARCHITECTURES = (
    Architecture("residual", "resnet", "resnet18"),
    Architecture("residual", "resnet", "resnet50"),
    Architecture("residual", "resnetd", "resnetd50b"),
    Architecture("residual", "resnet_cifar", "resnet20_cifar10", 32),
    Architecture("residual", "preresnet", "preresnet18"),
    Architecture("residual", "seresnet", "seresnet18"),
    Architecture("residual", "resnext", "resnext50_32x4d"),
    Architecture("residual", "seresnext", "seresnext50_32x4d"),
    Architecture("residual", "cbamresnet", "cbam_resnet18"),
    Architecture("residual", "sknet", "sknet50"),
    Architecture("residual", "regnet", "regnetx004"),
    Architecture("residual", "regnet", "regnety004"),
    Architecture("residual", "darknet53", "darknet53"),
    Architecture("residual", "xception", "xception", 299),
    Architecture("inverted residual", "mobilenetv2", "mobilenetv2_w1"),
    Architecture("inverted residual", "mobilenetv3", "mobilenetv3_large_w1"),
    Architecture("inverted residual", "efficientnet", "efficientnet_b0"),
    Architecture("inverted residual", "mnasnet", "mnasnet_b1"),
    Architecture("inverted residual", "fbnet", "fbnet_cb"),
    Architecture("inverted residual", "proxylessnas", "proxylessnas_cpu"),
    Architecture("inverted residual", "mixnet", "mixnet_s"),
    Architecture("inverted residual", "ghostnet", "ghostnet"),
    Architecture("inverted residual", "igcv3", "igcv3_w1"),
    Architecture("depthwise", "mobilenet", "mobilenet_w1"),
    Architecture("shuffle", "shufflenet", "shufflenet_g1_w1"),
    Architecture("shuffle", "shufflenet", "shufflenet_g3_w1"),
    Architecture("shuffle", "shufflenetv2", "shufflenetv2_w1"),
    Architecture("dense", "densenet", "densenet121"),
    Architecture("dense", "peleenet", "peleenet"),
    Architecture("dense", "vovnet", "vovnet27s"),
    Architecture("dense", "hardnet", "hardnet39ds"),
    Architecture("dense", "dpn", "dpn68"),
    Architecture("concatenation", "squeezenet", "squeezenet_v1_1"),
    Architecture("concatenation", "squeezenext", "sqnxt23v5_w1"),
    Architecture("concatenation", "inceptionv3", "inceptionv3", 299),
    Architecture("concatenation", "bninception", "bninception"),
    Architecture("concatenation", "selecsls", "selecsls42b"),
    Architecture("plain", "vgg", "vgg11"),
    Architecture("plain", "vgg", "bn_vgg13"),
    Architecture("plain", "alexnet", "alexnet"),
    Architecture("plain", "darknet", "darknet_ref"),
    Architecture("plain", "diracnetv2", "diracnet18v2"),
    Architecture("aggregation", "dla", "dla34"),
    Architecture("parallel resolutions", "hrnet", "hrnet_w18_small_v1"),
)
"""At least one of each way to build a CNN that is in wide use."""
