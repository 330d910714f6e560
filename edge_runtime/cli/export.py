"""Write one subnet as a plain static ONNX file.

It has no gates, only standard operators, and its weights inside, so that any ONNX runtime takes it without nnf-edge.
The file is written only when it answers as the gated model does.
"""

from __future__ import annotations

import argparse

from edge_runtime.bundle import Bundle
from edge_runtime.cli.console import Console
from edge_runtime.cli.device import read_device
from edge_runtime.cli.documents import document, write_document

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a .nnf file or a bundle directory")
    parser.add_argument(
        "--gates", metavar="GATES", default="full", help="the subnet, as adapt prints it (default full)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the ONNX file; replaced if it is there")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Read, inline, fold, compare, write."""
    bundle = Bundle.read(arguments.bundle)
    gates = bundle.manifest.space.parse(arguments.gates)
    from edge_runtime.backends import export_subnet
    from edge_runtime.state import write_file

    console.progress("exporting, and comparing with the gated model")
    data = export_subnet(bundle, gates)
    write_file(arguments.output, data)
    console.line(f"{console.paint('ok', 'good')}  {arguments.output}: {len(data) / 2**20:.1f} MiB, subnet {gates}")
    if arguments.json:
        result = {"bundle": bundle.digest, "gates": str(gates), "output": arguments.output, "bytes": len(data)}
        write_document(arguments.json, document("export", result, read_device(), arguments.command))
    return 0
