"""A prepared folder, opened: the gated session, what it is fed, and how one subnet alone is made of it.

Where the bundle has layers of modules, the folder also holds the portable graph and its weights. The gated session is
fed the modules that are on; a subnet alone is made of the portable graph and optimised as a static export would be,
because weights that are fed cannot be in the blocked layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array, SessionOptions
from edge_runtime.backends.onnx.modules import ModuleInput, ModuleWeights, read_tensor
from edge_runtime.backends.onnx.passes.decisions import Decisions
from edge_runtime.backends.onnx.passes.parts import Part
from edge_runtime.backends.onnx.session import WEIGHTS_FILE, check_signature, create_prepared, foreign_errors
from edge_runtime.bundle import Manifest, TensorSpec
from edge_runtime.gates import Gates

__all__ = ["PORTABLE", "SKELETON", "TENSORS", "PreparedGraph"]

SKELETON, TENSORS, PORTABLE = "skeleton.onnx", "tensors.bin", "portable.onnx"

_ONE_CHUNK_BELOW_BYTES = 128 << 10
"""Inputs of one image up to which activations come in one chunk. That saves a small network (64 px) 2 % of a run; in a
large one each path through the graph then has memory of its own, which a swap finds cold: at 224 px the first run after
one took 140 us longer, and no longer without."""

_CHOICES_KEPT = 256
"""Subnets whose fed vectors are kept: a few hundred bytes each."""


class PreparedGraph:
    """The files of a prepared folder as sessions. Thread-safe, but for `alone`, which one thread at a time may call.

    Args:
        folder: What `prepare` made; it has to stay while this is used.
        manifest: Of the bundle.
        options: What the folder was prepared for.
        modules: What the gated session is fed besides inputs and gates.

    Raises:
        BackendError: It cannot be opened.
        BundleError: It takes or gives other tensors than the manifest says.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, options: SessionOptions, modules: Sequence[ModuleInput] = ()
    ) -> None:
        self._folder, self._options, self._gate_input = folder, options, manifest.gate_input
        self._small = all(_image_bytes(spec) < _ONE_CHUNK_BELOW_BYTES for spec in manifest.inputs)
        self.gated: Any = self.open_gated()
        """The native session of tier 1."""
        self._decisions = Decisions.found_in(self.gated.get_modelmeta().custom_metadata_map)
        taken = {value.name for value in self.gated.get_inputs()}
        self._takes_gates = self._decisions is None or manifest.gate_input in taken
        chosen = [manifest.gate_input] if self._takes_gates else []
        decided = [self._decisions.name] if self._decisions else []
        check_signature(self.gated, manifest, [*chosen, *decided, *(each.name for each in modules)])
        self._weights = ModuleWeights(folder / WEIGHTS_FILE, modules) if modules else None
        self._model: Any = None
        self._choices: dict[Gates, dict[str, Array]] = {}

    def open_gated(self, profile_prefix: Path | None = None) -> Any:
        """Another native session as `gated` is one; with a prefix it writes a profile."""
        skeleton = self._folder / SKELETON
        return create_prepared(skeleton, self._options, profile_prefix=profile_prefix, one_chunk=self._small)

    def feeds(self, inputs: Mapping[str, Array], gates: Gates, *, whole: bool = True) -> dict[str, Array]:
        """What the gated session takes to run one subnet; `whole` as of `Decisions.vector`."""
        chosen = self._choices.get(gates) if whole else None
        if chosen is None:
            chosen = self._choice(gates, whole=whole)
            if whole:
                if len(self._choices) >= _CHOICES_KEPT:
                    self._choices.clear()
                self._choices[gates] = chosen
        if self._weights is None:
            return {**inputs, **chosen}
        return {**inputs, **chosen, **self._weights.feeds(gates)}

    def _choice(self, gates: Gates, *, whole: bool) -> dict[str, Array]:
        """The inputs that say which subnet it is."""
        vector, chosen = gates.vector(), {}
        if self._takes_gates:
            chosen[self._gate_input] = np.array(vector, np.int64)
        if self._decisions is not None:
            chosen[self._decisions.name] = self._decisions.vector(vector, whole=whole)
        return chosen

    def gather(self, gates: Gates) -> None:
        """Have ready what `feeds` needs."""
        self.feeds({}, gates)

    def alone(self, gates: Gates, pause: Callable[[], None] | None = None, profile_prefix: Path | None = None) -> Any:
        """A native session of one subnet; `pause` as of `inline_gates`. Raises `BackendError`."""
        return create_prepared(
            self.subnet(gates, pause),
            self._options,
            folder=self._folder,
            optimised=self._weights is None,
            profile_prefix=profile_prefix,
        )

    def parts(self) -> tuple[list[Part], Decisions] | None:
        """The gated graph cut in two or more, and how its decisions are fed; None where it has no place for a cut."""
        from edge_runtime.backends.onnx.passes import cut_in_parts

        if self._decisions is None or self._takes_gates or self._weights is not None:
            return None
        parts = cut_in_parts(self._read_model(), self._decisions)
        return (parts, self._decisions) if len(parts) > 1 else None

    def open_part(self, part: Part) -> Any:
        """A native session of a part. Raises `BackendError`."""
        content = bytes(part.model.SerializeToString())
        return create_prepared(content, self._options, folder=self._folder, one_chunk=False, keeps_memory=False)

    def decisions(self) -> dict[str, int]:
        """The group that each node of a subnet alone belongs to, by node name; see `decisions_of`."""
        from edge_runtime.backends.onnx.passes import decisions_of

        return decisions_of(self._read_model())

    def subnet(self, gates: Gates, pause: Callable[[], None] | None = None) -> bytes:
        """The ModelProto that `alone` opens; most of its weights are in the folder."""
        from edge_runtime.backends.onnx.passes import inline_gates, join_neighbours

        model, weights = self._read_model(), self._weights
        read = partial(read_tensor, weights=weights.mapped) if weights else None
        # Decision by decision also for the default: its nodes have the names that `decisions` knows only there.
        settled = {self._gate_input: np.array(gates.vector(), np.int64)}
        settled |= self._choice(gates, whole=False) if weights is None else {}
        inlined = inline_gates(model, settled, pause=pause, read=read)
        join_neighbours(inlined.graph, pause)
        return bytes(inlined.SerializeToString())

    def _read_model(self) -> Any:
        """The graph that single subnets are made of, read once."""
        if self._model is None:
            import onnx

            path = self._folder / (SKELETON if self._weights is None else PORTABLE)
            with foreign_errors("the prepared graph cannot be read"):
                self._model = onnx.load(str(path), load_external_data=False)
        return self._model


def _image_bytes(spec: TensorSpec) -> int:
    return 4 * math.prod(size for size in spec.shape if size is not None)
