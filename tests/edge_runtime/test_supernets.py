"""The generated supernets of the benches: whole networks of known shape through every running form."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edge_runtime.backends import (
    SessionOptions,
    compile_bundle,
    export_subnet,
    open_compiled,
    open_session,
    open_static,
)
from edge_runtime.backends.base import random_inputs, relative_difference
from edge_runtime.seeds import random_gates
from tests.support import modular


@pytest.fixture(scope="module")
def supernets() -> ModuleType:
    pytest.importorskip("builder.onnx_writer")
    return modular.supernets()


@pytest.mark.parametrize(("name", "groups"), [("mobilenetv2", 17), ("resnet50", 16), ("modules", 6)])
def test_every_form_of_a_whole_network_answers_the_same(
    supernets: ModuleType, tmp_path: Path, name: str, groups: int
) -> None:
    bundle, options = supernets.BUILDERS[name](tmp_path / "net.nnf", 32, 0), SessionOptions()
    assert len(bundle.manifest.space.groups) == groups
    (tmp_path / "prepared").mkdir()
    compile_bundle(bundle, options, tmp_path / "prepared", key="k")
    compiled, portable = open_compiled(bundle, options, tmp_path / "prepared", key="k"), open_session(bundle, options)
    rng, inputs = random.Random(0), random_inputs(bundle.manifest.inputs, seed=0)
    for gates in (bundle.manifest.space.default, *(random_gates(bundle.manifest.space, rng) for _ in range(3))):
        wanted = portable.run(inputs, gates)["logits"]
        assert np.abs(wanted).max() > 0.01
        found = [compiled.run(inputs, gates)["logits"], open_static(export_subnet(bundle, gates)).run(inputs)["logits"]]
        with compiled.hold([gates]):
            found.append(compiled.run(inputs, gates)["logits"])
        assert max(relative_difference(wanted, other) for other in found) < 1e-4
    compiled.close()
    portable.close()
