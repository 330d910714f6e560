"""The five commands of a project. Each gives the lines to print; none trains, exports or checks a second time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from builder.data import Source, source_of
from builder.elastify import ElastifyReport, NothingElasticError, Supernet
from builder.export import check_parity, check_static, static_model
from builder.export import pack as pack_supernet
from builder.files import write_atomically
from builder.fit import accuracy
from builder.project.latency import keep_latency, latency_name, read_latency
from builder.project.plan import AUGMENTATIONS, TrainSettings, kept_training, new_training, stage_configs
from builder.project.project import Project
from builder.project.quality import agreement, agreement_line
from builder.recipes.common import train_supernet, weights_digest
from builder.training import Compute
from edge_runtime.additive import AdditiveCost
from edge_runtime.bundle import Bundle, write_bundle
from edge_runtime.errors import BackendError, BundleError, StateError
from edge_runtime.gates import is_in_8_bits

__all__ = ["check", "elastify", "export", "pack", "report_lines", "train"]

EXPORT = "export"
"""Folder in the work folder with model.onnx, weights.bin and manifest.json: a bundle that is not packed yet."""

ORACLE_GRAPH = "oracle.onnx"
"""The network itself as a static graph, the yardstick of every latency."""

CHECKED, FITTED = "check.json", "export.json"
"""Which export was checked; of which training the last one is, and its weights, some of which are fitted to images."""


def elastify(project: Project, *, report: str | None = None) -> list[str]:
    """Make the supernet, write its report, and say what it offers; `report` is None, ``text`` or ``json``."""
    oracle, names, data = project.oracle, project.class_names, project.data
    try:
        supernet = project.supernet
    except NothingElasticError as error:
        _write_report(error.report, project.work)
        raise
    project.claim()
    found = supernet.report()
    _write_report(found, project.work)
    lines = report_lines(found, report)
    if report == "json":
        return lines
    lines.append(f"{len(data.train)} images to train on, {len(data.validation)} held out, {len(names)} classes")
    if data.validation.labels is not None:
        share = accuracy(oracle, data.validation)
        lines.append(
            f"the network labels {share:.1%} of the held-out images right (if too few: --mean, --std, --classes)"
        )
    alternatives = sum(group.size - 1 for group in supernet.space.groups)
    lines.append(f"{len(supernet.units)} units with {alternatives} alternatives: {supernet.space.size():.3g} subnets")
    lines.append("the export adds copies of these and of the originals that compute in 8 bits (--no-int8: without)")
    return [*lines, f"next: nnf-build train --work {project.work}"]


def _write_report(report: ElastifyReport, work: Path) -> None:
    write_atomically(work / "report.txt", f"{report.to_text()}\n".encode())
    write_atomically(work / "report.json", json.dumps(report.to_json(), indent=1).encode())


def report_lines(report: ElastifyReport, form: str | None) -> list[str]:
    """What `--report` prints: nothing, a table (``text``) or ``json``."""
    if form is None:
        return []
    return [report.to_text() if form == "text" else json.dumps(report.to_json(), indent=1)]


def train(project: Project, given: Mapping[str, Any], compute: Compute) -> list[str]:
    """Train both stages and measure the prior; `given` holds what the user named: see `new_training`, and `latency`."""
    supernet, data, seed = project.supernet, project.data, project.settings.seed

    def batches_of(batch_size: int, augment: str) -> Source:
        changes, ranks = AUGMENTATIONS[augment], compute.ranks
        return source_of(data.train, batch_size, seed=seed, ranks=ranks, augmentation=changes, device=compute.device)

    settings = _settled(project, given, batches_of, compute)
    source = batches_of(settings.batch_size, settings.augment)
    local, paths = stage_configs(settings.over(len(data.train)), len(source), seed)
    latency = read_latency(project.work, supernet.space, compute.ranks) if settings.latency else None
    project.read_held_out()
    train_supernet(supernet, local, paths, source, project.work, project.log, compute=compute, latency=latency)
    if not compute.ranks.first:
        return []
    project.keep_trained()
    lines = [f"trained: {settings.local_steps} steps alone, {settings.path_steps} steps as whole subnets"]
    if not supernet.learns:
        lines = ["nothing to train: every alternative leaves its unit out"]
    lines += _agreement(project, latency, compute)
    if skipped := getattr(data.train, "skipped", ()):
        project.log.event("data.skipped", {"count": len(skipped), "first": str(skipped[0])})
        lines.append(f"{len(skipped)} images could not be read and were skipped, the first is {skipped[0]}")
    return [*lines, f"next: nnf-build export --work {project.work}"]


def _agreement(project: Project, latency: AdditiveCost | None, compute: Compute) -> list[str]:
    """How often the likely best subnets answer as the network does."""
    prior, images = project.prior(project.trained(), compute), project.unseen
    with project.log.step("agreement") as figures:
        found = agreement(project.trained(), prior, images, latency=latency, compute=compute)
        figures |= {f"at_{share:g}": round(part, 4) for share, part in found.items()}
    return agreement_line(found, len(images), "multiply-accumulates" if latency is None else "predicted latency")


def _settled(
    project: Project, given: Mapping[str, Any], batches_of: Callable[[int, str], Source], compute: Compute
) -> TrainSettings:
    """Compare with what was kept first: only a new training measures latency, or takes the table of a file."""
    work, supernet, ranks = project.work, project.supernet, compute.ranks
    choice = given.get("latency")
    if choice is not None:
        given = {**given, "latency": ranks.share(latency_name(choice) if ranks.first else None)}
    kept = kept_training(work, given, ranks)
    if kept is None and choice is not None and ranks.first:
        keep_latency(choice, supernet, project.bundle_info(), work, project.settings.seed)
    compute.place_module(supernet)
    return new_training(work, given, batches_of, supernet, compute) if kept is None else kept


def export(project: Project, name: str | None = None, *, int8: bool = True) -> list[str]:
    """Write the gated graph and its weights, and the oracle's static graph; with `int8` alternatives in 8 bits."""
    work, supernet = project.work, project.finished if int8 else project.trained()
    info = project.bundle_info(name)
    with project.log.step("export") as figures:
        bundle = pack_supernet(supernet, project.prior(supernet), info, work / EXPORT)
        oracle = static_model(project.oracle, project.held_out[:2])
        write_atomically(work / ORACLE_GRAPH, oracle)
        figures |= {"digest": bundle.digest, "bytes": len(bundle.model_bytes) + len(bundle.weights)}
    (work / CHECKED).unlink(missing_ok=True)
    of = {"trained": project.trained_digest, "weights": weights_digest(supernet.bodies.state_dict())}
    write_atomically(work / FITTED, json.dumps(of).encode())
    graph_mib, weights_mib = len(bundle.model_bytes) / 2**20, len(bundle.weights) / 2**20
    alternatives, report = sum(group.size - 1 for group in supernet.space.groups), supernet.report()
    return [
        f"{len(supernet.units)} units with {alternatives} alternatives{_in_8_bits(supernet)}: "
        f"{supernet.space.size():.3g} subnets, storage {report.storage_ratio:.2f}x the network's",
        f"{work / EXPORT}: the gated graph, {graph_mib:.1f} MiB, and {weights_mib:.1f} MiB of weights",
        f"{work / ORACLE_GRAPH}: the network itself, {len(oracle) / 2**20:.1f} MiB",
        f"next: nnf-build check --work {work}",
    ]


