"""Prove that a bundle computes what torch computes, through the same backend that the device uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.elastify.supernet import Supernet
from builder.errors import BuildError
from edge_runtime.backends import Session, SessionOptions, open_session
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates

__all__ = ["ParityReport", "check_parity"]

ORACLE_TOLERANCE = 1e-4
ALTERNATIVE_TOLERANCE = 1e-3
BATCH = 32


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far the exported graph is from torch."""

    oracle_error: float
    """Largest absolute difference of logits between the default gates and the oracle."""

    alternative_error: float
    """Largest difference of logits over all other vectors checked, relative to the largest logit."""

    images: int
    """Images that the default gates were compared on."""

    vectors: int
    """Gate vectors checked; every alternative of every unit is in at least one of them."""


def check_parity(supernet: Supernet, oracle: nn.Module, bundle: Bundle, images: Tensor) -> ParityReport:
    """Compare `bundle` with the oracle and with the torch supernet.

    Args:
        supernet: what was exported, in eval mode.
        oracle: the developer's own network, untouched.
        bundle: the result of `pack`.
        images: preprocessed images [N, C, H, W], 256 of them where there are as many.

    Raises:
        BuildError: a difference is above its tolerance (1e-4 absolute for the oracle, 1e-3 relative for the others).
    """
    session = open_session(bundle, SessionOptions(threads=torch.get_num_threads()))
    oracle = oracle.eval()
    default = supernet.space.default
    with torch.no_grad():
        batches = list(images.split(BATCH))
        oracle_error = max(_difference(session, batch, default, oracle(batch)) for batch in batches)
        few, worst, vectors = batches[0][:8], 0.0, 0
        for gates in _covering_vectors(supernet):
            wanted = supernet(few, gates)
            worst = max(worst, _difference(session, few, gates, wanted) / max(1.0, wanted.abs().max().item()))
            vectors += 1
    session.close()
    report = ParityReport(oracle_error, worst, len(images), vectors)
    # Written so that a NaN fails too.
    if not (oracle_error <= ORACLE_TOLERANCE and worst <= ALTERNATIVE_TOLERANCE):
        raise BuildError(f"the exported graph differs from torch: {report}", hint="report this network")
    return report


def _covering_vectors(supernet: Supernet) -> Iterator[Gates]:
    """The default with one alternative changed, for each of them, then Latin mixtures of all units."""
    space = supernet.space
    for index, group in enumerate(space.groups):
        for value in range(1, group.size):
            yield space.default.replace(index, value)
    for shift in range(max(group.size for group in space.groups)):
        yield space.gates([(index + shift) % group.size for index, group in enumerate(space.groups)])


def _difference(session: Session, batch: Tensor, gates: Gates, wanted: Tensor) -> float:
    found = torch.from_numpy(session.run({"image": batch.numpy()}, gates)["logits"])
    return float((found - wanted).abs().max())
