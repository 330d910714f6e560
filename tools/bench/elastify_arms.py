"""One arm of the bench, from the oracle to what is scored: a bundle, or a plain ONNX graph for a network of its own."""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from elastify_data import AUGMENTATION, PIXELS, SPEC, TinyImages
from elastify_oracle import GRAPH, load_oracle
from elastify_pace import Followed, Reference, Stage, alone, settled_steps, spending, spent_seconds
from elastify_recipes import Training, adaptivenet_stages, naive_stages, our_stages, purpose_stages
from elastify_supernets import adaptivenet, in_pieces, sliced
from elastify_trained import Trained
from torch import Tensor, nn

from builder.data import ImageSet, Source, source_of
from builder.distill import measure_prior
from builder.elastify import ElasticOptions, Supernet
from builder.elastify.cost import storage_bytes
from builder.errors import BuildError
from builder.export import BundleInfo, check_codes, is_coded, pack, static_model
from builder.files import write_atomically
from builder.recipes.common import CHECK_IMAGES, FIT_IMAGES, Request, finished, make_supernet, provenance, spread
from builder.runlog import RunLog
from edge_runtime.backends import CODES_TOLERANCE, Session, SessionOptions, open_session, open_static
from edge_runtime.backends.base import relative_difference
from edge_runtime.bundle import Bundle
from edge_runtime.gates import GateGroup, GateSpace, is_in_8_bits
from edge_runtime.measure import Candidate, measure_candidates, random_inputs
from edge_runtime.seeds import covering_vectors

__all__ = ["ARMS", "BUNDLE", "FIGURES", "PLAIN", "Arm", "latency_ratio", "reference_of", "train_arm"]

BUNDLE, PLAIN, FIGURES = "model.nnf", "net.onnx", "arm.json"
PACE = "pace.json"
PARITY_IMAGES, PARITY_TOLERANCE = 32, 1e-3

RATIO_STEPS = 40
"""A network of its own has a multiple of 1/40 of the oracle's inner channels."""
RATIO_RUNS = 100

_PLAIN_GATES = GateSpace((GateGroup("none", "choice", ("original",)),)).default
"""For sessions without gates."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One recipe with one seed."""

    name: str
    """One of `ARMS`; of a network of its own with the percent of the oracle's latency that it may take."""

    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder in the work folder, and of the arm in reports."""
        return f"{self.name}-seed{self.seed}"

    @property
    def fraction(self) -> float | None:
        """Of the oracle's latency, for a network that is made for one; None for a supernet."""
        kind, _, percent = self.name.partition("-")
        return int(percent) / 100 if kind == "purpose" else None


ARMS = {
    "adaptivenet": "(a) first channels, squared error along one path, then cross entropy",
    "naive": "(b) the same branches, cross entropy along random paths alone",
    "pruned": "(c) importance and closed form, no training",
    "purpose-80": "(d) a network of its own for 80 % of the oracle's latency",
    "purpose-60": "(d) for 60 %",
    "purpose-40": "(d) for 40 %",
    "ours": "(e) the defaults of elastify, of the training and of the export, so with units in 8 bits",
    "ours-unlabelled": "(e) from images without labels",
}


FINISHED = ("ours", "ours-unlabelled")
"""The arms that are finished as `nnf-build export` does."""


def train_arm(arm: Arm, images: TinyImages, work: Path, log: RunLog, training: Training) -> None:
    """Train, export and describe one arm in its folder; goes on where an earlier run stopped.

    What is trained is kept in a file of its own, so that a machine with a GPU may train what another one exports.

    Raises:
        StateError: there is no oracle, or the folder was begun otherwise or on another device.
        BuildError: training diverged, or the bundle is not the trained network.
    """
    folder = work / arm.folder
    if (folder / FIGURES).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    oracle, fit_images = load_oracle(work), spread(images.train, FIT_IMAGES)
    train = images.train if arm.name != "ours-unlabelled" else dataclasses.replace(images.train, labels=None)
    kept = Trained(folder, arm.seed, training, oracle)
    run = _Run(arm, folder, log, training, reference_of(oracle, work, training), train, kept)
    with log.step(arm.folder), spending(folder / "spent.json"):
        if arm.fraction is None:
            figures = run.supernet(oracle, fit_images, images)
        else:
            figures = run.network(oracle, fit_images, work / GRAPH)
    figures |= {"arm": arm.name, "about": ARMS[arm.name], "seed": arm.seed, "minutes": training.minutes}
    figures |= {"batch_size": training.batch_size}
    figures["process_s"] = spent_seconds(folder / "spent.json")
    write_atomically(folder / FIGURES, json.dumps(figures, indent=1).encode())


