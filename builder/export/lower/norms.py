"""Normalisations: over the batch's stored statistics, over features, over groups of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.export.lower.table import translates
from builder.export.lower.values import Value, Weight

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm"]


@translates("batch_norm")
def batch_norm(
    low: Lowering,
    x: Value,
    running_mean: Weight | None,
    running_var: Weight | None,
    weight: Weight | None = None,
    bias: Weight | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> str:
    """``torch.nn.functional.batch_norm`` at inference."""
    if training or running_mean is None or running_var is None:
        raise low.refusal("normalises by the statistics of the batch", "call eval(), and keep running statistics")
    ones = np.ones(running_mean.tensor.shape, np.float32)
    parts = {"scale": weight or ones, "shift": bias or 0 * ones, "mean": running_mean, "var": running_var}
    names = [low.store(values, part) for part, values in parts.items()]
    return low.emit("BatchNormalization", [x.name, *names], {"epsilon": eps})


@translates("aten.batch_norm")
def aten_batch_norm(
    low: Lowering,
    x: Value,
    weight: Weight | None,
    bias: Weight | None,
    running_mean: Weight | None,
    running_var: Weight | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> str:
    """``aten.batch_norm``, whose arguments come in another order."""
    return batch_norm(low, x, running_mean, running_var, weight, bias, training, momentum, eps)


@translates("layer_norm")
def layer_norm(
    low: Lowering,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Weight | None = None,
    bias: Weight | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    """``torch.nn.functional.layer_norm`` over the last dimensions."""
    scale = low.store(weight or np.ones(tuple(normalized_shape), np.float32), "scale")
    inputs = [x.name, scale, *([low.store(bias)] if bias else [])]
    axis = len(x.shape) - len(normalized_shape)
    return low.emit("LayerNormalization", inputs, {"axis": axis, "epsilon": eps})


@translates("instance_norm")
def instance_norm(
    low: Lowering,
    x: Value,
    running_mean: Weight | None = None,
    running_var: Weight | None = None,
    weight: Weight | None = None,
    bias: Weight | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    """``torch.nn.functional.instance_norm`` by the statistics of each image."""
    if running_mean is not None or not use_input_stats:
        raise low.refusal("has running statistics", "use a batch norm")
    ones = np.ones(x.shape[1], np.float32)
    names = [low.store(weight or ones, "scale"), low.store(bias or 0 * ones, "shift")]
    return low.emit("InstanceNormalization", [x.name, *names], {"epsilon": eps})


@translates("aten.instance_norm")
def aten_instance_norm(
    low: Lowering,
    x: Value,
    weight: Weight | None,
    bias: Weight | None,
    running_mean: Weight | None,
    running_var: Weight | None,
    *arguments: Any,
) -> str:
    """``aten.instance_norm``, whose arguments come in another order."""
    return instance_norm(low, x, running_mean, running_var, weight, bias, *arguments)


@translates("group_norm")
def group_norm(
    low: Lowering,
    x: Value,
    num_groups: int,
    weight: Weight | None = None,
    bias: Weight | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    """``torch.nn.functional.group_norm``: each group as the one channel of an instance norm, then scale and shift."""
    ones = np.ones(num_groups, np.float32)
    grouped = low.integers([0, num_groups, math.prod(x.shape[1:]) // num_groups])
    out = low.emit("Reshape", [x.name, grouped], part="groups")
    names = [low.store(ones, "ones"), low.store(0 * ones, "zeros")]
    out = low.emit("InstanceNormalization", [out, *names], {"epsilon": eps}, part="norm")
    out = low.emit("Reshape", [out, low.integers([0, *x.shape[1:]])])
    for op, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            columns = factor.tensor.reshape(-1, *[1] * (len(x.shape) - 2))
            out = low.emit(op, [out, low.store(columns, f"{op}.columns")], part=op.lower())
    return out


@translates("local_response_norm")
def local_response_norm(
    low: Lowering, x: Value, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> str:
    """``torch.nn.functional.local_response_norm`` over an odd number of neighbouring channels."""
    if size % 2 == 0:
        raise low.refusal(f"has the even size {size}", "use an odd size: even windows are placed differently in ONNX")
    return low.emit("LRN", [x.name], {"size": size, "alpha": alpha, "beta": beta, "bias": k})
