"""Show what is in a bundle, without opening the graph.

Reads the bundle and checks every hash; loads no native library, so it is safe on a file that you do not trust and works
on a machine without onnxruntime.
"""

from __future__ import annotations

import argparse
import math
import platform
import textwrap
from typing import Any

from edge_runtime.bundle import Bundle, Manifest, TensorSpec
from edge_runtime.cli.console import Console
from edge_runtime.cli.documents import document, write_document
from edge_runtime.cli.tables import Column, render_table, shorten
from edge_runtime.gates import GateGroup, GateSpace

__all__ = ["add_arguments", "run"]

_WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a .nnf file or a bundle directory")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Read the bundle and print it."""
    bundle = Bundle.read(arguments.bundle)
    for line in [*_summary(bundle, console), "", *_gate_table(bundle.manifest, console)]:
        console.line(line)
    if arguments.json:
        device = {"machine": platform.machine(), "kernel": platform.release()}
        write_document(arguments.json, document("inspect", describe(bundle), device, arguments.command))
    return 0


def describe(bundle: Bundle) -> dict[str, Any]:
    """The bundle's own description as JSON types."""
    manifest = bundle.manifest
    provenance = manifest.provenance
    return {
        "source": bundle.source,
        "name": manifest.name,
        "digest": bundle.digest,
        "model_bytes": len(bundle.model_bytes),
        "weights_bytes": len(bundle.weights),
        "subnets": manifest.space.size(),
        "default": str(manifest.space.default),
        "gates": manifest.space.to_json(),
        "prior": [list(row) for row in manifest.prior],
        "inputs": [_tensor_text(spec) for spec in manifest.inputs],
        "outputs": [_tensor_text(spec) for spec in manifest.outputs],
        "class_names": list(manifest.task.class_names),
        "figures": dict(manifest.figures),
        "provenance": {
            "oracle": provenance.oracle,
            "data": provenance.data,
            "recipe": provenance.recipe,
            "seed": provenance.seed,
            "versions": dict(provenance.versions),
            "command": provenance.command,
            "created_at": provenance.created_at,
        },
    }


def _summary(bundle: Bundle, console: Console) -> list[str]:
    manifest, provenance = bundle.manifest, bundle.manifest.provenance
    names = manifest.task.class_names
    shown = ", ".join(names[:6]) + (", .." if len(names) > 6 else "")
    rows = {
        "task": f"{manifest.task.kind}, {len(names)} classes: {shown}",
        "takes": f"RGB frames of any size, resized to {manifest.preprocessing.width} x {manifest.preprocessing.height}",
        "inputs": ", ".join(map(_tensor_text, manifest.inputs)),
        "outputs": ", ".join(map(_tensor_text, manifest.outputs)),
        "size": f"{_mib(len(bundle.model_bytes))} graph, {_mib(len(bundle.weights))} weights",
        "digest": bundle.digest,
        "oracle": provenance.oracle,
        "data": provenance.data,
        "made by": f"{provenance.command}  ({provenance.created_at})",
        "figures": ", ".join(f"{name} {value:g}" for name, value in manifest.figures.items()),
        "subnets": f"{count_text(manifest.space)} in {len(manifest.space.groups)} gates",
    }
    lines = [console.paint(manifest.name, "bold")]
    for label, text in rows.items():
        folded = textwrap.wrap(text, _WIDTH - 12, break_on_hyphens=False) or []
        lines += [f"  {label if not i else '':<8}  {part}" for i, part in enumerate(folded)]
    return lines


def _gate_table(manifest: Manifest, console: Console) -> list[str]:
    columns = [
        Column("#"),
        Column("gate", "left"),
        Column("kind", "left"),
        Column("value, meaning, prior loss", "left"),
    ]
    rows: list[list[str]] = []
    for index, (group, prior) in enumerate(zip(manifest.space.groups, manifest.prior, strict=True)):
        head = [str(index), shorten(group.name, 18), group.kind]
        for part in textwrap.wrap(_alternatives(group, prior), _WIDTH - 36, break_on_hyphens=False):
            rows.append([*head, part.replace("\u00a0", " ")])
            head = ["", "", ""]
    return render_table(console, columns, rows)


def _alternatives(group: GateGroup, prior: tuple[float, ...]) -> str:
    """Each alternative as value, name and prior; spaces inside one are non-breaking, to be replaced once folded."""
    if group.kind != "choice":
        return ", ".join(group.labels)
    parts = []
    for value, (label, span, loss) in enumerate(zip(group.labels, group.spans, prior, strict=True)):
        covers = f" (over {span})" if span > 1 else ""
        cost = f" {loss:.3f}" if value else ""
        parts.append(f"{value} {label}{covers}{cost}".replace(" ", "\u00a0"))
    return ", ".join(parts)


def count_text(space: GateSpace) -> str:
    """The number of subnets as people say it: exact while it can be read, else a power of ten."""
    count = space.size()
    if count < 10**9:
        return f"{count:,}"
    power = int(math.log10(count))
    return f"about {count // 10 ** (power - 1) / 10:.1f} x 10^{power}"


def _tensor_text(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join('N' if size is None else str(size) for size in spec.shape)}]"


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
