"""Weights lie in the innermost graph that alone reads them.

What a branch reads from outside is handed on at each `If` on the way in every run, whether the branch runs or not, and
kernels that arrange their weights once, as convolutions of codes do, only do so for weights of their own graph.
Weights of branches that do not run stay on the disk, as before.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from edge_runtime.backends.onnx.passes.names import branches_of, copied
from edge_runtime.backends.onnx.passes.whole import reads

__all__ = ["move_tensors_in"]


def move_tensors_in(graph: Any) -> None:
    """Rewrite a GraphProto of unique value names in place, its branches included."""
    branches = [branch for node in graph.node for branch in branches_of(node)]
    read = [set(_read_in(branch)) for branch in branches]
    readers = Counter(name for names in read for name in names)
    own = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = []
    for tensor in graph.initializer:
        if tensor.name in own or readers[tensor.name] != 1:
            kept.append(copied(tensor))
        else:
            branches[next(place for place, names in enumerate(read) if tensor.name in names)].initializer.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for branch in branches:
        move_tensors_in(branch)


def _read_in(graph: Any) -> set[str]:
    """Every name that a graph and those below it read, or give."""
    return {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
