"""The portable gated graph as onnxruntime runs it: one session, every subnet, gates fed with each run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array, SessionOptions, check_gates, check_inputs
from edge_runtime.backends.onnx.check import check_graph
from edge_runtime.backends.onnx.passes.names import graphs_of
from edge_runtime.backends.onnx.telemetry import import_onnxruntime
from edge_runtime.bundle import Bundle, Manifest, TensorSpec
from edge_runtime.errors import BackendError, BundleError, ResourceError
from edge_runtime.gates import Gates

__all__ = ["WEIGHTS_FILE", "PortableSession", "create_native", "foreign_errors", "open_portable"]

WEIGHTS_FILE = "weights.bin"
SEVERITY_ERROR = 3
TENSOR_FOLDER_SINCE = (1, 21)
"""The onnxruntime that can be told where the tensors of a model of bytes are."""

ACTIVATION_FUSION_SINCE = (1, 23)
"""The onnxruntime whose fusion of convolutions and activations does not abort on a Clip in a branch."""


class PortableSession:
    """Implements `Session` over the gated graph. Thread-safe: onnxruntime runs one session from many threads."""

    name = "onnxruntime-portable"
    maps_weights = False

    def __init__(self, native: Any, bundle: Bundle, options: SessionOptions) -> None:
        manifest = bundle.manifest
        self._native = native
        self._space = manifest.space
        self._gate_input = manifest.gate_input
        self.threads = options.threads
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Run one subnet on one batch; see `Session.run`."""
        native = self._native
        if native is None:
            raise BackendError("the session is closed", hint="open the model again")
        check_gates(self._space, gates)
        check_inputs(self.inputs, inputs)
        feeds = {**inputs, self._gate_input: np.array(gates.vector(), dtype=np.int64)}
        with foreign_errors(f"subnet {gates} could not be run"):
            values = native.run(self._output_names, feeds)
        return dict(zip(self._output_names, values, strict=True))

    def prefer(self, gates: Gates) -> None:
        """Nothing runs quicker here than the gated graph; see `Session.prefer`."""
        check_gates(self._space, gates)

    def hold(self, subnets: Sequence[Gates]) -> AbstractContextManager[None]:
        """Nothing runs quicker here than the gated graph; see `Session.hold`."""
        for gates in subnets:
            check_gates(self._space, gates)
        return nullcontext()

    def in_parts(self) -> None:
        """Only what was prepared on this machine is cut; see `Session.in_parts`."""

    def close(self) -> None:
        """Drop the native session; see `Session.close`."""
        self._native = None


def open_portable(bundle: Bundle, options: SessionOptions) -> PortableSession:
    """Check the graph, load it from memory, and compare what onnxruntime found with what the manifest says.

    Raises:
        BundleError: The graph is not allowed, is refused by onnxruntime, or differs from the manifest.
        BackendError: onnxruntime is missing or lacks a provider.
    """
    check_graph(bundle)
    native = create_native(bundle.model_bytes, bundle.weights, options)
    check_signature(native, bundle.manifest, [bundle.manifest.gate_input])
    return PortableSession(native, bundle, options)


def check_signature(native: Any, manifest: Manifest, fed: Collection[str]) -> None:
    """Raise `BundleError` unless a session gives what the manifest names, and takes its inputs and `fed`."""
    found = {value.name for value in native.get_inputs()}
    wanted = {spec.name for spec in manifest.inputs} | set(fed)
    if found != wanted or not {spec.name for spec in manifest.outputs} <= {v.name for v in native.get_outputs()}:
        raise BundleError(
            f"the graph takes {', '.join(sorted(found))}, the manifest says {', '.join(sorted(wanted))}",
            hint="export the model again",
        )


def create_native(
    model_bytes: bytes,
    weights: bytes,
    options: SessionOptions,
    *,
    profile_prefix: Path | None = None,
    dump_to: Path | None = None,
) -> Any:
    """An onnxruntime session from bytes alone: no path of the model is ever given to the library, so it can open none.

    `profile_prefix` and `dump_to` are our own paths that it writes its profile and its optimised graph to.
    """
    runtime = import_onnxruntime()
    settings = _native_options(runtime, options)
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    if dump_to is not None:
        settings.optimized_model_filepath = str(dump_to)
    return _create(runtime, model_bytes, weights, settings, options)


def create_dump(bundle: Bundle, options: SessionOptions, skeleton: Path, tensors: str, *, blocked: bool) -> Any:
    """Optimise the portable graph and write it to `skeleton`, its large tensors to the file `tensors` beside it.

    With `blocked` at full optimisation, which on x86 means blocked layouts; without, one level below. The session is
    given back: it runs the portable graph as `open_portable` does.
    """
    runtime = import_onnxruntime()
    settings = _native_options(runtime, options)
    if not blocked:
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(skeleton)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", tensors)
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    return _create(runtime, bundle.model_bytes, bundle.weights, settings, options)


