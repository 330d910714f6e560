"""What onnxruntime's own quantisation makes of the oracle, and of the networks that were made for one latency.

Only our supernets compute in 8 bits among the arms; whoever takes a network of its own can have that too, without a
supernet: `onnxruntime.quantization` after the training, from the images that ours is fitted to. Each point is a folder
of its own, so that it is made once.
"""

# ruff: noqa: TID251 - a bench may use the builder; only the runtime must not

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from elastify_data import TinyImages
from elastify_oracle import GRAPH
from elastify_points import is_kept, keep
from elastify_score import ONE_THREAD, Effort, network_point

from builder.errors import BuildError
from builder.files import write_atomically
from builder.recipes.common import FIT_IMAGES, spread
from builder.runlog import RunLog
from edge_runtime.backends import open_static

__all__ = ["WHOLE", "quantised_folder", "quantised_graph", "score_quantised"]

WHOLE = 1.0
"""The key of the one point of a folder."""
BATCH = 16


def quantised_folder(work: Path, name: str) -> Path:
    """Where the point of a network is kept: `oracle`, or the folder of its arm."""
    return work / f"quantised-{name}"


def score_quantised(name: str, content: bytes, images: TinyImages, work: Path, effort: Effort, log: RunLog) -> None:
    """Quantise a network, time it beside the float32 oracle and test it, unless that was done.

    Args:
        name: `oracle`, or the folder of its arm.
        content: its static graph.
        images: the splits.
        work: the work folder.
        effort: of the timing.
        log: where the point is written.
    """
    folder = quantised_folder(work, name)
    if is_kept(folder, WHOLE):
        return
    folder.mkdir(exist_ok=True)
    with log.step(folder.name) as said:
        fitted_to = spread(images.train, FIT_IMAGES).split(BATCH)
        coded = quantised_graph(content, (batch.contiguous().numpy() for batch in fitted_to))
        oracle = open_static((work / GRAPH).read_bytes(), ONE_THREAD)
        point, right = network_point(coded, folder.name, oracle, images, effort)
        keep(folder, WHOLE, point, right)
        said |= point


def quantised_graph(content: bytes, batches: Iterable[npt.NDArray[np.float32]]) -> bytes:
    """A static graph with convolutions, sums and dense layers in 8 bits, one scale for each channel of the weights.

    Args:
        content: of the float32 graph, with one input.
        batches: preprocessed images [N, C, H, W] by which the ranges of the values are measured.

    Raises:
        BuildError: onnxruntime cannot quantise it.
    """
    from onnxruntime import quantization as by_runtime

    class Reader(by_runtime.CalibrationDataReader):  # type: ignore[misc]  # of a library without types
        def __init__(self, name: str) -> None:
            self._given: Iterator[dict[str, npt.NDArray[np.float32]]] = ({name: batch} for batch in batches)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            return next(self._given, None)

    settings = {
        "quant_format": by_runtime.QuantFormat.QOperator,  # runs in 8 bits whatever a session does with QDQ pairs
        "activation_type": by_runtime.QuantType.QUInt8,  # as the kernels of x86 and ARM want them
        "weight_type": by_runtime.QuantType.QInt8,
        "per_channel": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, coded = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "coded.onnx"))
        write_atomically(plain, content)
        try:
            by_runtime.quant_pre_process(plain, ready, skip_symbolic_shape=True)  # folds the BatchNorms
            by_runtime.quantize_static(ready, coded, Reader(_input_name(content)), **settings)
        except Exception as error:
            raise BuildError(f"onnxruntime cannot quantise the network: {error}", hint="report this") from error
        return coded.read_bytes()


def _input_name(content: bytes) -> str:
    from onnx import ModelProto

    return str(ModelProto.FromString(content).graph.input[0].name)
