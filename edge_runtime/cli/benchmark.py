"""Measure how long the subnets of a bundle take on this machine.

Subnets are interleaved, so that slow and fast minutes of the machine hit all of them alike. A percentile is shown only
when there were enough runs to state it (p90 64, p95 130, p99 662). Times are of one frame at batch 1 without
preprocessing; loading and the session's first run are shown apart. Only one benchmark runs on a machine at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge_runtime.cli.assets import demo_bundle
from edge_runtime.cli.benchmark_view import Load, Row, fits, print_table, result
from edge_runtime.cli.console import Console
from edge_runtime.cli.device import busy_note, device_line, read_device
from edge_runtime.cli.documents import document, write_document
from edge_runtime.errors import UsageError
from edge_runtime.objectives import Budget, Measurement

if TYPE_CHECKING:
    from edge_runtime.backends import Session, SessionOptions
    from edge_runtime.bundle import Bundle
    from edge_runtime.gates import Gates, GateSpace
    from edge_runtime.sense import Known
    from edge_runtime.state import StateDir

__all__ = ["add_arguments", "run"]

_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_MAX_SUBNETS = 64
_RUNS = 700  # a little more than the p99 needs
_BUDGET_NOT_MET = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="a .nnf file or directory (default: the demo's)")
    parser.add_argument(
        "--subnets",
        metavar="LIST",
        default="auto",
        help="gates or 'full', joined by commas; 'all'; or 'auto' (default): full, fastest, and between them the "
        "least damaged at 90, 80 .. 40%% of the time",
    )
    parser.add_argument("--budget-ms", metavar="MS", type=float, help="exit 3 when no measured p95 is within it")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of an operator (default 1)")
    parser.add_argument("--seconds", metavar="S", type=float, default=30.0, help="stop after this time (default 30)")
    parser.add_argument("--runs", metavar="N", type=int, default=_RUNS, help=f"runs of each subnet (default {_RUNS})")
    parser.add_argument("--state-dir", metavar="DIR", help="where profiles are written meanwhile (default: per user)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of inputs and order (default 0)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Load, choose, measure, print. Returns 3 when a budget was given and no measured subnet meets it."""
    budget = Budget(latency_ms=arguments.budget_ms)
    from edge_runtime.backends import SessionOptions
    from edge_runtime.bundle import Bundle
    from edge_runtime.sense import process_share_bytes
    from edge_runtime.state import StateDir, machine_lock

    bundle = Bundle.read(arguments.bundle or demo_bundle())
    options = SessionOptions(threads=arguments.threads)
    state = StateDir.open(arguments.state_dir)
    subnets = _named(arguments.subnets, bundle.manifest.space)
    with machine_lock("nnf-edge benchmark"):
        device = read_device()
        console.line(console.paint(f"{bundle.manifest.name} on {device_line(device, options.threads)}", "bold"))
        console.progress("preparing the model for this machine, where that was not done before")
        session, load = _open(bundle, options, state)
        bundle = bundle.without_contents() if session.maps_weights else bundle
        process_bytes = process_share_bytes()
        try:
            if not subnets:
                console.progress("learning what each gate costs here")
                subnets = _promising(bundle, session, options, state, arguments.seed)
            measured = _measure(arguments, session, list(subnets.values()), console)
            memory = _memory(bundle, session, options, state, process_bytes, arguments.seed)
            rows = [Row(name, one, memory(one.gates)) for name, one in zip(subnets, measured, strict=True)]
        finally:
            session.close()
    print_table(console, rows, load, budget)
    if busy := busy_note(device):
        console.note(busy)
    if arguments.json:
        body = result(bundle, options, rows, load, budget)
        write_document(arguments.json, document("benchmark", body, device, arguments.command))
    if not any(fits(rows, budget)):
        console.note(f"nnf-edge: no measured subnet has a p95 within {budget}")
        return _BUDGET_NOT_MET
    return 0


def _open(bundle: Bundle, options: SessionOptions, state: StateDir) -> tuple[Session, Load]:
    from edge_runtime import sense
    from edge_runtime.backends import runtime_versions
    from edge_runtime.backends.base import random_inputs
    from edge_runtime.model.compile import open_quickest

    before = sense.process_memory().rss_bytes
    start = time.perf_counter_ns()
    session, form = open_quickest(bundle, options, state, runtime_versions())
    opened = time.perf_counter_ns()
    inputs = random_inputs(session.inputs, seed=0)
    began = time.perf_counter_ns()
    session.run(inputs, bundle.manifest.space.default)
    ended = time.perf_counter_ns()
    after = sense.process_memory().rss_bytes
    added = after - before if isinstance(after, int) and isinstance(before, int) else None
    return session, Load((opened - start) / 1e6, (ended - began) / 1e6, added, form)


def _memory(
    bundle: Bundle, session: Session, options: SessionOptions, state: StateDir, process_bytes: Known[int], seed: int
) -> Callable[[Gates], int | None]:
    """Predicted memory of a process that serves a subnet; None of all where this machine does not tell."""
    from edge_runtime.measure import estimate_memory

    with state.scratch() as scratch:
        found = estimate_memory(bundle, session, options, process_bytes=process_bytes, seed=seed, scratch=scratch)
    return lambda gates: None if found is None else found[0] + found[1].subnet_bytes(gates)


def _named(text: str, space: GateSpace) -> dict[str, Gates]:
    """The subnets that ``--subnets`` names, by the name that the table gives them; nothing for ``auto``."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["auto"]:
        return {}
    if words == ["all"]:
        if space.size() > _MAX_SUBNETS:
            raise UsageError(f"this bundle has {space.size():,} subnets", hint=f"'all' measures up to {_MAX_SUBNETS}")
        return {str(number): gates for number, gates in enumerate(space.enumerate(), 1)}
    if not 1 <= len(words) <= _MAX_SUBNETS:
        raise UsageError(f"--subnets names {len(words)} subnets", hint=f"name 1 to {_MAX_SUBNETS}, joined by commas")
    return {"full" if word == "full" else str(number): space.parse(word) for number, word in enumerate(words, 1)}


def _promising(
    bundle: Bundle, session: Session, options: SessionOptions, state: StateDir, seed: int
) -> dict[str, Gates]:
    """Full, fastest, and for each share of the full subnet's predicted latency the one with the least prior loss."""
    from edge_runtime.additive import AdditiveCost, Plan, fastest
    from edge_runtime.measure import calibrate

    space = bundle.manifest.space
    with state.scratch() as scratch:
        model = calibrate(bundle, session, options, seed=seed, scratch=scratch)
    damage = AdditiveCost.damage(space, bundle.manifest.prior)
    quickest = fastest(model.cost)
    chosen: dict[str, Gates] = {"full": space.default}
    for share in _SHARES:
        plan = Plan(model.cost, damage, share * model.predict_ms(space.default))
        if plan.feasible and plan.best() not in (*chosen.values(), quickest):
            chosen[f"<= {share:.0%}"] = plan.best()
    return chosen if quickest in chosen.values() else {**chosen, "fastest": quickest}


def _measure(
    arguments: argparse.Namespace, session: Session, subnets: Sequence[Gates], console: Console
) -> list[Measurement]:
    from edge_runtime.backends.base import random_inputs
    from edge_runtime.measure import measure

    inputs = random_inputs(session.inputs, seed=arguments.seed)
    with session.hold(subnets), console.timer(f"measuring {len(subnets)} subnets", arguments.seconds):
        return measure(session, inputs, subnets, runs=arguments.runs, seconds=arguments.seconds, seed=arguments.seed)
