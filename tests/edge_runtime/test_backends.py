"""The onnxruntime backend beyond the common contract: options, refusals, the static oracle and the kernel profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_runtime.backends import (
    KernelProfile,
    Kernels,
    SessionOptions,
    compile_bundle,
    open_session,
    open_static,
    profile_kernels,
    runtime_versions,
)
from edge_runtime.backends.base import random_inputs
from edge_runtime.backends.onnx import session as onnx_session
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, BundleError, InputError, StateError, UsageError
from edge_runtime.seeds import covering_vectors
from tests.support.tiny import SPACE, tiny_bundle, tiny_parts, tiny_reference


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.nnf")


def plain_model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1.5}, {"providers": ()}, {"providers": "CPU"}])
def test_options_that_cannot_be_meant_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SessionOptions(**options)  # type: ignore[arg-type]


def test_the_key_of_options_tells_what_changes_a_measurement() -> None:
    keys = {SessionOptions().key(), SessionOptions(threads=2).key(), SessionOptions(spinning=True).key()}
    assert len(keys) == 3


def test_a_provider_that_is_not_there_is_named_with_those_that_are(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"NoSuchProvider.*CPUExecutionProvider"):
        open_session(bundle, SessionOptions(providers=("NoSuchProvider",)))


def test_a_graph_that_onnxruntime_refuses_is_a_bundle_error_with_its_cause(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_session, "check_graph", lambda bundle: None)
    damaged = dataclasses.replace(bundle, model_bytes=b"not a graph")
    with pytest.raises(BundleError, match="onnxruntime refuses the graph") as caught:
        open_session(damaged)
    assert caught.value.__cause__ is not None


def test_without_external_files_from_memory_the_weights_are_embedded(bundle: Bundle) -> None:
    parts = tiny_parts()
    whole = onnx_session._with_embedded_weights(parts.model.SerializeToString(), parts.weights)
    assert not any(t.external_data for t in onnx.load_from_string(whole).graph.initializer)
    alone = dataclasses.replace(bundle, model_bytes=whole, weights=b"")
    inputs = random_inputs(bundle.manifest.inputs, seed=0)
    native = onnx_session.create_native(alone.model_bytes, alone.weights, SessionOptions())
    session = onnx_session.PortableSession(native, alone, SessionOptions())
    expected = tiny_reference(SPACE.default, inputs["image"])
    np.testing.assert_allclose(session.run(inputs, SPACE.default)["logits"], expected, atol=1e-3)


def test_a_failure_of_the_library_is_a_backend_error_with_its_cause() -> None:
    with pytest.raises(BackendError, match="the run failed: boom boom") as caught:  # noqa: SIM117
        with onnx_session.foreign_errors("the run failed"):
            raise RuntimeError("boom\n  boom")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_static_graph_runs_through_the_same_seam() -> None:
    session = open_static(plain_model())
    x = np.array([[-1.0, 0.0, 2.0]], np.float32)
    assert session.inputs[0].shape == (None, 3)
    np.testing.assert_array_equal(session.run({"x": x}, SPACE.default)["y"], [[0, 0, 2]])
    with pytest.raises(InputError, match="shape"):
        session.run({"x": np.zeros((1, 4), np.float32)})
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": x})


def test_what_is_no_graph_is_refused_by_the_static_loader() -> None:
    with pytest.raises(BundleError):
        open_static(b"nothing")


def test_the_profile_charges_each_decision_with_its_own_kernels(bundle: Bundle, tmp_path: Path) -> None:
    inputs = random_inputs(bundle.manifest.inputs, seed=0)
    vectors = [SPACE.default, SPACE.parse("2-3-0"), *covering_vectors(SPACE)]
    profile = profile_kernels(bundle, SessionOptions(), inputs, vectors, rounds=3, scratch=tmp_path)
    assert profile.vectors == tuple(vectors)
    check_tiny_profile(profile)
    assert list(tmp_path.iterdir()) == [], "the profile is removed"


def test_subnets_that_run_alone_are_profiled_alone_and_charged_alike(bundle: Bundle, tmp_path: Path) -> None:
    options, inputs = SessionOptions(), random_inputs(bundle.manifest.inputs, seed=0)
    folder, scratch = tmp_path / "prepared", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    compile_bundle(bundle, options, folder, key="k")
    vectors = [SPACE.default, SPACE.parse("2-3-0"), *covering_vectors(SPACE)]
    profiles = []
    for specialises in (True, False):
        session = CompiledSession(folder, bundle.manifest, options, form="crossing", specialises=specialises)
        profiles.append(profile_kernels(bundle, options, inputs, vectors, rounds=3, scratch=scratch, session=session))
        check_tiny_profile(profiles[-1])
        session.close()
    alone, gated = profiles
    for one, two in zip(alone.groups, gated.groups, strict=True):
        # A skip that is an Identity in the gated graph is nothing at all in a subnet of its own.
        assert [k.weight_bytes for k in one] == [k.weight_bytes for k in two]
        assert all(own.count <= same.count for own, same in zip(one, two, strict=True))
    assert list(scratch.iterdir()) == []


def check_tiny_profile(profile: KernelProfile) -> None:
    assert all(base.us > 0 and base.count > 0 and base.weight_bytes > 0 for base in profile.base)
    full, merged = profile.groups[:2]
    assert all(kernels.us > 0 and kernels.weight_bytes > 0 and kernels.live_bytes > 0 for kernels in full)
    assert merged[1].us > 0
    assert merged[2] == Kernels(), "a group inside a chosen merged window runs nothing"


def test_a_profile_that_the_disk_cut_short_is_a_state_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path)[:-40])
    inputs = random_inputs(bundle.manifest.inputs, seed=0)
    with pytest.raises(StateError, match="cut short"):
        profile_kernels(bundle, SessionOptions(), inputs, [SPACE.default], rounds=1, scratch=tmp_path)


def test_versions_name_what_runs_a_model() -> None:
    assert {"onnxruntime", "numpy", "onnx"} == runtime_versions().keys()
