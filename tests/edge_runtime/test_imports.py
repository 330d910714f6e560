"""The one public door: lazy, complete, and light."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import edge_runtime

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "psutil", "yaml", "PIL")


def loaded_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_library() -> None:
    assert loaded_after("import edge_runtime") == set()


def test_values_need_no_library() -> None:
    assert loaded_after("from edge_runtime import Budget, EdgeError, Frontier, Gates, GateSpace") == set()


def test_loading_the_model_class_needs_no_native_inference_library() -> None:
    assert loaded_after("from edge_runtime import EdgeModel") & {"torch", "onnx", "onnxruntime"} == set()


@pytest.mark.parametrize("name", edge_runtime.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(edge_runtime, name) is not None
    assert name in dir(edge_runtime)


def test_the_public_names_are_listed_once_and_sorted() -> None:
    assert len(set(edge_runtime.__all__)) == len(edge_runtime.__all__)
    assert set(edge_runtime.__all__) >= {"Budget", "Bundle", "DeviceProfile", "EdgeError", "EdgeModel", "Frontier"}


def test_the_whole_error_family_is_public() -> None:
    errors = importlib.import_module("edge_runtime.errors")
    assert set(errors.__all__) <= set(edge_runtime.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'EdgeModle'"):
        edge_runtime.EdgeModle  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    metadata = importlib.import_module("importlib.metadata")
    try:
        installed = metadata.version("nnf-edge")
    except metadata.PackageNotFoundError:
        pytest.skip("nnf-edge is not installed here, only on the path")
    assert edge_runtime.__version__ == installed
