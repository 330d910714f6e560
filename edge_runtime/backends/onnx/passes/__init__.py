"""Rewrites of a graph that onnxruntime optimised and dumped on this machine; see `prepare.py` for their order."""

from edge_runtime.backends.onnx.passes.crossing import CrossingReport, keep_blocked, value_shapes
from edge_runtime.backends.onnx.passes.decisions import Decisions, decide_outside
from edge_runtime.backends.onnx.passes.inline import inline_gates
from edge_runtime.backends.onnx.passes.lift import Lifted, lift_switched
from edge_runtime.backends.onnx.passes.names import decisions_of, make_names_unique
from edge_runtime.backends.onnx.passes.neighbours import join_neighbours
from edge_runtime.backends.onnx.passes.parts import Part, cut_in_parts
from edge_runtime.backends.onnx.passes.tensors import move_tensors_in
from edge_runtime.backends.onnx.passes.whole import run_default_whole

__all__ = [
    "CrossingReport",
    "Decisions",
    "Lifted",
    "Part",
    "cut_in_parts",
    "decide_outside",
    "decisions_of",
    "inline_gates",
    "join_neighbours",
    "keep_blocked",
    "lift_switched",
    "make_names_unique",
    "move_tensors_in",
    "run_default_whole",
    "value_shapes",
]