def _in_8_bits(supernet: Supernet) -> str:
    count = sum(is_in_8_bits(label) for group in supernet.space.groups for label in group.labels)
    return f", {count} of them in 8 bits" if count else ""


def check(project: Project) -> list[str]:
    """Compare the exported graph with torch; `BuildError` where they differ."""
    bundle = _exported(project)
    with project.log.step("check") as figures:
        report = check_parity(_supernet_of(project, bundle), project.oracle, bundle, project.held_out)
        static_error = _static_error(project)
        figures |= dataclasses.asdict(report) | {"static_error": static_error}
    body = {"digest": bundle.digest} | dataclasses.asdict(report)
    write_atomically(project.work / CHECKED, json.dumps(body, indent=1).encode())
    lines = [
        f"the default gates are the network: largest difference {report.oracle_error:.1e} over {report.images} images",
        f"its static graph is, too: largest difference {static_error:.1e}",
        f"every alternative is what torch makes of it, in {report.vectors} gate vectors: largest relative difference "
        f"{report.alternative_error:.1e}",
    ]
    if report.coded_error:
        lines.append(f"those in 8 bits too, but for rounding: largest relative difference {report.coded_error:.1e}")
    return [*lines, f"next: nnf-build pack --work {project.work}"]


def _supernet_of(project: Project, bundle: Bundle) -> Supernet:
    """What was exported: the supernet as it was trained, or with what is in 8 bits, which is made anew."""
    in_8_bits = b"DequantizeLinear" in bundle.model_bytes
    supernet = project.finished if in_8_bits else project.trained()
    if in_8_bits and _kept(project.work / FITTED, "weights") != weights_digest(supernet.bodies.state_dict()):
        raise StateError(
            f"what is in 8 bits comes out otherwise than in the export in {project.work}: the images in "
            f"{project.settings.data}, the threads or a version are others now",
            hint=f"export it again: nnf-build export --work {project.work}",
        )
    if supernet.space != bundle.manifest.space:
        raise StateError(
            f"the export in {project.work} is of another version",
            hint=f"export it again: nnf-build export --work {project.work}",
        )
    return supernet


def pack(project: Project, out: Path) -> list[str]:
    """Write the bundle, checked first where that was not done yet."""
    bundle = _exported(project)
    if not _is_checked(project.work, bundle):
        check(project)
    packed = write_bundle(out, bundle.manifest, bundle.model_bytes, bundle.weights)
    size_mib = (len(packed.model_bytes) + len(packed.weights)) / 2**20
    return [f"{out}: {packed.manifest.name}, digest {packed.digest[:12]}, {size_mib:.1f} MiB"]


def _exported(project: Project) -> Bundle:
    """The export of the present training; `StateError` where there is none, or it is damaged or of another training."""
    work = project.work
    if not (work / EXPORT).is_dir():
        raise StateError(f"nothing is exported in {work}", hint=f"export it: nnf-build export --work {work}")
    if _kept(work / FITTED, "trained") != project.trained_digest:
        raise StateError(
            f"the export in {work} is not of the training that is there now",
            hint=f"export it again: nnf-build export --work {work}",
        )
    try:
        return Bundle.read(work / EXPORT)
    except BundleError as error:
        raise StateError(f"the export in {work} is damaged: {error.message}", hint="export it again") from error


def _static_error(project: Project) -> float:
    """How far the network's static graph is from it."""
    path = project.work / ORACLE_GRAPH
    try:
        return check_static(path.read_bytes(), project.oracle, project.held_out)
    except (OSError, BundleError, BackendError) as error:
        raise StateError(f"{path} cannot be read: {error}", hint="export it again") from error


def _is_checked(work: Path, bundle: Bundle) -> bool:
    return _kept(work / CHECKED, "digest") == bundle.digest


def _kept(path: Path, entry: str) -> str | None:
    """An entry of a JSON file; None where it is missing or damaged."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[entry])
    except (OSError, ValueError, KeyError, TypeError):
        return None
