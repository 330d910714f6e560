"""Rewrites of a graph that onnxruntime optimised and dumped on this machine; see `prepare.py` for their order."""

from edge_runtime.backends.onnx.passes.conditions import decide_at_once
from edge_runtime.backends.onnx.passes.crossing import CrossingReport, keep_blocked, value_shapes
from edge_runtime.backends.onnx.passes.inline import inline_gates
from edge_runtime.backends.onnx.passes.lift import Lifted, lift_switched
from edge_runtime.backends.onnx.passes.names import decisions_of, make_names_unique

__all__ = [
    "CrossingReport",
    "Lifted",
    "decide_at_once",
    "decisions_of",
    "inline_gates",
    "keep_blocked",
    "lift_switched",
    "make_names_unique",
    "value_shapes",
]
