"""All searches on all draws of one case and budget; what each found is kept in a file, one line each."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from search_nsga import nsga, pymoo_version
from search_ours import adapted, random_feasible, random_search, reference_search, unseeded
from search_rivals import Effort, adaptivenet
from search_trial import Terms, Trial

import edge_runtime
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.gates import Gates
from edge_runtime.objectives import Budget

__all__ = ["RANDOM_SUBNETS", "REFERENCE", "Draws", "Setting", "code_digest"]

REFERENCE = "reference"

BENCH, RUNTIME = Path(__file__).resolve().parent, Path(edge_runtime.__file__).resolve().parent
DECIDING = ("additive", "evaluate", "gates", "quality", "search", "seeds", "surrogate")
ROOMS = ("adaptation", "objectives")
SEARCHES = ("answers", "blocks", "draws", "nsga", "ours", "rivals", "trial")
"""Files that decide what a search finds; what they found before they were changed is not used."""

EXHAUSTIVE = 2048
"""Up to so many subnets within the limit the reference is all of them."""

RANDOM_SUBNETS = 40
"""What a random subnet near the limit is worth is the mean of so many."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the searches are given."""

    labels: int = 200
    unlabelled: int = 256
    effort: Effort = field(default_factory=Effort)
    """Of AdaptiveNet's search and NSGA-II."""

    factor: int = 10
    """By which the reference is longer than our search."""

    plan: AdaptPlan = field(default_factory=lambda: AdaptPlan(Budget()))
    """Of our search."""

    random: tuple[int, ...] = (32, 128, 512)
    """Subnets of the random searches; ours proposes 80."""

    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Search:
    """How one search is run: `width` subnets are asked for together; a rival takes long."""

    run: Callable[[Trial], None]
    width: int
    kept: bool = True
    rival: bool = False


def code_digest(*more: str) -> str:
    """Of what decides what a search finds; `more` are further files of the benches, without the ending."""
    sources = [path for room in ROOMS for path in sorted((RUNTIME / room).glob("*.py"))]
    sources += [RUNTIME / f"{name}.py" for name in DECIDING]
    sources += [BENCH / f"{name}.py" for name in (*(f"search_{name}" for name in SEARCHES), *more)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


class Draws:
    """Makes and keeps what searches find on halves of the images.

    Args:
        terms: of the case and budget.
        setting: of the searches.
        path: of the file.
    """

    def __init__(self, terms: Terms, setting: Setting, path: Path) -> None:
        self._terms, self._setting, self._path = terms, setting, path
        about = {"images": len(terms.labels), "limit_ms": terms.limit_ms, "code": code_digest()}
        asked = asdict(setting)
        asked.pop("random")  # the names of the random searches say how many subnets they have
        self._about = json.dumps(asked | about)
        self.found: dict[str, dict[int, Any]] = {}
        """By search and draw what it told; of the reference its candidates."""
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def make(self, count: int, rivals: int) -> None:
        """Run what is missing of the first `count` draws, and of rivals of the first `rivals`."""
        for draw in range(count):
            for name, search in self._searches().items():
                if draw in self.found.get(name, {}) or (search.rival and draw >= rivals):
                    continue
                print(f"{self._path.parent.name} {self._path.stem}: draw {draw}, {name}", file=sys.stderr, flush=True)
                seen, _ = self.halves(draw)
                trial = Trial(self._terms, seen, self._setting.seed + draw, search.width, kept=search.kept)
                search.run(trial)
                self._keep(name, draw, trial.found)
            if draw not in self.found.get(REFERENCE, {}):
                self._keep(REFERENCE, draw, self._reference(draw))
        # An earlier run may have made more draws, and other searches.
        most = {name: rivals if search.rival else count for name, search in self._searches().items()}
        told = {name: self.found.get(name, {}) for name in (*most, REFERENCE)}
        kept = {name: {d: found[d] for d in found if d < most.get(name, count)} for name, found in told.items()}
        self.found = {name: found for name, found in kept.items() if found}

    def halves(self, draw: int) -> tuple[Indices, Indices]:
        """The images of one half in random order, of which searches see the first, and those of the other."""
        order = np.random.default_rng((self._setting.seed, draw)).permutation(len(self._terms.labels))
        first, second = np.array_split(order, 2)
        return first, second

    def random_subnets(self) -> list[Gates]:
        """Random subnets within the limit, near it."""
        return random_feasible(self._terms.plan, RANDOM_SUBNETS, random.Random(self._setting.seed))

    def _searches(self) -> Mapping[str, _Search]:
        setting, plan = self._setting, self._setting.plan
        labels, effort = setting.labels, setting.effort
        searches = {
            "ours": _Search(lambda t: adapted(t, t.evaluator(labels), plan), plan.population, kept=False),
            "ours, no labels": _Search(
                lambda t: adapted(t, t.evaluator(setting.unlabelled, labelled=False), plan), plan.population, kept=False
            ),
            "ours, unseeded": _Search(lambda t: unseeded(t, t.evaluator(labels), plan), plan.population),
        }
        for count in setting.random:
            searches[f"random, {count}"] = _Search(
                lambda t, count=count: random_search(t, t.evaluator(labels), plan, count), count
            )
        searches["AdaptiveNet"] = _Search(
            lambda t: adaptivenet(t, t.evaluator(labels), effort), effort.population, rival=True
        )
        if pymoo_version():
            searches["NSGA-II"] = _Search(lambda t: nsga(t, t.evaluator(labels), effort), effort.population, rival=True)
        return searches

    def _reference(self, draw: int) -> list[str]:
        """Candidates: all subnets of a small space, else the best of a long search on all labels of the half."""
        terms = self._terms
        if terms.space.size() <= EXHAUSTIVE:
            return [str(gates) for gates in terms.space.enumerate() if terms.cost(gates) <= terms.limit_ms]
        seen, _ = self.halves(draw)
        trial = Trial(terms, seen, self._setting.seed + draw, width=1, kept=True)
        best = reference_search(trial, trial.evaluator(len(seen)), self._setting.plan, self._setting.factor)
        return [str(gates) for gates in best]

    def _keep(self, name: str, draw: int, found: Any) -> None:
        line = json.dumps({"about": self._about, "search": name, "draw": draw, "found": found})
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + line)  # first, as a stopped run may have left half a line
        self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # empty, or the run was stopped while it wrote this line
            return
        if entry["about"] == self._about:
            self.found.setdefault(entry["search"], {})[entry["draw"]] = entry["found"]
