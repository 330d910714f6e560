"""From a trained supernet to a bundle: lower torch to ONNX, wrap decisions in `If`, pack, prove that it is the same.

`writer` holds nodes and weights; `lower` translates one traced module; `gated` builds the whole graph, `static` a
plain one; `parity` compares with torch through the runtime's own backend; `pack` writes the bundle.
"""

from builder.export.gated import GatedGraph, gated_graph
from builder.export.pack import BundleInfo, pack
from builder.export.parity import ParityReport, check_parity, is_coded
from builder.export.static import static_graph, static_model

__all__ = [
    "BundleInfo",
    "GatedGraph",
    "ParityReport",
    "check_parity",
    "gated_graph",
    "is_coded",
    "pack",
    "static_graph",
    "static_model",
]
