"""From a trained supernet to a bundle: lower torch to ONNX, wrap decisions in `If`, pack, prove that it is the same.

`lower` translates one traced module; `gated` builds the whole graph, `static` a plain one, `names` calls their inputs
and outputs; `pack` writes the bundle; `parity` compares it with torch through the runtime's own backend, and `codes`
what its layers in 8 bits hold.
"""

from builder.export.codes import check_codes
from builder.export.gated import GatedGraph, gated_graph
from builder.export.pack import BundleInfo, pack
from builder.export.parity import ParityReport, check_parity, check_static, is_coded
from builder.export.static import static_graph, static_model

__all__ = [
    "BundleInfo",
    "GatedGraph",
    "ParityReport",
    "check_codes",
    "check_parity",
    "check_static",
    "gated_graph",
    "is_coded",
    "pack",
    "static_graph",
    "static_model",
]