def reference_of(oracle: nn.Module, work: Path, training: Training) -> Reference:
    """The unit of time of all arms of a work folder."""
    shape = (training.batch_size, 3, PIXELS, PIXELS)
    return Reference(oracle, shape, work / "reference.json", training.compute)


@dataclass(frozen=True, slots=True)
class _Run:
    arm: Arm
    folder: Path
    log: RunLog
    training: Training
    reference: Reference
    train: ImageSet
    kept: Trained

    def supernet(self, oracle: nn.Module, fit_images: Tensor, images: TinyImages) -> dict[str, Any]:
        """An arm with a supernet, to its bundle."""
        began, options = time.perf_counter(), ElasticOptions()
        supernet = make_supernet(oracle, fit_images, options, self.arm.seed, self.log)
        used_s = self._beginning_s(began, supernet, fit_images, options) if self.arm.name in FINISHED else 0.0
        if self.arm.name in ("adaptivenet", "naive"):
            supernet = adaptivenet(supernet)
        source = self._source()
        figures = self._train(self._stages(supernet, len(source)), supernet, supernet.bodies, source, used_s, {})
        if self.arm.name in FINISHED:
            supernet = finished(supernet, fit_images, options.storage_ratio, self.log)
        prior = measure_prior(supernet, spread(images.validation, CHECK_IMAGES))
        bundle = pack(supernet, prior, self._info(images), self.folder / BUNDLE)
        parity = _parity(supernet, bundle, spread(images.validation, PARITY_IMAGES))
        report = supernet.report()
        return figures | {
            "subnets": float(supernet.space.size()),
            "alternatives": [list(group.labels) for group in supernet.space.groups],
            "storage_ratio": storage_bytes(supernet) / report.oracle_bytes,
            "elastic_share": report.elastic_share,
            "prior": [list(row) for row in prior],
            "parity": parity,
        }

    def _beginning_s(self, began: float, supernet: Supernet, fit_images: Tensor, options: ElasticOptions) -> float:
        """Seconds of the arm's time that are not its steps'; 0.0 where these are settled already.

        That is what is fitted to the data before them, and what finishing takes at the end, of which a trial is made.
        """
        if (self.folder / PACE).exists() or self.kept.read() is not None:
            return 0.0
        finished(supernet, fit_images, options.storage_ratio, self.log)
        return self.reference.as_when_measured(time.perf_counter() - began)

    def network(self, oracle: nn.Module, fit_images: Tensor, graph: Path) -> dict[str, Any]:
        """An arm with a network of its own, to its ONNX graph."""
        kept = self.kept.read()
        ratio = self._fitting_ratio(oracle, fit_images, graph) if kept is None else kept["figures"]["width"]
        student = sliced(oracle, fit_images, ratio, self.arm.seed)
        teacher = in_pieces(oracle, fit_images[:2])
        self.training.compute.place_module(teacher)
        source = self._source()
        stages = purpose_stages(student, teacher, len(source), self.arm.seed, self.training)
        figures = self._train(stages, student, student, source, 0.0, {"fraction": self.arm.fraction, "width": ratio})
        write_atomically(self.folder / PLAIN, static_model(student, fit_images[:2]))
        return figures

    def _stages(self, supernet: Supernet, batches: int) -> tuple[Stage, ...]:
        seed, training = self.arm.seed, self.training
        if self.arm.name == "pruned":
            return ()
        if self.arm.name == "adaptivenet":
            return adaptivenet_stages(supernet, batches, seed, training)
        if self.arm.name == "naive":
            return naive_stages(supernet, batches, seed, training)
        return our_stages(supernet, batches, seed, training, labels=self.train.labels is not None)

    def _source(self) -> Source:
        size, device = self.training.batch_size, self.training.compute.device
        return source_of(self.train, size, seed=self.arm.seed, augmentation=AUGMENTATION, device=device)

    def _train(
        self,
        stages: Sequence[Stage],
        net: nn.Module,
        trained: nn.Module,
        source: Source,
        used_s: float,
        about: dict[str, Any],
    ) -> dict[str, Any]:
        """All stages, each from its checkpoint; figures of them beside `about`. What is trained ends on the CPU."""
        if not stages:
            return about
        if (kept := self.kept.read()) is not None:
            trained.load_state_dict(kept["weights"])
            net.eval()
            return dict(kept["figures"])
        self.training.compute.place_module(net)
        figures = about | self._run_stages(stages, trained, source, used_s)
        net.to("cpu")
        self.kept.write(trained, figures)
        return figures

    def _run_stages(self, stages: Sequence[Stage], trained: nn.Module, source: Source, used_s: float) -> dict[str, Any]:
        minutes = self.training.minutes
        steps = settled_steps(
            self.folder / PACE, stages, trained, source, self.reference, minutes=minutes, used_s=used_s
        )
        figures: dict[str, Any] = {"steps": steps, "losses": {}, "trained_on": self.reference.about}
        figures["used_s"] = json.loads((self.folder / PACE).read_text(encoding="utf-8"))["used_s"]
        figures["images"] = min(self.training.batch_size, len(self.train)) * sum(steps.values())
        for stage in stages:
            with self.log.step(f"{self.arm.folder}.{stage.name}") as said:
                said["steps"] = steps[stage.name]
                about = {"arm": self.arm.folder, "stage": stage.name}
                followed = Followed(source, about, steps[stage.name], len(source), self.folder / "progress.json")
                loss = stage.train(steps[stage.name], followed, self.folder / f"{stage.name}.pt", self.log)
                said["loss"] = figures["losses"][stage.name] = loss
        return figures

    def _info(self, images: TinyImages) -> BundleInfo:
        made = provenance(
            "tools/bench/elastify.py",
            oracle="MobileNetV2 1.0, ImageNet weights, fine-tuned",
            data="Tiny-ImageNet, 100 classes (not for redistribution)",
            request=Request(self.folder, self.folder / BUNDLE, self.arm.seed),
        )
        return BundleInfo(self.arm.folder, SPEC, images.class_names, made, {})

    def _fitting_ratio(self, oracle: nn.Module, fit_images: Tensor, graph: Path) -> float:
        """The largest width, in steps, whose latency is within the arm's fraction of the oracle's."""
        kept = self.folder / "width.json"
        if kept.exists():
            return float(json.loads(kept.read_text(encoding="utf-8"))["width"])
        yardstick, low, high = open_static(graph.read_bytes(), SessionOptions()), 2, RATIO_STEPS - 1
        with alone(f"tools/bench/elastify.py: the width of {self.arm.folder}"):
            while low < high:
                middle = (low + high + 1) // 2
                net = sliced(oracle, fit_images[:8], middle / RATIO_STEPS, 0)
                session = open_static(static_model(net, fit_images[:2]), SessionOptions())
                fits = latency_ratio(session, yardstick, RATIO_RUNS) <= self.arm.fraction
                low, high = (middle, high) if fits else (low, middle - 1)
        write_atomically(kept, json.dumps({"width": low / RATIO_STEPS}).encode())
        return low / RATIO_STEPS


