"""Networks exported through the lowering alone, as bundles whose one group has nothing to switch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from builder.export.lower import lower_many
from builder.onnx_writer import GraphWriter
from edge_runtime.backends import open_session
from edge_runtime.bundle import Bundle, Manifest, Preprocessing, Provenance, Task, TensorSpec, write_bundle
from edge_runtime.gates import GateGroup, GateSpace

ALONE = GateSpace((GateGroup("all", "choice", ("original",)),))


class Net(nn.Module):
    """A function of itself and its inputs, with named parts; its result is flattened to [N, K]."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x).flatten(1)


def traced_by_fx(net: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    return with_shapes(fx.symbolic_trace(net), *inputs)


def with_shapes(module: fx.GraphModule, *inputs: torch.Tensor) -> fx.GraphModule:
    with torch.no_grad():
        ShapeProp(module).propagate(*inputs)
    return module


def specs(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(n, "float32", (None, *t.shape[1:])) for n, t in zip(names, tensors, strict=True))


def info(spec: TensorSpec) -> Any:
    return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["N", *spec.shape[1:]])


def bundle_of(
    path: Path,
    body: Callable[[GraphWriter], list[str]],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    space: GateSpace = ALONE,
) -> Bundle:
    """The bundle of the graph that `body` writes; it gives the names of the values that become `outputs`."""
    writer = GraphWriter()
    for name, spec in zip(body(writer), outputs, strict=True):
        writer.node("Identity", [name], f"output.{spec.name}", output=spec.name)
    gates = helper.make_tensor_value_info("gates", TensorProto.INT64, [space.width])
    model = writer.model([*map(info, inputs), gates], [*map(info, outputs)], "test")
    shape, classes = inputs[0].shape, int(outputs[0].shape[1] or 0)
    manifest = Manifest(
        name="test",
        space=space,
        inputs=inputs,
        outputs=outputs,
        gate_input="gates",
        preprocessing=Preprocessing(int(shape[2] or 0), int(shape[3] or 0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        task=Task("classification", tuple(f"c{index}" for index in range(classes))),
        prior=tuple((0.0,) * group.size for group in space.groups),
        provenance=Provenance("test", "random", "test", 0, {}, "pytest", "2026-01-01T00:00:00Z"),
        figures={},
    )
    return write_bundle(path, manifest, model.SerializeToString(deterministic=True), bytes(writer.weights))


def exported(path: Path, traced: fx.GraphModule, x: torch.Tensor, y: torch.Tensor) -> Bundle:
    """A traced module of one input and one output [N, K] as a bundle."""
    return bundle_of(
        path, lambda writer: lower_many(writer, traced, "net", ["image"]), specs(["image"], [x]), specs(["logits"], [y])
    )


def relative_error(bundle: Bundle, net: nn.Module, x: torch.Tensor) -> float:
    """Largest difference of the exported graph from `net`, over the largest magnitude that `net` gives."""
    session = open_session(bundle)  # checks the graph first
    with torch.no_grad():
        wanted = net(x).numpy()
    found = session.run({"image": x.numpy()}, bundle.manifest.space.default)["logits"]
    session.close()
    assert np.ptp(wanted) > 0
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
