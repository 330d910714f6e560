"""Prove that a bundle computes what torch computes, through the same backend that the device uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from builder.elastify.supernet import Supernet
from builder.elastify.trace import Inputs
from builder.errors import BuildError
from builder.export.codes import check_codes
from builder.export.names import graph_inputs, graph_outputs
from builder.int8.modules import QuantizedConv
from edge_runtime.backends import CODES_TOLERANCE, Session, SessionOptions, open_session, open_static
from edge_runtime.backends.base import relative_difference
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates

__all__ = ["ParityReport", "check_parity", "check_static", "is_coded"]

ORACLE_TOLERANCE = 1e-4
ALTERNATIVE_TOLERANCE = 1e-3

BATCH = 32


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far the exported graph is from torch."""

    oracle_error: float
    """Largest `relative_difference` of an output between the default gates and the oracle."""

    alternative_error: float
    """The same over all other vectors that compute in float32, against the torch supernet."""

    coded_error: float
    """The same over those that compute in 8 bits; 0 without any."""

    images: int
    """Images that the default gates were compared on."""

    vectors: int
    """Gate vectors checked; every alternative of every unit is in at least one of them."""


def check_parity(supernet: Supernet, oracle: nn.Module, bundle: Bundle, images: Inputs) -> ParityReport:
    """Compare `bundle` with the oracle and with the torch supernet.

    Args:
        supernet: what was exported, in eval mode.
        oracle: the developer's own network, untouched.
        bundle: the result of `pack`.
        images: preprocessed images [N, C, H, W], 256 of them where there are as many; or all inputs in order.

    Raises:
        BuildError: a difference is not finite, or above its tolerance (1e-4 for the oracle, 1e-3 for the others and,
            where they compute in 8 bits, what other codes make: there the layers' own numbers are compared too).
    """
    check_codes(supernet, bundle)
    session = open_session(bundle, SessionOptions(threads=torch.get_num_threads()))
    oracle = oracle.eval()
    default = supernet.space.default
    with torch.no_grad():
        given = (images,) if isinstance(images, Tensor) else tuple(images)
        batches = list(zip(*(value.split(BATCH) for value in given), strict=True))
        runner = _Runner(session, supernet)
        of_oracle = [runner.difference(batch, default, tensors_of(oracle(*batch))) for batch in batches]
        few, others, coded = [value[:8] for value in batches[0]], [0.0], [0.0]
        for gates in _covering_vectors(supernet):
            errors = coded if is_coded(supernet, gates) else others
            errors.append(runner.difference(few, gates, supernet.features(few, gates).outputs))
    session.close()
    oracle_error, worst, worst_coded = map(_largest, (of_oracle, others, coded))
    report = ParityReport(oracle_error, worst, worst_coded, len(given[0]), len(others) + len(coded) - 2)
    within = worst <= ALTERNATIVE_TOLERANCE and worst_coded <= CODES_TOLERANCE
    if not (oracle_error <= ORACLE_TOLERANCE and within):
        raise BuildError(f"the exported graph differs from torch: {report}", hint="report this network")
    return report


def is_coded(supernet: Supernet, gates: Gates) -> bool:
    """Whether a subnet computes anything in 8 bits."""
    chosen = zip(gates.values, gates.active, strict=True)
    modules = [supernet.alternative(unit, int(value)) for unit, (value, active) in enumerate(chosen) if active]
    return any(isinstance(layer, QuantizedConv) for module in modules for layer in module.modules())


def _covering_vectors(supernet: Supernet) -> Iterator[Gates]:
    """The default with one alternative changed, for each of them, then Latin mixtures of all units."""
    space = supernet.space
    for index, group in enumerate(space.groups):
        for value in range(1, group.size):
            yield space.default.replace(index, value)
    for shift in range(max(group.size for group in space.groups)):
        yield space.gates([(index + shift) % group.size for index, group in enumerate(space.groups)])


def check_static(content: bytes, oracle: nn.Module, images: Tensor) -> float:
    """Compare a static graph, as `static_model` makes it, with the network it is of.

    Args:
        content: the graph, with one input.
        oracle: the network.
        images: preprocessed images [N, C, H, W].

    Returns:
        The largest `relative_difference` of an output.

    Raises:
        BackendError: onnxruntime refuses the graph.
        BuildError: the difference is not finite, or above 1e-4.
    """
    session = open_static(content, SessionOptions(threads=torch.get_num_threads()))
    name, oracle = session.inputs[0].name, oracle.eval()
    with torch.no_grad():
        worst = _largest(
            _difference(tensors_of(oracle(batch)), session.run({name: batch.numpy()}).values())
            for batch in images.split(BATCH)
        )
    session.close()
    if not worst <= ORACLE_TOLERANCE:
        raise BuildError(
            f"the static graph differs from the network by {worst:.1e} of its largest output", hint="export it again"
        )
    return worst


class _Runner:
    """Runs a session on tensors and compares what it gives."""

    def __init__(self, session: Session, supernet: Supernet) -> None:
        self._session = session
        self._inputs, self._outputs = graph_inputs(supernet.program), graph_outputs(supernet.program)

    def difference(self, inputs: Sequence[Tensor], gates: Gates, wanted: Sequence[Tensor]) -> float:
        """The `_difference` of what the session gives from what is wanted."""
        fed = {name: value.numpy() for name, value in zip(self._inputs, inputs, strict=True)}
        found = self._session.run(fed, gates)
        return _difference(wanted, [found[name] for name in self._outputs])


def _difference(wanted: Iterable[Tensor], found: Iterable[npt.NDArray[Any]]) -> float:
    """Largest difference of an output, relative to its own largest magnitude; NaN or infinite where one is."""
    return _largest(relative_difference(one.numpy(), other) for one, other in zip(wanted, found, strict=True))


def _largest(values: Iterable[float]) -> float:
    """The largest; NaN where one of them is."""
    return float(np.max(list(values)))


def tensors_of(outputs: object) -> list[Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
