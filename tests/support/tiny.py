"""A small gated bundle made without torch, and a numpy model of it that shares no code with onnxruntime.

Three groups of residual units on 16 channels: `unit0` has original, narrow50 and skip; `unit1` the same and merged2,
which replaces `unit1` and `unit2`; `unit2` again original, narrow50 and skip. 3 * (3 * 3 + 1) = 30 subnets. The graph
has exactly the form that builder.export writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edge_runtime.bundle import Bundle, Manifest, Preprocessing, Provenance, Task, TensorSpec, write_bundle
from edge_runtime.gates import GateGroup, Gates, GateSpace

Float = npt.NDArray[np.float32]

CHANNELS = 16
CLASSES = ("bolt", "nut", "washer", "spring")
SPACE = GateSpace(
    (
        GateGroup("unit0", "choice", ("original", "narrow50", "skip")),
        GateGroup("unit1", "choice", ("original", "narrow50", "skip", "merged2"), (1, 1, 1, 2)),
        GateGroup("unit2", "choice", ("original", "narrow50", "skip")),
    )
)
PRIOR = ((0.0, 0.01, 0.03), (0.0, 0.02, 0.05, 0.06), (0.0, 0.01, 0.02))
EXTERNAL_FROM_BYTES = 1024


@dataclass
class TinyParts:
    """The three parts of a bundle, free to be damaged before they are written."""

    manifest: Manifest
    model: onnx.ModelProto
    weights: bytes

    def write(self, path: Any) -> Bundle:
        return write_bundle(path, self.manifest, self.model.SerializeToString(deterministic=True), self.weights)


def tiny_bundle(path: Any, *, seed: int = 0, size: int = 16) -> Bundle:
    """Write the bundle (directory, or zip for `.nnf`) for images of `size` px and return it."""
    return tiny_parts(seed=seed, size=size).write(path)


def tiny_parts(*, seed: int = 0, size: int = 16) -> TinyParts:
    """Fresh parts of the bundle that `tiny_bundle` writes."""
    graph = _Graph(seed, size)
    return TinyParts(_manifest(size, seed), graph.model(), bytes(graph.weights))


def tiny_reference(gates: Gates, x: Float, *, seed: int = 0) -> Float:
    """Logits [N, 4] of `x` [N, 3, S, S] under `gates`, in float64 numpy from the same seeded weights."""
    tensors = tiny_weights(seed)
    h = np.maximum(_conv_bn(x.astype(np.float64), tensors, "stem"), 0)
    for index, value in enumerate(gates.values):
        if gates.active[index]:
            h = _unit(h, tensors, index, gates.space.groups[index].labels[int(value)])  # type: ignore[arg-type]
    pooled = h.mean(axis=(2, 3))
    return (pooled @ tensors["head.weight"].T.astype(np.float64) + tensors["head.bias"]).astype(np.float32)


@lru_cache(maxsize=8)
def tiny_weights(seed: int = 0) -> dict[str, Float]:
    """Name to float32 tensor; scaled so that every alternative visibly moves the logits."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Float] = {}
    _add_conv(tensors, rng, "stem", CHANNELS, 3)
    for index in range(3):
        for label, width in (("original", CHANNELS), ("narrow50", CHANNELS // 2)):
            _add_conv(tensors, rng, f"unit{index}.{label}.a", width, CHANNELS)
            _add_conv(tensors, rng, f"unit{index}.{label}.b", CHANNELS, width)
    _add_conv(tensors, rng, "unit1.merged2", CHANNELS, CHANNELS)
    tensors["head.weight"] = rng.normal(0, 1.5, (len(CLASSES), CHANNELS)).astype(np.float32)
    tensors["head.bias"] = rng.normal(0, 0.1, len(CLASSES)).astype(np.float32)
    return tensors


def _add_conv(tensors: dict[str, Float], rng: np.random.Generator, name: str, out: int, into: int) -> None:
    tensors[f"{name}.weight"] = rng.normal(0, 1.4 / np.sqrt(9 * into), (out, into, 3, 3)).astype(np.float32)
    tensors[f"{name}.scale"] = rng.uniform(0.8, 1.2, out).astype(np.float32)
    tensors[f"{name}.shift"] = rng.normal(0, 0.3, out).astype(np.float32)
    tensors[f"{name}.mean"] = rng.normal(0, 0.3, out).astype(np.float32)
    tensors[f"{name}.var"] = rng.uniform(0.5, 1.5, out).astype(np.float32)


def _conv_bn(x: npt.NDArray[np.float64], tensors: dict[str, Float], name: str) -> npt.NDArray[np.float64]:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, tensors[f"{name}.weight"].astype(np.float64), optimize=True)
    scale, shift, mean, var = (
        tensors[f"{name}.{part}"][None, :, None, None] for part in ("scale", "shift", "mean", "var")
    )
    return (y - mean) / np.sqrt(var + 1e-5) * scale + shift


def _unit(h: npt.NDArray[np.float64], tensors: dict[str, Float], index: int, label: str) -> npt.NDArray[np.float64]:
    if label == "skip":
        return h
    name = f"unit{index}.{label}"
    if label == "merged2":
        return np.maximum(h + _conv_bn(h, tensors, name), 0)
    inner = np.maximum(_conv_bn(h, tensors, f"{name}.a"), 0)
    return np.maximum(h + _conv_bn(inner, tensors, f"{name}.b"), 0)


def _manifest(size: int, seed: int) -> Manifest:
    return Manifest(
        name="tiny",
        space=SPACE,
        inputs=(TensorSpec("image", "float32", (None, 3, size, size)),),
        outputs=(TensorSpec("logits", "float32", (None, len(CLASSES))),),
        gate_input="gates",
        preprocessing=Preprocessing(size, size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        task=Task("classification", CLASSES),
        prior=PRIOR,
        provenance=Provenance("tiny", "random", "tests/support/tiny.py", seed, {}, "pytest", "2026-01-01T00:00:00Z"),
        figures={"oracle_accuracy": 0.25},
    )


class _Graph:
    """Builds the ModelProto and the external weights beside it."""

    def __init__(self, seed: int, size: int) -> None:
        self.size = size
        self.weights = bytearray()
        self.initializers: list[onnx.TensorProto] = []
        for name, values in tiny_weights(seed).items():
            self._initializer(name, values)
        for index in range(4):
            self._initializer(f"const_{index}", np.array(index, np.int64))

    def model(self) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Gather", ["gates", f"const_{i}"], [f"gate_{i}"], f"gather_{i}", axis=0) for i in range(3)
        ]
        stem_nodes = self._conv_bn("image", "stem", "stem.out", relu=True)
        nodes += [*stem_nodes, *self._choice(0, "stem.out", "h0"), *self._window("h0", "h2")]
        nodes.append(helper.make_node("GlobalAveragePool", ["h2"], ["pooled"], "pool"))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["features"], "flatten", axis=1))
        nodes.append(helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head", transB=1))
        graph = helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, self.size, self.size]),
                helper.make_tensor_value_info("gates", TensorProto.INT64, [SPACE.width]),
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="nnf-edge")
        model.ir_version = 8
        return model

    def _initializer(self, name: str, values: npt.NDArray[Any]) -> None:
        raw = values.tobytes()
        tensor = TensorProto(name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype))
        if len(raw) < EXTERNAL_FROM_BYTES:
            tensor.raw_data = raw
        else:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", len(self.weights)), ("length", len(raw))):
                tensor.external_data.add(key=key, value=str(value))
            self.weights += raw
        self.initializers.append(tensor)

    def _conv_bn(self, x: str, name: str, out: str, *, relu: bool = False) -> list[onnx.NodeProto]:
        parts = [f"{name}.{part}" for part in ("scale", "shift", "mean", "var")]
        attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
        bn = f"{name}.bn" if relu else out
        nodes = [
            helper.make_node("Conv", [x, f"{name}.weight"], [f"{name}.conv"], f"{name}.conv", **attributes),
            helper.make_node("BatchNormalization", [f"{name}.conv", *parts], [bn], f"{name}.bn", epsilon=1e-5),
        ]
        return nodes + ([helper.make_node("Relu", [bn], [out], f"{name}.relu")] if relu else [])

    def _branch(self, name: str, nodes: list[onnx.NodeProto], out: str) -> onnx.GraphProto:
        shape = ["N", CHANNELS, self.size, self.size]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)])

    def _alternative(self, index: int, label: str, x: str) -> onnx.GraphProto:
        name = f"unit{index}.{label}"
        out = f"{name}.out"
        if label == "skip":
            nodes = [helper.make_node("Identity", [x], [out], f"{name}.identity")]
            return self._branch(name, nodes, out)
        if label == "merged2":
            nodes = self._conv_bn(x, name, f"{name}.bn")
            last = f"{name}.bn"
        else:
            nodes = [*self._conv_bn(x, f"{name}.a", f"{name}.a.out", relu=True)]
            nodes += self._conv_bn(f"{name}.a.out", f"{name}.b", f"{name}.b.bn")
            last = f"{name}.b.bn"
        nodes.append(helper.make_node("Add", [x, last], [f"{name}.sum"], f"{name}.add"))
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [out], f"{name}.relu"))
        return self._branch(name, nodes, out)

    def _choice(self, index: int, x: str, out: str) -> list[onnx.NodeProto]:
        """`group_<i>`: the original first, then a tree over narrow50 and skip."""
        tree = f"group_{index}_tree_1"
        rest = [
            helper.make_node("Less", [f"gate_{index}", "const_2"], [f"{tree}.test"], f"{tree}.less"),
            helper.make_node(
                "If",
                [f"{tree}.test"],
                [f"{tree}.out"],
                tree,
                then_branch=self._alternative(index, "narrow50", x),
                else_branch=self._alternative(index, "skip", x),
            ),
        ]
        return [
            helper.make_node("Equal", [f"gate_{index}", "const_0"], [f"group_{index}.test"], f"group_{index}.equal"),
            helper.make_node(
                "If",
                [f"group_{index}.test"],
                [out],
                f"group_{index}",
                then_branch=self._alternative(index, "original", x),
                else_branch=self._branch(tree, rest, f"{tree}.out"),
            ),
        ]

    def _window(self, x: str, out: str) -> list[onnx.NodeProto]:
        """`window_1`: the two units of their own, or the one that replaces both."""
        units = [*self._choice(1, x, "h1"), *self._choice(2, "h1", "window_1.units")]
        return [
            helper.make_node("Less", ["gate_1", "const_3"], ["window_1.test"], "window_1.less"),
            helper.make_node(
                "If",
                ["window_1.test"],
                [out],
                "window_1",
                then_branch=self._branch("window_1.units", units, "window_1.units"),
                else_branch=self._alternative(1, "merged2", x),
            ),
        ]
