"""The supernets of the bench: ours, AdaptiveNet's in the same space, and networks that were made for one latency."""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor, fx, nn

from builder.elastify import ElasticOptions, Supernet, elastify, find_segments
from builder.elastify.channels import channel_plan
from builder.elastify.cost import multiply_accumulates
from builder.elastify.narrow import narrow
from builder.elastify.supernet import Alternative, Unit
from builder.elastify.trace import trace

__all__ = ["Sliced", "adaptivenet", "in_pieces", "sliced"]

IN_PLACE_OF_SKIP = 0.75
"""Width of what AdaptiveNet gets where ours may skip, which it knows nothing of: its own widest pruned copy."""


def adaptivenet(ours: Supernet) -> Supernet:
    """The same units, windows and numbers of alternatives as `ours`, made as AdaptiveNet makes them.

    A pruned copy keeps the first channels, not the important ones; a merged block is a copy of the window's first
    block, all tensors that fit included; nothing is fitted to the data. (Wen et al. 2023, arXiv 2303.07129; its own
    space has the widths 0.75 and 0.5 and windows at every block, which may overlap.)
    """
    units, bodies = [], []
    for unit in ours.units:
        original = ours.fixed[unit.segment]
        made = [_copied(original, alternative.label) for alternative in unit.alternatives[1:]]
        bodies.append(nn.ModuleList(module for _, module in made))
        known = zip(unit.alternatives[1:], made, strict=True)
        own = (Alternative(label, old.span, multiply_accumulates(module)) for old, (label, module) in known)
        units.append(Unit(unit.segment, (unit.alternatives[0], *own)))
    return Supernet(ours.program, units, bodies, ours.report())


def _copied(original: fx.GraphModule, label: str) -> tuple[str, fx.GraphModule]:
    """AdaptiveNet's counterpart of one of our alternatives, with its label."""
    found = re.search(r"narrow(\d+)$", label)
    if found is None and label != "skip":
        return label, copy.deepcopy(original).requires_grad_(True)
    ratio = IN_PLACE_OF_SKIP if found is None else int(found[1]) / 100
    first = [torch.arange(width.units, 0, -1.0) for width in channel_plan(original).widths]
    copied = narrow(original, ratio, first)
    if copied is None:  # nothing to prune: a plain copy, which a search will hardly choose
        copied = copy.deepcopy(original).requires_grad_(True)
    return f"narrow{round(100 * IN_PLACE_OF_SKIP)}" if found is None else label, copied


class Sliced(nn.Module):
    """A network of its own, cut out of the oracle: one chain of pieces, all of it trainable."""

    def __init__(self, pieces: list[nn.Module], narrowed: list[int]) -> None:
        super().__init__()
        self.pieces = nn.Sequential(*pieces)
        self.narrowed = tuple(narrowed)
        """Pieces that are narrower than the oracle's."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.pieces(x)

    def values(self, x: Tensor) -> list[Tensor]:
        """What each piece gives."""
        found = []
        for piece in self.pieces:
            x = piece(x)
            found.append(x)
        return found


def sliced(oracle: nn.Module, images: Tensor, ratio: float, seed: int) -> Sliced:
    """The oracle with `ratio` of the inner channels of every unit, by importance and refitted.

    Args:
        oracle: a chain of units.
        images: for the importance and the closed-form fit.
        ratio: in (0, 1).
        seed: of the fit.
    """
    options = ElasticOptions(widths=(ratio,), window=1, skip=False, storage_ratio=10.0)
    supernet = elastify(oracle, images, options, seed=seed)
    numbered = enumerate(supernet.segments)
    chosen = [(supernet.unit_of.get(index), segment.module) for index, segment in numbered]
    pieces = [module if unit is None else supernet.alternative(unit, 1) for unit, module in chosen]
    narrowed = [index for index, (unit, _) in enumerate(chosen) if unit is not None]
    return Sliced([copy.deepcopy(piece) for piece in pieces], narrowed).requires_grad_(True)


def in_pieces(oracle: nn.Module, example: Tensor) -> Sliced:
    """The oracle itself, frozen, cut as `sliced` cuts it."""
    pieces = [segment.module for segment in find_segments(trace(oracle, example))]
    return Sliced(pieces, []).requires_grad_(False).eval()
