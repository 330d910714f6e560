"""Write a trained supernet as a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.elastify.supernet import Supernet
from builder.export.gated import gated_graph
from builder.export.names import Shapes, graph_inputs, graph_outputs
from edge_runtime.bundle import Bundle, Manifest, Preprocessing, Provenance, Task, TensorSpec, write_bundle

__all__ = ["BundleInfo", "pack"]


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """What a bundle says beside its graph."""

    name: str
    """For people, e.g. ``nnf-demo-parts``."""

    preprocessing: Preprocessing
    """How a frame becomes the image input."""

    class_names: tuple[str, ...]
    """In the order of the logits."""

    provenance: Provenance
    """Where the model comes from."""

    figures: Mapping[str, float]
    """Figures of the build for people."""


def pack(supernet: Supernet, prior: Sequence[Sequence[float]], info: BundleInfo, path: Path) -> Bundle:
    """Export `supernet` and write it to `path` (a directory, or one file where it ends in ``.nnf``).

    Raises:
        BuildError: an operation of the network has no translation.
        BundleError: the network's inputs or outputs are not those of `info`, or none that a bundle can have.
        StateError: the place cannot be written.
    """
    graph = gated_graph(supernet)
    manifest = Manifest(
        name=info.name,
        space=supernet.space,
        inputs=_specs(graph_inputs(supernet.program)),
        outputs=_specs(graph_outputs(supernet.program)),
        gate_input="gates",
        preprocessing=info.preprocessing,
        task=Task("classification", info.class_names),
        prior=tuple(tuple(row) for row in prior),
        provenance=info.provenance,
        figures=info.figures,
    )
    return write_bundle(path, manifest, graph.model_bytes, graph.weights)


def _specs(tensors: Shapes) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", (None, *shape)) for name, shape in tensors.items())
