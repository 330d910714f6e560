"""What a bench of searches works on: one case's bundle, images, latency table and kept answers, opened together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from search_answers import KeptClasses, Network
from search_cases import CASES, Loaded
from search_table import latency_table
from search_trial import Terms

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import SessionOptions, open_session
from edge_runtime.bundle import Bundle
from edge_runtime.measure import LatencyModel, machine_lock
from edge_runtime.objectives import Budget

__all__ = ["QUICK", "Opened", "case_arguments", "opened"]

FRACTIONS = (0.6, 0.8)

QUICK = AdaptPlan(Budget(), subsets=(8, 16), population=4, generations=2, finalists=1)
"""Our search in a quick run."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One case, ready for searches."""

    bundle: Bundle
    images: Loaded
    """At the model's input size, in the order in which searches number them."""

    table: LatencyModel
    terms: Terms
    """With a limit of 0: a bench sets it."""

    folder: Path
    """Where what was found is kept."""

    def limited(self, fraction: float) -> Terms:
        """The terms under a limit that is a fraction of the full subnet's latency."""
        return replace(self.terms, limit_ms=fraction * self.table.cost(self.table.cost.space.default))


def case_arguments(description: str, *, images: int) -> argparse.ArgumentParser:
    """A parser that knows the case, its files, and what every bench of searches takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bundle", type=Path, help="the elastic model, of the case's classes; needed by tiny")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    parser.add_argument("--work", type=Path, default=Path("work/search"), help="holds what is known between runs")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="of the full subnet's latency")
    parser.add_argument("--images", type=int, default=images, help="test images at most; two halves of a draw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="try the plumbing in a minute; the figures mean nothing")
    parser.add_argument("--json", help="write the result to this file too")
    return parser


@contextmanager
def opened(arguments: argparse.Namespace, most: int, what: str) -> Iterator[Opened]:
    """Open the case of `arguments`, from `case_arguments`.

    Args:
        arguments: of the bench.
        most: images at most.
        what: who waits for the machine's lock while the table is made.
    """
    case = CASES[arguments.case]
    bundle, options = Bundle.read(case.bundle_or(arguments.bundle)), SessionOptions(threads=arguments.threads)
    images = case.images(bundle, arguments.data, most, arguments.seed)
    # A table that was made in haste must not be that of a real run.
    folder = arguments.work / f"{'quick-' * arguments.quick}{arguments.case}-{bundle.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    alone = nullcontext() if arguments.quick else machine_lock(what)
    with ExitStack() as stack:
        session = stack.enter_context(closing(open_session(bundle, options)))
        table, batched = latency_table(folder / "table.json", bundle, session, options, alone)
        network = Network(session, images.frames, bundle.manifest.preprocessing)
        answers = folder / f"answers-{len(images.labels)}-{arguments.seed}.sqlite"
        kept = stack.enter_context(closing(KeptClasses(network, answers)))
        prior = AdditiveCost.damage(table.cost.space, bundle.manifest.prior)
        classes = len(bundle.manifest.task.class_names)
        terms = Terms(table.cost, prior, 0.0, batched, network, kept, images.labels, classes)
        yield Opened(bundle, images, table, terms, folder)
