"""tools/bench/sharing.py on a few images: it searches for real, and refuses values that sharing has changed."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))

import sharing

from edge_runtime.adaptation import AdaptPlan
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.backends.onnx.parts import PreparedParts
from edge_runtime.errors import EdgeError
from edge_runtime.objectives import Budget

FEW = Namespace(case="scenes", bundle=None, data=None, fraction=0.6, batch=8, rounds=1, images=12, json=None)


def test_a_search_with_shared_beginnings_is_the_same_search() -> None:
    found = sharing._bench(FEW)
    # More than one generation; it ends where a subnet answers all 12 images as the full one does.
    assert found["subnets"] > AdaptPlan(Budget()).population
    assert found["image_runs"] >= 12 * found["subnets"]  # 12 images are all there are for every stage
    assert found["ratio"] > 0


def test_a_search_that_sharing_has_changed_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    run = PreparedParts.run

    def wrong(self: PreparedParts, *arguments: Any) -> Any:
        return {name: values + 1e-3 * values[:1] for name, values in run(self, *arguments).items()}

    monkeypatch.setattr(PreparedParts, "run", wrong)
    monkeypatch.setattr(CompiledSession, "_answers_alike", lambda *_: True)  # else such parts are not used
    with pytest.raises(EdgeError, match="other values"):
        sharing._bench(FEW)
