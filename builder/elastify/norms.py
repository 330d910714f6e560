"""Put BatchNorms back into a unit whose own were folded into biases, or that never had any.

Narrow copies of small networks do not train without normalisation. Behind each convolution with a bias and no norm goes
a BatchNorm with the statistics of the oracle's own pre-activations on the data, scaled so that the function stays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from builder.elastify.nodes import is_conv, is_norm, module_of, shape_of

__all__ = ["with_norms"]

_OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


def with_norms(unit: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """A copy of `unit` (in eval mode) that computes the same, with a BatchNorm behind every bare convolution.

    Args:
        unit: left as it is; returned itself where nothing is bare, or where it has norms of another kind.
        inputs: batches [N, C, H, W] that really enter it.
    """
    bare = [node for node in unit.graph.nodes if _is_bare(unit, node)]
    if not bare or any(isinstance(module, _OTHER_NORMS) for module in unit.modules()):
        return unit
    statistics = _statistics(unit, {node.name for node in bare}, inputs)
    result = copy.deepcopy(unit)
    for node in list(result.graph.nodes):
        if node.name in statistics:
            _insert(result, node, *statistics[node.name])
    result.recompile()
    return result


def _is_bare(unit: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a convolution with a bias, over more than one pixel, that no norm follows."""
    conv = module_of(unit, node)
    if not isinstance(conv, nn.Conv2d) or not is_conv(unit, node) or conv.bias is None:
        return False
    shape = shape_of(node)
    calls = sum(other.op == "call_module" and other.target == node.target for other in unit.graph.nodes)
    return shape[2] * shape[3] > 1 and calls == 1 and not any(is_norm(unit, user) for user in node.users)


def _statistics(unit: fx.GraphModule, names: set[str], inputs: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel of the named values."""
    sums: dict[str, list[Tensor]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.name in names:
                value = result.double()
                moments = [torch.tensor(float(value.numel() // value.shape[1])), value.sum((0, 2, 3))]
                moments.append(value.square().sum((0, 2, 3)))
                known = sums.get(n.name)
                sums[n.name] = [a + b for a, b in zip(known, moments, strict=True)] if known else moments
            return result

    with torch.no_grad():
        for batch in inputs:
            Recorder(unit).run(batch)
    means = {name: total / count for name, (count, total, _) in sums.items()}
    return {
        name: (means[name].float(), (squares / count - means[name].square()).clamp_min(0).float())
        for name, (count, _, squares) in sums.items()
    }


def _insert(unit: fx.GraphModule, node: fx.Node, mean: Tensor, variance: Tensor) -> None:
    """Put a BatchNorm behind a convolution; it takes over the convolution's bias."""
    conv = unit.get_submodule(str(node.target))
    norm = nn.BatchNorm2d(len(mean)).eval()
    with torch.no_grad():
        norm.running_mean.copy_(mean - conv.bias)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
    conv.bias = None
    name = f"{node.name}_norm"
    unit.add_module(name, norm)
    with unit.graph.inserting_after(node):
        behind = unit.graph.call_module(name, (node,))
    behind.meta = dict(node.meta)
    node.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)
