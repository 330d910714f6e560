"""The JSON form of a manifest, version 1: one class reads and writes each key, so that both sides agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edge_runtime.bundle.canonical import canonical_json, parse_canonical_json
from edge_runtime.bundle.manifest import Manifest, Preprocessing, Provenance, Task, TensorSpec
from edge_runtime.errors import BundleError, GateError
from edge_runtime.gates import GateSpace

__all__ = ["FORMAT", "VERSION", "FileEntry", "Sealed", "read_manifest", "seal_manifest"]

FORMAT = "nnf-bundle"
VERSION = (1, 0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one of the other files."""

    path: str
    """Flat file name."""

    size_bytes: int
    """Exact size."""

    sha256: str
    """Of the content, 64 lower-case hex digits."""

    @classmethod
    def of(cls, path: str, content: bytes) -> FileEntry:
        """The entry that `content` has under the name `path`."""
        return cls(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class Sealed:
    """A manifest with what ties it to its files."""

    manifest: Manifest
    """The values."""

    digest: str
    """sha256 of the canonical JSON without the key `digest`, in hex: the identity of the whole bundle."""

    files: tuple[FileEntry, ...]
    """One entry per other file, sorted by name."""

    faults: tuple[str, ...] = ()
    """What does not fit although the values could be read: a wrong digest."""


def seal_manifest(manifest: Manifest, files: tuple[FileEntry, ...]) -> bytes:
    """The bytes of manifest.json: canonical JSON, so equal values give equal bytes whatever the order they came in."""
    body = _body(manifest) | {
        "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in sorted(files, key=_path)],
        "format": FORMAT,
        "version": list(VERSION),
    }
    return canonical_json(body | {"digest": hashlib.sha256(canonical_json(body)).hexdigest()})


def read_manifest(data: bytes) -> Sealed:
    """Inverse of `seal_manifest`. Raises `BundleError` with every fault found; unknown keys pass in a newer minor."""
    try:
        body = parse_canonical_json(data)
    except ValueError as error:
        raise BundleError(f"manifest.json cannot be read: {error}") from error
    lenient = _check_version(body)
    reader = _Reader(lenient)
    manifest = reader.manifest(body)
    files = reader.files(body.get("files"))
    if manifest is None or files is None:
        raise BundleError("manifest.json is not valid", faults=tuple(reader.faults))
    claimed = body.pop("digest", None)
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    faults = () if claimed == digest else (f"manifest.json has the digest {digest}, but claims {str(claimed)[:64]!r}",)
    return Sealed(manifest, digest, files, faults)


def _path(entry: FileEntry) -> str:
    return entry.path


def _body(manifest: Manifest) -> dict[str, Any]:
    pre, task, origin = manifest.preprocessing, manifest.task, manifest.provenance
    return {
        "figures": dict(manifest.figures),
        "gates": {
            "default": manifest.space.default.to_json(),
            "input": manifest.gate_input,
            "prior": [list(row) for row in manifest.prior],
            "space": manifest.space.to_json(),
        },
        "inputs": [_tensor_body(spec) for spec in manifest.inputs],
        "name": manifest.name,
        "outputs": [_tensor_body(spec) for spec in manifest.outputs],
        "preprocessing": {
            "color": "RGB",
            "height": pre.height,
            "layout": "NCHW",
            "mean": list(pre.mean),
            "resize": pre.resize,
            "scale": pre.scale,
            "std": list(pre.std),
            "width": pre.width,
        },
        "provenance": {
            "command": origin.command,
            "created_at": origin.created_at,
            "data": origin.data,
            "oracle": origin.oracle,
            "recipe": origin.recipe,
            "seed": origin.seed,
            "versions": dict(origin.versions),
        },
        "task": {"class_names": list(task.class_names), "kind": task.kind},
    }


def _tensor_body(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "name": spec.name, "shape": list(spec.shape)}


def _check_version(body: object) -> bool:
    """Whether the minor version is newer than ours; raises `BundleError` unless this is a bundle we can read."""
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BundleError(f"manifest.json is not of the format {FORMAT!r}")
    version = body.get("version")
    if not isinstance(version, list) or len(version) != 2 or not all(type(v) is int and v >= 0 for v in version):
        raise BundleError("manifest.json has no version of the form [major, minor]")
    if version[0] != VERSION[0]:
        raise BundleError(
            f"the bundle has version {version[0]}.{version[1]}, this runtime reads {VERSION[0]}.x",
            hint="update nnf-edge, or export the bundle again",
        )
    return bool(version[1] > VERSION[1])


@dataclass(slots=True)
class _Reader:
    """Turns parsed JSON into values, collecting every fault instead of stopping at the first."""

    lenient: bool
    faults: list[str] = field(default_factory=list)

    def manifest(self, body: dict[str, Any]) -> Manifest | None:
        keys = "digest figures files format gates inputs name outputs preprocessing provenance task version"
        self._keep(lambda: self._object(body, "manifest.json", keys))
        gates = self._keep(lambda: self._gates(body.get("gates")))
        inputs = self._keep(lambda: self._tensors(body.get("inputs"), "inputs"))
        outputs = self._keep(lambda: self._tensors(body.get("outputs"), "outputs"))
        preprocessing = self._keep(lambda: self._preprocessing(body.get("preprocessing")))
        task = self._keep(lambda: self._task(body.get("task")))
        provenance = self._keep(lambda: self._provenance(body.get("provenance")))
        if self.faults or not (gates and inputs and outputs and preprocessing and task and provenance):
            return None
        space, gate_input, prior = gates
        figures = self._mapping(body["figures"], "figures")
        return self._keep(
            lambda: Manifest(
                body["name"], space, inputs, outputs, gate_input, preprocessing, task, prior, provenance, figures
            )
        )

    def files(self, value: object) -> tuple[FileEntry, ...] | None:
        return self._keep(lambda: tuple(self._file(item) for item in self._list(value, "files", limit=16)))

    def _keep(self, build: Callable[[], T]) -> T | None:
        """The value that `build` makes; None with the fault noted where it cannot."""
        try:
            return build()
        except (BundleError, GateError) as error:
            self.faults.extend(getattr(error, "faults", ()) or (str(error),))
            return None

    def _object(self, value: object, where: str, keys: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BundleError(f"{where} is not a JSON object")
        known = set(keys.split())
        faults = [f"{where} lacks the key {key!r}" for key in sorted(known - value.keys())]
        if not self.lenient:
            faults += [f"{where} has the unknown key {key[:60]!r}" for key in sorted(value.keys() - known)]
        if faults:
            raise BundleError(f"{where} is not valid", faults=tuple(faults))
        return value

    def _list(self, value: object, where: str, *, limit: int = 65_536) -> list[Any]:
        if not isinstance(value, list) or len(value) > limit:
            raise BundleError(f"{where} is not a JSON list of at most {limit} entries")
        return value

    def _mapping(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BundleError(f"{where} is not a JSON object")
        return value

    def _file(self, item: object) -> FileEntry:
        body = self._object(item, "an entry of files", "path sha256 size_bytes")
        if type(body["size_bytes"]) is not int or not all(isinstance(body[key], str) for key in ("path", "sha256")):
            raise BundleError("an entry of files has a path, a sha256 and a size_bytes of the wrong type")
        return FileEntry(body["path"], body["size_bytes"], body["sha256"])

    def _gates(self, value: object) -> tuple[GateSpace, str, tuple[tuple[float, ...], ...]]:
        body = self._object(value, "gates", "default input prior space")
        space = GateSpace.parse_json(body["space"])
        if body["default"] != space.default.to_json():
            raise BundleError("gates: the default is not the original of every group")
        prior = tuple(tuple(self._list(row, "a prior")) for row in self._list(body["prior"], "gates: prior"))
        return space, body["input"], prior

    def _tensors(self, value: object, where: str) -> tuple[TensorSpec, ...]:
        specs = []
        for item in self._list(value, where, limit=64):
            body = self._object(item, f"an entry of {where}", "dtype name shape")
            specs.append(TensorSpec(body["name"], body["dtype"], tuple(self._list(body["shape"], "a shape", limit=8))))
        return tuple(specs)

    def _preprocessing(self, value: object) -> Preprocessing:
        body = self._object(value, "preprocessing", "color height layout mean resize scale std width")
        if (body["color"], body["layout"]) != ("RGB", "NCHW"):
            raise BundleError("preprocessing is not RGB in the layout NCHW")
        mean, std = (tuple(self._list(body[key], f"preprocessing {key}", limit=3)) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise BundleError("preprocessing has not 3 values of mean and std")
        return Preprocessing(body["height"], body["width"], mean, std, body["scale"], body["resize"])

    def _task(self, value: object) -> Task:
        body = self._object(value, "task", "class_names kind")
        return Task(body["kind"], tuple(self._list(body["class_names"], "class_names")))

    def _provenance(self, value: object) -> Provenance:
        body = self._object(value, "provenance", "command created_at data oracle recipe seed versions")
        versions = self._mapping(body["versions"], "versions")
        return Provenance(
            body["oracle"], body["data"], body["recipe"], body["seed"], versions, body["command"], body["created_at"]
        )
