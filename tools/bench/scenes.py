"""Are the rendered scenes hard enough to matter? The demo's oracle beside a network of 40 % of its latency.

Both are trained alone with the same recipe on the same images and tested on the same held-out seed; their static ONNX
exports are timed interleaved in one run. The last line of the output is one JSON object.

    python tools/bench/scenes.py [--seed N] [--workers N] [--work DIR]

With --work the trainings are resumable. Takes about ten minutes on two cores.
"""

# ruff: noqa: TID251 - a bench of the builder; only the runtime must not reach torch and the builder

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt
import torch

from builder.data import ImageSet
from builder.demo_net import ORACLE, SMALL, DemoConfig, DemoNet
from builder.export.static import static_model
from builder.fit import fit, logits_of
from builder.recipes.demo_config import DEMO, as_image_set, fit_config
from builder.runlog import RunLog
from builder.scenes import CLASSES
from edge_runtime.backends import SessionOptions, open_static
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.measure import Candidate, measure_candidates

UNGATED = GateSpace((GateGroup("network", "choice", ("whole",)),)).default
"""A static graph has nothing to switch."""

NETWORKS: Mapping[str, DemoConfig] = {"oracle": ORACLE, "small": SMALL}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the batches")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--runs", type=int, default=400, help="recorded runs of each network")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and the log; none: not resumable")
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    started_ns = time.perf_counter_ns()
    train = DEMO.render("train", arguments.workers)
    render_s = (time.perf_counter_ns() - started_ns) / 1e9
    test = DEMO.render("test", arguments.workers)
    right: dict[str, npt.NDArray[np.bool_]] = {}
    figures: dict[str, dict[str, Any]] = {}
    networks: dict[str, DemoNet] = {}
    for name, config in NETWORKS.items():
        networks[name], figures[name] = _trained(name, config, as_image_set(train), arguments)
        right[name] = _right(networks[name], as_image_set(test))
        figures[name] |= _accuracies(right[name], np.asarray(test["conditions"]))
    for name, latency_ms in _latencies(networks, arguments).items():
        figures[name]["p50_ms"] = round(latency_ms, 4)
    return {
        "render_ms_per_image_and_core": round(render_s * 1e3 * arguments.workers / DEMO.train_images, 3),
        "train_images": DEMO.train_images,
        "test_images": DEMO.test_images,
        **figures,
        "latency_ratio": round(figures["small"]["p50_ms"] / figures["oracle"]["p50_ms"], 3),
        **_gap(right["oracle"], right["small"]),
    }


def _trained(
    name: str, config: DemoConfig, train: ImageSet, arguments: argparse.Namespace
) -> tuple[DemoNet, dict[str, Any]]:
    torch.manual_seed(arguments.seed)
    network = DemoNet(len(CLASSES), config)
    work: Path | None = arguments.work
    with RunLog(work / f"{name}.jsonl" if work else None) as log:
        log.say(f"training {name}")
        checkpoint = work / f"{name}.partial.pt" if work else None
        done = fit(network, train, fit_config(DEMO, arguments.seed), log=log, checkpoint_path=checkpoint)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return network, {"parameters": parameters, "train_s": done["seconds"]}


def _right(network: DemoNet, test: ImageSet) -> npt.NDArray[np.bool_]:
    """Which test images are labelled right, bool [N]."""
    return logits_of(network, test).argmax(1).numpy() == test.labels


def _accuracies(right: npt.NDArray[np.bool_], conditions: npt.NDArray[Any]) -> dict[str, Any]:
    each = {str(name): round(float(right[conditions == name].mean()), 4) for name in DEMO.conditions}
    return {"accuracy": round(float(right.mean()), 4), "accuracy_by_condition": each}


def _latencies(networks: Mapping[str, DemoNet], arguments: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds per image of each static export, one thread, interleaved."""
    example = torch.zeros(1, 3, DEMO.size, DEMO.size)
    sessions = {name: open_static(static_model(net, example), SessionOptions()) for name, net in networks.items()}
    image = np.random.default_rng(arguments.seed).standard_normal(tuple(example.shape), dtype=np.float32)
    candidates = [Candidate(session, {"image": image}, UNGATED) for session in sessions.values()]
    measured = measure_candidates(candidates, runs=arguments.runs, seed=arguments.seed)
    return {name: one.p50_ms for name, one in zip(sessions, measured, strict=True)}


def _gap(oracle: npt.NDArray[np.bool_], small: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Points of accuracy that the small network is below the oracle, with the paired 95 % interval."""
    difference = oracle.astype(np.float64) - small
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    middle = float(difference.mean())
    return {
        "gap_points": round(100 * middle, 2),
        "gap_points_low": round(100 * (middle - half), 2),
        "gap_points_high": round(100 * (middle + half), 2),
    }


if __name__ == "__main__":
    sys.exit(common.run("scenes", _bench, _arguments()))
