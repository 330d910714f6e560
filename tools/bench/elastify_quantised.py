"""What onnxruntime's own quantisation makes of the oracle, and of the networks that were made for one latency.

Only our supernets compute in 8 bits among the arms; whoever takes a network of its own can have that too, without a
supernet: `onnxruntime.quantization` after the training, from the images that ours is fitted to. Of several settings the
best on the search images counts. Each point has a folder of its own, so that it is made once.
"""

# ruff: noqa: TID251 - a bench may use the builder; only the runtime must not

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from elastify_data import TinyImages
from elastify_oracle import GRAPH
from elastify_points import is_kept, keep
from elastify_tested import ALL_THREADS, ONE_THREAD, network_point, rights_of

from builder.errors import BuildError
from builder.files import write_atomically
from builder.recipes.common import FIT_IMAGES, spread
from builder.runlog import RunLog
from edge_runtime.backends import open_static

__all__ = ["WHOLE", "quantised_folder", "quantised_graph", "score_quantised"]

WHOLE = 1.0
"""The key of the one point of a folder."""
BATCH = 16

SETTINGS = tuple(itertools.product(("MinMax", "Percentile", "Entropy"), (False, True)))
"""How ranges are found, and whether weights have 7 bits, which machines without VNNI need."""

Images = Sequence[npt.NDArray[np.float32]]


def quantised_folder(folder: Path) -> Path:
    """Where the point of a network is kept, inside the folder of its arm, or in the work folder for the oracle."""
    return folder / "quantised"


def score_quantised(folder: Path, content: bytes, images: TinyImages, work: Path, runs: int, log: RunLog) -> None:
    """Quantise a network, time it beside the float32 oracle and test it, unless that was done.

    Args:
        folder: of its arm, or the work folder for the oracle.
        content: its static graph.
        images: the splits; settings are chosen on `search`.
        work: the work folder.
        runs: timed ones.
        log: where the point is written.

    Raises:
        BuildError: onnxruntime cannot quantise it.
    """
    kept_in = quantised_folder(folder)
    if is_kept(kept_in, WHOLE):
        return
    kept_in.mkdir(exist_ok=True)
    with log.step(f"{folder.name}.quantised") as said:
        fitted_to = [batch.contiguous().numpy() for batch in spread(images.train, FIT_IMAGES).split(BATCH)]
        made = {each: quantised_graph(content, fitted_to, *each) for each in SETTINGS}
        sessions = {each: open_static(graph, ALL_THREADS) for each, graph in made.items()}
        found = {each: float(rights_of(session, None, images.search).mean()) for each, session in sessions.items()}
        best = max(found, key=lambda each: found[each])
        oracle = open_static((work / GRAPH).read_bytes(), ONE_THREAD)
        point, right = network_point(made[best], f"{folder.name}.quantised", oracle, images, runs)
        point |= {
            "search_accuracy": {f"{method}-{7 if narrow else 8}": right for (method, narrow), right in found.items()}
        }
        keep(kept_in, WHOLE, point, right)
        said |= point


def quantised_graph(content: bytes, batches: Images, method: str = "MinMax", narrow: bool = False) -> bytes:
    """A static graph with convolutions, sums and dense layers in 8 bits, one scale for each channel of the weights.

    Args:
        content: of the float32 graph, with one input.
        batches: preprocessed images [N, C, H, W] by which the ranges of the values are found.
        method: by which they are found, of `onnxruntime.quantization.CalibrationMethod`.
        narrow: whether weights have 7 bits.

    Raises:
        BuildError: onnxruntime cannot quantise it.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, coded = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "coded.onnx"))
        write_atomically(plain, content)
        try:
            quantization.quant_pre_process(plain, ready, skip_symbolic_shape=True)  # folds the BatchNorms
            reader = _reader(_input_name(content), batches)
            quantization.quantize_static(ready, coded, reader, **_settings(method, narrow))
        except Exception as error:
            raise BuildError(f"onnxruntime cannot quantise the network: {error}", hint="report this") from error
        return coded.read_bytes()


def _settings(method: str, narrow: bool) -> dict[str, Any]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

    return {
        # As quick as QDQ pairs or quicker where both were timed, whatever a session does with pairs.
        "quant_format": QuantFormat.QOperator,
        "activation_type": QuantType.QUInt8,  # with signed weights, as the kernels of x86 and ARM want them
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": narrow,
        "calibrate_method": CalibrationMethod[method],
    }


def _reader(name: str, batches: Images) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # of a library without types
        def __init__(self) -> None:
            self._given: Iterator[dict[str, npt.NDArray[np.float32]]] = ({name: batch} for batch in batches)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            return next(self._given, None)

    return Reader()


def _input_name(content: bytes) -> str:
    from onnx import ModelProto

    return str(ModelProto.FromString(content).graph.input[0].name)