def create_prepared(
    model: Path | bytes,
    options: SessionOptions,
    *,
    folder: Path | None = None,
    profile_prefix: Path | None = None,
    optimised: bool = True,
    one_chunk: bool = True,
    keeps_memory: bool = True,
) -> Any:
    """A session of a graph of ours, its tensors mapped from beside it, or of one that is bytes from `folder`.

    One that was `optimised` before is taken as it is; others are optimised here, which copies their weights. Without
    `one_chunk` activations are allocated one by one, instead of at once for each graph that is entered. Without
    `keeps_memory` they are given back when they are not needed any more, and not kept for the next run.
    """
    runtime = import_onnxruntime()
    settings = _native_options(runtime, options)
    settings.enable_mem_pattern = one_chunk
    settings.enable_cpu_mem_arena = keeps_memory
    if optimised:
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    if isinstance(model, bytes) and folder is not None:
        if not optimised and _release(runtime.__version__) < TENSOR_FOLDER_SINCE:
            model = _with_embedded_weights(model, (folder / WEIGHTS_FILE).read_bytes())  # it optimises no mapped ones
        else:
            model = _with_tensors_in(folder.absolute(), model, settings, runtime.__version__)
    with foreign_errors("the prepared graph cannot be opened"):
        return _open(runtime, str(model) if isinstance(model, Path) else model, settings, options)


def _create(runtime: Any, model_bytes: bytes, weights: bytes, settings: Any, options: SessionOptions) -> Any:
    with foreign_errors("onnxruntime refuses the graph", into=BundleError):
        if weights and hasattr(settings, "add_external_initializers_from_files_in_memory"):
            settings.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [weights], [len(weights)])
        elif weights:
            model_bytes = _with_embedded_weights(model_bytes, weights)
        return _open(runtime, model_bytes, settings, options)


def _open(runtime: Any, source: str | bytes, settings: Any, options: SessionOptions) -> Any:
    without = _harmful_optimizers(runtime.__version__)
    more = {"disabled_optimizers": without} if without else {}
    return runtime.InferenceSession(source, settings, providers=list(options.providers), **more)


def _harmful_optimizers(version: str) -> list[str]:
    """What must not run on a gated graph: an abort of the process is no error that anybody could catch.

    Before 1.23 the fusion of convolutions and activations reads behind the end of a node's inputs where a Clip stands
    in a branch. The blocked layout folds a Relu on its own, and our crossing pass folds the Clips.
    """
    return [] if _release(version) >= ACTIVATION_FUSION_SINCE else ["ConvActivationFusion"]


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version, whatever follows."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _native_options(runtime: Any, options: SessionOptions) -> Any:
    """Settings of a session. A provider that is missing is refused: onnxruntime would quietly use the CPU."""
    missing = [name for name in options.providers if name not in runtime.get_available_providers()]
    if missing:
        raise BackendError(
            f"this onnxruntime has no {', '.join(missing)}",
            hint=f"it has {', '.join(runtime.get_available_providers())}",
        )
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = SEVERITY_ERROR
    spin = "1" if options.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spin)
    settings.add_session_config_entry("session.inter_op.allow_spinning", spin)
    # Weights that are stored in 8 bits become float32 when the graph is optimised; else they would in each run.
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def _with_tensors_in(folder: Path, model_bytes: bytes, settings: Any, version: str) -> bytes:
    """The same model, whose external tensors onnxruntime then finds in `folder`, wherever the process is.

    Before 1.21 no setting says so, but an absolute path may stand in the model; later versions refuse that.
    """
    if _release(version) >= TENSOR_FOLDER_SINCE:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        return model_bytes
    import onnx

    model = onnx.load_from_string(model_bytes)
    for tensor in (tensor for graph in graphs_of(model.graph) for tensor in graph.initializer):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(folder / entry.value)
    return bytes(model.SerializeToString())


def _with_embedded_weights(model_bytes: bytes, weights: bytes) -> bytes:
    """The same model with its external tensors inside, for onnxruntime versions that take no external file from memory.

    Only outer initializers refer to the weight file; `check_graph` has refused every other place.
    """
    import onnx

    model = onnx.load_from_string(model_bytes)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            offset = int(where.get("offset", 0))
            tensor.raw_data = weights[offset : offset + int(where["length"])]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
    return bytes(model.SerializeToString())


@contextmanager
def foreign_errors(what: str, *, into: type[BackendError] | type[BundleError] = BackendError) -> Iterator[None]:
    """Translate whatever onnxruntime raises; its exceptions share no base class below `Exception`."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{what}: out of memory", hint="use a smaller batch or a smaller model") from error
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        hint = "export the model again, or update onnxruntime" if into is BundleError else "run 'nnf-edge verify'"
        raise into(f"{what}: {text}", hint=hint) from error
