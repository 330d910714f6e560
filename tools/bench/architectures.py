"""Make architectures elastic that nobody here wrote, and report what came of each: one JSON object as the last line.

    python tools/bench/architectures.py --json architectures.json

Every network of pytorchcv in `zoo.py` (random weights, BatchNorms with the statistics of random images) goes through
elastify, and with ``--onnx`` through the export and a session of the runtime: the default path against the untouched
network, and random gate vectors against torch. With ``--int8`` the same once more with alternatives in 8 bits, whose
vectors are compared image by image. An architecture that fails is reported with the reason.
"""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import nn
from zoo import ARCHITECTURES, Architecture

from builder.elastify import ElasticOptions, Supernet, elastify
from builder.export import BundleInfo, pack
from builder.int8 import with_int8
from edge_runtime.backends import open_session
from edge_runtime.bundle import Preprocessing, Provenance
from edge_runtime.errors import EdgeError
from edge_runtime.gates import is_in_8_bits

FIT_IMAGES = 4
VECTORS = 10
ONNX_FIGURES = ("default_error", "vectors_error", "torch_rounding_error")


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every architecture that was asked for, one after the other."""
    wanted = [a for a in ARCHITECTURES if not arguments.only or a.name in arguments.only]
    rows = []
    for architecture in wanted:
        rows.append(_row(architecture, arguments))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    return {"architectures": rows, "fit_images": FIT_IMAGES, "seed": arguments.seed}


def _row(architecture: Architecture, arguments: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"name": architecture.name, "family": architecture.family, "pixels": architecture.pixels}
    torch.manual_seed(arguments.seed)
    net, images = architecture.build(), torch.randn(FIT_IMAGES, 3, architecture.pixels, architecture.pixels)
    started = time.perf_counter()
    try:
        supernet = elastify(net, images, seed=arguments.seed)
    except EdgeError as error:
        return row | {"error": str(error)}
    row |= {"seconds": round(time.perf_counter() - started, 2)} | _figures(supernet)
    with torch.no_grad():
        difference = (supernet(images[:2], supernet.space.default) - net(images[:2])).abs().max()
    row["default_difference"] = float(difference)
    if arguments.onnx:
        row["onnx"] = _onnx(supernet, net, images[:2], arguments.seed)
    if arguments.int8:
        started = time.perf_counter()
        coded = with_int8(supernet, images, storage_ratio=ElasticOptions().storage_ratio)
        row["int8"] = {
            "seconds": round(time.perf_counter() - started, 2),
            "storage_ratio": round(coded.report().storage_ratio, 4),
            "copies": sum(is_in_8_bits(label) for group in coded.space.groups for label in group.labels),
            **_onnx(coded, net, images[:2], arguments.seed),
        }
    return row


def _figures(supernet: Supernet) -> dict[str, Any]:
    report = supernet.report().to_json()
    narrow = [sum(label.startswith("narrow") for label in group.labels) for group in supernet.space.groups]
    return {
        "units": len(supernet.units),
        "units_with_two_narrow": sum(count >= 2 for count in narrow),
        "windows": sum(group.window > 1 for group in supernet.space.groups),
        "skips": sum("skip" in group.labels for group in supernet.space.groups),
        "subnets": report["subnets"],
        **{key: report[key] for key in ("total_macs", "elastic_share", "least_share", "storage_ratio", "fixed")},
    }


def _onnx(supernet: Supernet, net: nn.Module, images: torch.Tensor, seed: int) -> dict[str, Any]:
    """Differences of the exported graph from torch, relative to the largest output; or why there is none."""
    chooser, space = random.Random(seed), supernet.space
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            prior = tuple((0.0,) * group.size for group in space.groups)
            bundle = pack(supernet, prior, _info(net, images), Path(folder) / "net.nnf")
            session = open_session(bundle)

            def differences(gates: Any, wanted: torch.Tensor) -> list[float]:
                """Of each image."""
                found = next(iter(session.run({"image": images.numpy()}, gates).values()))
                each = np.abs(found - wanted.numpy()).reshape(len(images), -1).max(1)
                return [float(one) / max(1e-12, wanted.abs().max().item()) for one in each]

            drawn = [space.gates([chooser.randrange(g.size) for g in space.groups]) for _ in range(VECTORS)]
            errors = [error for gates in drawn for error in differences(gates, supernet(images, gates))]
            wanted = net(images)
            result = {"default_error": max(differences(space.default, wanted)), "vectors_error": max(errors)}
            result["median_error"] = statistics.median(errors)
            result["torch_rounding_error"] = _rounding_error(net, images, wanted)
            session.close()
            return result | {"bytes": (Path(folder) / "net.nnf").stat().st_size}
        except EdgeError as error:
            return {"error": str(error)}


def _rounding_error(net: nn.Module, images: torch.Tensor, found: torch.Tensor) -> float:
    """How far torch's own float32 is from float64: a network of random weights may magnify rounding."""
    exact = copy.deepcopy(net).double()(images.double())
    return float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-12))


def _info(net: nn.Module, images: torch.Tensor) -> BundleInfo:
    with torch.no_grad():
        classes = net(images[:1]).shape[1]
    return BundleInfo(
        type(net).__name__,
        Preprocessing(*images.shape[2:], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        tuple(f"class{number}" for number in range(classes)),
        Provenance(type(net).__name__, "random weights", "bench", 0, {}, "architectures.py", "2026-01-01T00:00:00Z"),
        {},
    )


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:24s} {row['error']}"
    shares = f"{row['elastic_share']:6.1%} elastic, {row['storage_ratio']:.2f}x, least {row['least_share']:.1%}"
    onnx = row.get("onnx", {})
    tail = onnx.get("error") or " ".join(f"{key} {onnx[key]:.1e}" for key in ONNX_FIGURES if onnx)
    if "int8" in row:
        coded = row["int8"]
        errors = coded.get("error") or " ".join(f"{key} {coded[key]:.1e}" for key in (*ONNX_FIGURES, "median_error"))
        tail += f"; in 8 bits {coded['copies']} copies, {coded['storage_ratio']:.2f}x {errors}"
    return (
        f"{row['name']:24s} diff {row['default_difference']:g} {row['units']:3d} units "
        f"({row['units_with_two_narrow']} narrow, {row['skips']} skip, {row['windows']} windows) {shares} "
        f"{row['seconds']:.1f} s {tail}"
    )


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", metavar="NAME", help="some of the architectures")
    parser.add_argument("--onnx", action="store_true", help="export each supernet and compare it with torch")
    parser.add_argument("--int8", action="store_true", help="the same with alternatives in 8 bits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    return common.run("architectures", bench, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
