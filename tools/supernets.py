"""Supernets of the size of well-known networks with random weights: to measure sessions on, not to classify with.

    python tools/supernets.py mobilenetv2 OUT.nnf [--size 224] [--seed 0]
    python tools/supernets.py resnet50 OUT.nnf
    python tools/supernets.py modules OUT.nnf --size 32

Every residual block is a decision: the original, 75, 50 and 25 % of its inner width, and a skip (where the shape
changes, its projection alone; where there is none, no skip). In `modules` one block is such a decision; the others are
layers of 8 modules each, any of which may be off. Needs neither torch nor data.
"""

# ruff: noqa: TID251 - a tool may use the builder's writer; only the runtime must not

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from builder.onnx_writer import GraphWriter
from edge_runtime.bundle import Bundle, Manifest, Preprocessing, Provenance, Task, TensorSpec, write_bundle
from edge_runtime.gates import GateGroup, GateSpace

CLASSES = 1000
WIDTHS = (1.0, 0.75, 0.5, 0.25)
MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of each stage (Sandler et al. 2018, table 2)."""
MODULES = 8
LAYERS = ((32, 1), (32, 1), (64, 2), (64, 1), (64, 1))
"""Channels and stride of each layer of modules; each module has as many hidden channels as 8 go into twice those."""
RESNET = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Inner channels, blocks, stride of each stage (He et al. 2016, table 1); a block gives four times as many."""


