"""What an evaluation costs, counted the same way for every search: images through blocks.

A block is one elastic unit or one fixed piece: an image through it counts once, whichever alternative runs there; a
merged alternative is one block, and what it covers none; a module or an expert that is on is one. The pieces around the
units, stem and head, are one each. With prefix reuse only what really ran counts: subnets that begin with the same
decisions run these once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edge_runtime.gates import Gates, GateValue

__all__ = ["Run", "blocks_of", "plain_blocks", "shared_blocks"]

STEM = HEAD = 1

Run = tuple[Gates, tuple[int, ...]]
"""A subnet, and the numbers of the images of one batch that it ran on."""


def blocks_of(gates: Gates) -> int:
    """Blocks that one image passes in a subnet."""
    return STEM + sum(_weight(value) for _, value in _decisions(gates)) + HEAD


def plain_blocks(runs: Iterable[Run]) -> int:
    """Block evaluations of some runs, each by itself."""
    return sum(len(images) * blocks_of(gates) for gates, images in runs)


def shared_blocks(runs: Iterable[Run], width: int | None = None) -> int:
    """Block evaluations of some runs where those on the same images share their prefixes, in the best order there is.

    Args:
        runs: in the order in which they were asked for.
        width: how many subnets that ran on the same images in succession share; None: all of them.
    """
    by_images: dict[tuple[int, ...], list[Gates]] = {}
    for gates, images in runs:
        by_images.setdefault(images, []).append(gates)
    return sum(
        len(images) * _trie_blocks(subnets[start : start + (width or len(subnets))])
        for images, subnets in by_images.items()
        for start in range(0, len(subnets), width or len(subnets))
    )


def _trie_blocks(subnets: Sequence[Gates]) -> int:
    """Blocks that one image passes in all subnets when equal beginnings run once; heads follow different features."""
    seen: dict[tuple[tuple[int, GateValue], ...], int] = {}
    for gates in set(subnets):
        path = tuple(_decisions(gates))
        for stop in range(1, len(path) + 1):
            seen.setdefault(path[:stop], _weight(path[stop - 1][1]))
    return STEM + sum(seen.values()) + HEAD * len(set(subnets))


def _decisions(gates: Gates) -> Iterator[tuple[int, GateValue]]:
    rows = enumerate(zip(gates.values, gates.active, strict=True))
    yield from ((index, value) for index, (value, active) in rows if active)


def _weight(value: GateValue) -> int:
    return 1 if isinstance(value, int) else sum(value)
