"""Closed-form initialisation: refit the last convolution of an alternative by ridge regression.

The last dense convolution before a unit's linear exit reads activations a and is followed by an affine map (BN). With
the target T (the oracle's value at its own linear exit) and the alternative's shortcut s, the weights that minimise
``||W a + b - (T - s)||^2 + lambda ||W||^2`` have a closed form on a few thousand sampled positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from builder.elastify.nodes import is_activation, is_add, module_of

__all__ = ["exit_node", "linear_exit", "node_values", "refit_projection"]

MAX_COLUMNS = 2304
"""Larger systems (inputs times kernel area) are left to training."""

RIDGE = 1e-3
"""Regularisation relative to the mean diagonal of the Gram matrix."""


@dataclass(frozen=True, slots=True)
class _Projection:
    conv: fx.Node
    bn: fx.Node | None
    end: fx.Node
    """The value that the refit controls: the BN's output, or the convolution's."""


def exit_node(unit: fx.GraphModule) -> fx.Node:
    """The node that makes the unit's output."""
    return next(node for node in unit.graph.nodes if node.op == "output").all_input_nodes[0]


def linear_exit(unit: fx.GraphModule) -> fx.Node:
    """The unit's output before a trailing activation."""
    node = exit_node(unit)
    return node.all_input_nodes[0] if is_activation(unit, node) else node


def refit_projection(
    alternative: fx.GraphModule, inputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], seed: int
) -> bool:
    """Refit the alternative's projection to `targets`; True when it was done.

    Args:
        alternative: a trainable unit in eval mode, changed in place.
        inputs: batches [N, C, H, W] of the oracle at the entry of the unit or window.
        targets: the oracle's linear exits for the same batches, [N, C', H', W'].
        seed: chooses the sampled positions.
    """
    projection = _projection(alternative)
    if projection is None:
        return False
    conv = module_of(alternative, projection.conv)
    if not isinstance(conv, nn.Conv2d) or conv.weight[0].numel() + 1 > MAX_COLUMNS:
        return False
    design, wanted = _samples(alternative, projection, conv, inputs, targets, seed)
    _install(conv, module_of(alternative, projection.bn) if projection.bn else None, design, wanted)
    return True


def _projection(unit: fx.GraphModule) -> _Projection | None:
    """The last dense convolution on the longest path into the linear exit, with its BN."""
    node = linear_exit(unit)
    candidates = node.all_input_nodes if is_add(node) else [node]
    order = {n: i for i, n in enumerate(unit.graph.nodes)}
    found = [p for p in (_conv_step(unit, candidate) for candidate in candidates) if p is not None]
    return max(found, key=lambda p: _depth(p.conv, order), default=None)


def _depth(node: fx.Node, order: dict[fx.Node, int]) -> int:
    """Operations on the longest path from the unit's input to `node`."""
    depths: dict[fx.Node, int] = {}
    for other in sorted(order, key=order.__getitem__):
        depths[other] = 1 + max((depths[i] for i in other.all_input_nodes), default=0)
    return depths[node]


def _conv_step(unit: fx.GraphModule, node: fx.Node) -> _Projection | None:
    bn = node if isinstance(module_of(unit, node), nn.BatchNorm2d) else None
    conv = bn.all_input_nodes[0] if bn else node
    module = module_of(unit, conv)
    dense = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    # Read by the addition, activation or output alone: what else reads it would change with it.
    alone = len(conv.users) == len(node.users) == 1
    return _Projection(conv, bn, node) if dense and alone and _is_free(module, unit, bn) else None


def _is_free(conv: nn.Module | None, unit: fx.GraphModule, bn: fx.Node | None) -> bool:
    """Whether the regression can set scale and offset, and knows the padding."""
    norm = module_of(unit, bn) if bn else None
    return getattr(conv, "padding", None) != "same" and (norm is None or (norm.affine and norm.track_running_stats))


def _samples(
    unit: fx.GraphModule,
    projection: _Projection,
    conv: nn.Conv2d,
    inputs: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the regression: patches [S, K] that the convolution reads, and what it should give [S, C']."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, 6 * (conv.weight[0].numel() + 1) // len(inputs))
    designs, wanteds = [], []
    for batch, target in zip(inputs, targets, strict=True):
        env = node_values(unit, batch)
        shortcut = env[linear_exit(unit)] - env[projection.end]
        patches = nn.functional.unfold(
            env[projection.conv.all_input_nodes[0]], conv.kernel_size, conv.dilation, _padding(conv), conv.stride
        )  # [N, K, L]
        patches = patches.transpose(1, 2).flatten(0, 1)  # [N * L, K]
        wanted = (target - shortcut).flatten(2).transpose(1, 2).flatten(0, 1)  # [N * L, C']
        chosen = torch.randperm(len(patches), generator=generator)[:rows]
        designs.append(patches[chosen])
        wanteds.append(wanted[chosen])
    return torch.cat(designs), torch.cat(wanteds)


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    return conv.padding if isinstance(conv.padding, tuple) else (0, 0)


def node_values(unit: fx.GraphModule, batch: torch.Tensor) -> dict[fx.Node, torch.Tensor]:
    """Every value that `unit` computes on the way from `batch` [N, C, H, W] to its output."""
    interpreter = fx.Interpreter(unit, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(batch)
    return interpreter.env


def _install(conv: nn.Conv2d, bn: nn.Module | None, design: torch.Tensor, wanted: torch.Tensor) -> None:
    """Solve the ridge system and write it into the convolution and its BN, statistics included."""
    mean_in, mean_out = design.mean(0), wanted.mean(0)
    centred = (design - mean_in).double()
    gram = centred.T @ centred
    gram += RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - mean_out).double()).T.float()  # [C', K]
    produced = design @ weight.T
    with torch.no_grad():
        conv.weight.copy_(weight.view_as(conv.weight))
        if conv.bias is not None:
            conv.bias.zero_()
        if isinstance(bn, nn.BatchNorm2d) and bn.affine:
            bn.running_mean.copy_(produced.mean(0))
            bn.running_var.copy_(produced.var(0, unbiased=False))
            bn.weight.copy_((bn.running_var + bn.eps).sqrt())
            bn.bias.copy_(mean_out)
        elif conv.bias is not None:
            conv.bias.copy_(mean_out - weight @ mean_in)
