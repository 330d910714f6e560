"""Check a bundle: every hash, the manifest, and the graph itself.

Says ok only when the runtime would load it: the files are those of the manifest, the graph uses nothing but the
operators and the weight file that a bundle may, and its inputs and outputs are the manifest's.
"""

from __future__ import annotations

import argparse
import platform

from edge_runtime.bundle import Bundle
from edge_runtime.cli.console import Console
from edge_runtime.cli.documents import document, write_document

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a .nnf file or a bundle directory")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Read the bundle, check the graph, and say what was checked. Faults end in `BundleError`, all of them together."""
    bundle = Bundle.read(arguments.bundle)
    tick = console.paint("ok", "good")
    total = len(bundle.model_bytes) + len(bundle.weights)
    console.line(f"{tick}  files   {total:,} bytes, sizes and sha256 as in the manifest")
    from edge_runtime.backends import check_graph

    check_graph(bundle)
    console.line(f"{tick}  graph   only allowed operators, weights from weights.bin alone, gates as in the manifest")
    console.line(f"{tick}  digest  {bundle.digest}")
    if arguments.json:
        result = {"source": bundle.source, "digest": bundle.digest, "bytes": total, "ok": True}
        device = {"machine": platform.machine(), "kernel": platform.release()}
        write_document(arguments.json, document("verify", result, device, arguments.command))
    return 0