def _parity(supernet: Supernet, bundle: Bundle, images: Tensor) -> float:
    """The largest difference of the bundle's logits from torch, relative; over vectors that have every alternative.

    Vectors that compute in 8 bits have a limit of their own, `CODES_TOLERANCE`, and are not in it; as rounding alone
    may come near to it, the numbers of their layers are compared too.
    """
    check_codes(supernet, bundle)
    session, worst, worst_coded = open_session(bundle), 0.0, 0.0
    name = session.inputs[0].name
    covering = [*covering_vectors(supernet.space), *covering_vectors(supernet.space, but=is_in_8_bits)]
    for gates in (supernet.space.default, *covering):
        with torch.no_grad():
            wanted = supernet(images, gates).numpy()
        found = next(iter(session.run({name: images.contiguous().numpy()}, gates).values()))
        difference = relative_difference(wanted, found)
        if is_coded(supernet, gates):
            worst_coded = max(worst_coded, difference)
        else:
            worst = max(worst, difference)
    session.close()
    if worst > PARITY_TOLERANCE or worst_coded > CODES_TOLERANCE:
        worst = max(worst, worst_coded)
        raise BuildError(f"the bundle differs from torch by {worst:.1e} of the largest logit", hint="report this")
    return worst


def latency_ratio(session: Session, oracle: Session, runs: int, seed: int = 0) -> float:
    """Median of one plain graph over that of the oracle, from interleaved rounds."""
    inputs = random_inputs(session.inputs, seed=seed)
    pair = [Candidate(session, inputs, _PLAIN_GATES), Candidate(oracle, inputs, _PLAIN_GATES)]
    own, reference = measure_candidates(pair, runs=runs, seed=seed)
    return own.p50_ms / reference.p50_ms