class Net:
    """Writes the gated graph layer by layer; activations are [N, C, H, W] with H = W."""

    def __init__(self, size: int, seed: int) -> None:
        self.writer = GraphWriter()
        self._rng = np.random.default_rng(seed)
        self.size = self._side = size
        self.groups: list[GateGroup] = []

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        """Convolution and BatchNormalization; weights of variance 2 / fan-in keep activations in range."""
        writer, fan_in = self.writer, cin // group * kernel * kernel
        weight = self._rng.normal(0, (2 / fan_in) ** 0.5, (cout, cin // group, kernel, kernel)).astype(np.float32)
        pad = kernel // 2
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": group}
        out = writer.node("Conv", [x, writer.initializer(f"{name}.weight", weight)], name, attributes)
        return self.norm(out, name, cout)

    def norm(self, x: str, name: str, cout: int) -> str:
        """BatchNormalization of `cout` channels."""
        writer = self.writer
        parts = {"scale": self._rng.uniform(0.5, 1.0, cout), "shift": self._rng.normal(0, 0.1, cout)}
        parts |= {"mean": np.zeros(cout), "var": np.ones(cout)}
        names = [writer.initializer(f"{name}.{part}", value.astype(np.float32)) for part, value in parts.items()]
        return writer.node("BatchNormalization", [x, *names], f"{name}.bn", {"epsilon": 1e-5})

    def gate(self, unit: int, entry: int) -> None:
        """Take the gate of decision `unit` out of the vector."""
        inputs = ["gates", self.writer.scalar(entry)]
        self.writer.node("Gather", inputs, f"gather_{unit}", {"axis": 0}, output=f"gate_{unit}")

    def relu(self, x: str, name: str) -> str:
        """Activation of ResNet."""
        return self.writer.node("Relu", [x], name)

    def relu6(self, x: str, name: str) -> str:
        """Activation of MobileNetV2."""
        bounds = [self.writer.initializer(f"clip_{bound}", np.array(bound, np.float32)) for bound in (0.0, 6.0)]
        return self.writer.node("Clip", [x, *bounds], name)

    def decide(self, shape: Sequence[int], labels: Sequence[str], bodies: Sequence[Callable[[], str]]) -> str:
        """One decision point, the original first, then a balanced tree."""
        unit, writer = len(self.groups), self.writer
        self.groups.append(GateGroup(f"unit{unit}", "choice", tuple(labels)))
        name = f"group_{unit}"

        def branch(label: str, body: Callable[[], str]) -> Any:
            writer.open_branch()
            return writer.close_branch(writer.unique(f"{name}_{label}"), body(), shape)

        def tree(values: Sequence[int]) -> str:
            if len(values) == 1:
                return bodies[values[0]]()
            half = len(values) // 2
            condition = writer.node("Less", [f"gate_{unit}", writer.scalar(values[half])], f"{name}_test")
            branches = {"then_branch": branch("low", lambda: tree(values[:half]))}
            branches["else_branch"] = branch("high", lambda: tree(values[half:]))
            return writer.node("If", [condition], f"{name}_tree_{values[half]}", branches)

        condition = writer.node("Equal", [f"gate_{unit}", writer.scalar(0)], f"{name}_first")
        branches = {"then_branch": branch("0", bodies[0])}
        branches["else_branch"] = branch("rest", lambda: tree(range(1, len(bodies))))
        return writer.node("If", [condition], name, branches)

    def modules(self, x: str, name: str, cin: int, cout: int, stride: int) -> str:
        """One layer of modules: from `cin` channels to 2 * `cout` hidden ones, an eighth for each module, and back.

        The hidden channels have a bias and no normalisation: of a bias modules can be picked as of a weight.
        """
        writer, hidden = self.writer, 2 * cout
        at, group = sum(each.width for each in self.groups), GateGroup(name, "subset", _numbered(MODULES))
        self.groups.append(group)
        entries = np.repeat(np.arange(at, at + MODULES), hidden // MODULES)
        gates = ["gates", writer.initializer(f"{name}.entries", entries)]
        gates = [writer.node("Gather", gates, f"{name}.gather", {"axis": 0})]
        on = writer.node("Cast", gates, f"{name}.on", {"to": TensorProto.BOOL})

        def picked(part: str, shape: Sequence[int], scale: float, axis: int) -> str:
            values = self._rng.normal(0, scale, shape).astype(np.float32)
            whole = writer.initializer(f"{name}.{part}", values)
            return writer.node("Compress", [whole, on], f"{name}.{part}.pick", {"axis": axis})

        three = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4}
        weight = picked("weight", (hidden, cin, 3, 3), (2 / (9 * cin)) ** 0.5, 0)
        h = writer.node("Conv", [x, weight, picked("bias", (hidden,), 0.1, 0)], f"{name}.expand", three)
        back = [self.relu(h, f"{name}.act"), picked("back", (cout, hidden, 1, 1), (2 / hidden) ** 0.5, 1)]
        y = writer.node("Conv", back, f"{name}.project", {"kernel_shape": [1, 1]})
        return self.norm(y, f"{name}.project", cout)

    def bundle(self, name: str, x: str, channels: int, path: Path, seed: int) -> Bundle:
        """Head, manifest and file."""
        writer, space = self.writer, GateSpace(tuple(self.groups))
        x = writer.node("Flatten", [writer.node("GlobalAveragePool", [x], "pool")], "flatten", {"axis": 1})
        weight = self._rng.normal(0, channels**-0.5, (CLASSES, channels)).astype(np.float32)
        head = [
            writer.initializer("head.weight", weight),
            writer.initializer("head.bias", np.zeros(CLASSES, np.float32)),
        ]
        writer.node("Gemm", [x, *head], "head", {"transB": 1}, output="logits")
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, self.size, self.size]),
            helper.make_tensor_value_info("gates", TensorProto.INT64, [space.width]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])]
        model = writer.model(inputs, outputs, name)
        labels = tuple(f"class {number}" for number in range(CLASSES))
        manifest = Manifest(
            name=name,
            space=space,
            inputs=(TensorSpec("image", "float32", (None, 3, self.size, self.size)),),
            outputs=(TensorSpec("logits", "float32", (None, CLASSES)),),
            gate_input="gates",
            preprocessing=Preprocessing(self.size, self.size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            task=Task("classification", labels),
            prior=tuple(tuple(0.1 * value for value in range(group.size)) for group in self.groups),
            provenance=Provenance(
                name, "random weights", "tools/supernets.py", seed, {}, "supernets", "2026-01-01T00:00:00Z"
            ),
        )
        return write_bundle(path, manifest, model.SerializeToString(deterministic=True), bytes(writer.weights))


def _inner(channels: int, share: float) -> int:
    """A share of some channels, in multiples of 16 as the blocked layout wants them."""
    return max(16, round(channels * share / 16) * 16)


def mobilenetv2(path: Path, size: int, seed: int) -> Bundle:
    """MobileNetV2 1.0 with 17 decisions."""
    net, cin = Net(size, seed), 32
    for index in range(sum(count for _, _, count, _ in MOBILENET)):
        net.gate(index, index)
    x = net.relu6(net.conv("image", "stem", 3, cin, 3, 2), "stem.act")
    side, index = size // 2, 0
    for expansion, cout, count, stride in MOBILENET:
        for number in range(count):
            step = stride if number == 0 else 1
            side = -(-side // step)
            x = _inverted(net, x, f"unit{index}", cin, cout, expansion, step, side)
            cin, index = cout, index + 1
    x = net.relu6(net.conv(x, "last", cin, 1280, 1), "last.act")
    return net.bundle("random-mobilenetv2", x, 1280, path, seed)


def _inverted(net: Net, x: str, name: str, cin: int, cout: int, expansion: int, stride: int, side: int) -> str:
    residual = stride == 1 and cin == cout

    def body(share: float) -> Callable[[], str]:
        def build() -> str:
            at, hidden = f"{name}.{share}", _inner(cin * expansion, share)
            h = net.relu6(net.conv(x, f"{at}.expand", cin, hidden, 1), f"{at}.a")
            h = net.relu6(net.conv(h, f"{at}.depthwise", hidden, hidden, 3, stride, hidden), f"{at}.b")
            h = net.conv(h, f"{at}.project", hidden, cout, 1)
            return net.writer.node("Add", [x, h], f"{at}.add") if residual else h

        return build

    labels, bodies = [_label(share) for share in WIDTHS], [body(share) for share in WIDTHS]
    if residual:
        labels, bodies = [*labels, "skip"], [*bodies, lambda: net.writer.node("Identity", [x], f"{name}.skip")]
    return net.decide((cout, side, side), labels, bodies)


def resnet50(path: Path, size: int, seed: int) -> Bundle:
    """ResNet-50 with 16 decisions."""
    net = Net(size, seed)
    for index in range(sum(count for _, count, _ in RESNET)):
        net.gate(index, index)
    x = net.relu(net.conv("image", "stem", 3, 64, 7, 2), "stem.act")
    x = net.writer.node("MaxPool", [x], "stem.pool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]})
    cin, side, index = 64, -(-size // 4), 0
    for width, count, stride in RESNET:
        for number in range(count):
            step = stride if number == 0 else 1
            side = -(-side // step)
            x = _bottleneck(net, x, f"unit{index}", cin, width, step, side)
            cin, index = 4 * width, index + 1
    return net.bundle("random-resnet50", x, cin, path, seed)


def _bottleneck(net: Net, x: str, name: str, cin: int, width: int, stride: int, side: int) -> str:
    cout = 4 * width
    projects = stride != 1 or cin != cout

    def shortcut(at: str) -> str:
        return net.conv(x, f"{name}.project", cin, cout, 1, stride) if projects else x

    def body(share: float) -> Callable[[], str]:
        def build() -> str:
            at, inner = f"{name}.{share}", _inner(width, share)
            h = net.relu(net.conv(x, f"{at}.reduce", cin, inner, 1), f"{at}.a")
            h = net.relu(net.conv(h, f"{at}.middle", inner, inner, 3, stride), f"{at}.b")
            h = net.conv(h, f"{at}.expand", inner, cout, 1)
            return net.relu(net.writer.node("Add", [h, shortcut(at)], f"{at}.add"), f"{at}.c")

        return build

    def skip() -> str:
        return (
            net.relu(shortcut("skip"), f"{name}.skip") if projects else net.writer.node("Identity", [x], f"{name}.skip")
        )

    labels = [*(_label(share) for share in WIDTHS), "skip"]
    return net.decide((cout, side, side), labels, [*(body(share) for share in WIDTHS), skip])


def modules(path: Path, size: int, seed: int) -> Bundle:
    """Five layers of 8 modules, three of them residual, and one decision in their midst."""
    net, cin, side = Net(size, seed), LAYERS[0][0], size // 2
    net.gate(2, 2 * MODULES)
    x = net.relu(net.conv("image", "stem", 3, cin, 3, 2), "stem.act")
    for index, (cout, stride) in enumerate(LAYERS):
        if index == 2:
            x = _bottleneck(net, x, "unit2", cin, cin // 4, 1, side)
        h = net.modules(x, f"layer{index}", cin, cout, stride)
        h = net.writer.node("Add", [x, h], f"layer{index}.add") if (cin, stride) == (cout, 1) else h
        x, cin, side = net.relu(h, f"layer{index}.out"), cout, -(-side // stride)
    return net.bundle("random-modules", x, cin, path, seed)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"module{number}" for number in range(count))


def _label(share: float) -> str:
    return "original" if share == 1 else f"narrow{share:.0%}".rstrip("%")


BUILDERS = {"modules": modules, "mobilenetv2": mobilenetv2, "resnet50": resnet50}


def main() -> int:
    """Write one bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bundle = BUILDERS[arguments.name](arguments.out, arguments.size, arguments.seed)
    print(
        f"{arguments.out}: {bundle.manifest.space.size():,} subnets, {len(bundle.weights) / 2**20:.1f} MiB of weights"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
