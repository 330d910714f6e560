"""One life of a search: the process that `search_kills.py` starts and kills, and what it reads of it afterwards.

It loads a bundle with a state directory, adapts to one half of the images, and writes down what it does as it does it:
the active subnet, each phase, each batch that is run, and at the end what was chosen and all values.

    python tools/bench/search_life.py --bundle FILE --data FILE --state DIR --log FILE --half 0 ...
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation import AdaptPlan, AdaptStatus
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, load_npz
from edge_runtime.model import jobs, loop
from edge_runtime.quality import Values

__all__ = ["Image", "Life", "arguments"]

BUDGET = Budget(fraction=0.6)
NO_LIMIT_SECONDS = 600.0
"""Time limit of each search: the clock is to decide nothing, so that searches can be compared."""

Image = tuple[str, int]
"""A subnet's text, and the place of an image in the order of the search."""


@dataclass
class Life:
    """One child, from its log."""

    active: str | None = None
    ending: str | None = None
    """What the search chose, said just before it is remembered; a kill may hit before or after that."""

    phase: str = "load"
    ran: Counter[Image] = field(default_factory=Counter)
    end: dict[str, Any] | None = None

    @classmethod
    def read(cls, log: Path) -> Life:
        """A last line that a kill cut off is left out."""
        life = cls()
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
            try:
                said = json.loads(line)
            except ValueError:
                break
            life.active = said.get("active", life.active)
            life.ending = said.get("ending", life.ending)
            life.phase = said.get("phase", life.phase)
            if "ran" in said:
                life.ran.update((said["ran"], index) for index in range(said["start"], said["stop"]))
            if "values" in said:
                life.end = said
        return life


class Told(Evaluator):
    """An evaluator that says what it runs before it goes on."""

    log: TextIO

    def _run(self, gates: Gates, start: int, stop: int) -> Values:
        shares = super()._run(gates, start, stop)
        print(json.dumps({"ran": str(gates), "start": start, "stop": stop}), file=self.log, flush=True)
        return shares


def _live(given: argparse.Namespace) -> None:
    with open(given.log, "w", encoding="utf-8") as log:
        Told.log = log
        jobs.Evaluator = Told  # type: ignore[misc]
        loop.AdaptPlan = partial(AdaptPlan, measure_seconds=given.measure_seconds)  # type: ignore[misc, assignment]
        images = np.stack(load_npz(given.data, limit=2 * given.images).images)
        with EdgeModel.load(given.bundle, state_dir=given.state, threads=1, seed=given.seed) as model:
            print(json.dumps({"active": str(model.gates)}), file=log, flush=True)
            _search(model, images[given.half :: 2], log)


def _search(model: EdgeModel, images: Frame, log: TextIO) -> None:
    phases: list[str] = []
    evaluators: list[Evaluator] = []
    make = model._searches._jobs.make

    def making(*args: Any, **settings: Any) -> Any:
        job = make(*args, **settings)
        evaluators.append(job.evaluator)
        return job

    def tell(status: AdaptStatus) -> None:
        if status.phase not in phases:
            phases.append(status.phase)
            print(json.dumps({"phase": status.phase}), file=log, flush=True)

    remember = model._learned.remember

    def remembering(*args: Any) -> Any:
        print(json.dumps({"ending": str(model.gates)}), file=log, flush=True)
        return remember(*args)

    model._learned.remember = remembering  # type: ignore[method-assign]
    model._searches._jobs.make = making  # type: ignore[method-assign]
    status = model.adapt(images, budget=BUDGET, wait=True, seconds=NO_LIMIT_SECONDS, tell=tell)
    values = {str(gates): values for gates, values in evaluators[0].known().items()}
    print(
        json.dumps({"chosen": str(status.active), "taken_up": status.taken_up, "values": values}), file=log, flush=True
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what both programs are given."""
    assets = Path(__file__).resolve().parents[2] / "edge_runtime/assets"
    parser.add_argument("--bundle", default=str(assets / "demo.nnf"), help="default: the demo's")
    parser.add_argument("--data", default=str(assets / "demo_images.npz"), help=".npz of images (default: the demo's)")
    parser.add_argument("--images", type=int, default=200, help="images of each of the two searches (default 200)")
    seconds = AdaptPlan(BUDGET).measure_seconds
    parser.add_argument(
        "--measure-seconds", type=float, default=seconds, help="time of the first group of finalists (default: adapt's)"
    )
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    own = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments(own)
    for name in ("--state", "--log"):
        own.add_argument(name, required=True)
    own.add_argument("--half", type=int, required=True, choices=(0, 1))
    _live(own.parse_args())
