"""A subnet to take away: what is in the file, and that it answers as the gated model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_runtime import Budget, EdgeModel
from edge_runtime.backends import export_subnet, open_static
from edge_runtime.backends.onnx import export
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, BundleError, GateError, StateError
from tests.support.tiny import SPACE, tiny_bundle, tiny_reference


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.nnf")


def test_every_subnet_answers_as_an_independent_model(bundle: Bundle) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    for gates in SPACE.enumerate():
        found = open_static(export_subnet(bundle, gates)).run({"image": x})["logits"]
        np.testing.assert_allclose(found, tiny_reference(gates, x), rtol=1e-3, atol=1e-4)


def test_only_standard_operators_no_gates_no_normalisation_and_weights_inside(bundle: Bundle) -> None:
    model = onnx.load_from_string(export_subnet(bundle, SPACE.parse("1-0-2")))
    assert [value.name for value in model.graph.input] == ["image"]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not {"If", "BatchNormalization", "Gather", "Equal"} & {node.op_type for node in model.graph.node}
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    assert bundle.digest in model.doc_string
    assert "1-0-2" in model.doc_string


def test_the_same_subnet_gives_the_same_bytes(bundle: Bundle) -> None:
    assert export_subnet(bundle, SPACE.default) == export_subnet(bundle, SPACE.default)


def test_a_result_that_answers_otherwise_is_not_given_away(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(BackendError, match="differs"):
        export_subnet(bundle, SPACE.default)


def test_the_model_exports_its_active_subnet_or_the_one_that_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with EdgeModel.load(bundle.source, state_dir=tmp_path / "state", budget=Budget(), threads=1) as model:
        model.swap("1-1-1")
        model.export(tmp_path / "active.onnx")
        model.export(tmp_path / "named.onnx", "2-3-0")
        assert (tmp_path / "active.onnx").read_bytes() == export_subnet(bundle, SPACE.parse("1-1-1"))
        assert (tmp_path / "named.onnx").read_bytes() == export_subnet(bundle, SPACE.parse("2-3-0"))
        with pytest.raises(GateError):
            model.export(tmp_path / "x.onnx", "9-9-9")
        with pytest.raises(StateError, match="cannot be written"):
            model.export(tmp_path / "missing" / "x.onnx")
    assert sorted(path.name for path in tmp_path.glob("*")) == ["active.onnx", "named.onnx", "state"]


def test_a_bundle_that_was_exchanged_is_not_exported(tmp_path: Path) -> None:
    path = tmp_path / "tiny.nnf"
    tiny_bundle(path)
    with EdgeModel.load(path, state_dir=tmp_path / "state", budget=Budget(), threads=1) as model:
        tiny_bundle(path, seed=3)
        with pytest.raises(BundleError, match="another bundle"):
            model.export(tmp_path / "x.onnx")
