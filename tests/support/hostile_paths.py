"""Child process of test_bundle_paths: hands bundles that point elsewhere to the reader and records every file opened.

    python -m tests.support.hostile_paths WORKDIR

Prints a JSON list of [vector, outcome, opened elsewhere]. The audit hook sees every open and listing of Python;
onnxruntime, which it could not see, is never reached, because the graph check imports onnx only.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from edge_runtime.backends import check_graph
from edge_runtime.bundle import Bundle
from edge_runtime.bundle.stored_zip import zip_stored
from edge_runtime.errors import BundleError
from tests.support.mutate import all_graphs, seal, sign
from tests.support.tiny import TinyParts, tiny_bundle, tiny_parts

NAMES = (
    "../secret",
    "../../secret",
    "/etc/passwd",
    "a/../weights.bin",
    "./weights.bin",
    "weights.bin/",
    "sub/weights.bin",
    "weights.bin\0.txt",
    "x" * 300,
    "Weights.bin",
    "weights\u2024bin",
    "\uff57eights.bin",
    "weights.bin ",
    "..\\secret",
    "C:\\secret",
    "~/secret",
    "file:///etc/passwd",
    "/proc/self/mem",
    "",
    ".",
    "..",
)
LISTED = {"manifest.json", "model.onnx", "weights.bin"}
Vector = tuple[str, Callable[[Path], Path]]


def vectors() -> Iterator[Vector]:
    for name in NAMES:
        yield f"manifest lists {name[:30]!r}", lambda work, name=name: _listed(work, name)
        yield f"zip member {name[:30]!r}", lambda work, name=name: _zip_member(work, name)
        yield f"initializer in {name[:30]!r}", lambda work, name=name: _graph(work, lambda m: _location(m, name))
    yield from ((f"directory with {make.__name__}", make) for make in _DIRECTORIES)
    yield "zip member is a symlink", _zip_symlink
    yield from ((f"graph with {edit.__name__}", lambda work, edit=edit: _graph(work, edit)) for edit in _GRAPHS)


def main(work: Path) -> None:
    (work / "secret").write_bytes(b"secret")
    (work / "outside").mkdir()
    tiny_bundle(work / "outside" / "b")
    check_graph(tiny_bundle(work / "warm.nnf"))  # imports everything before the hook listens
    opened: list[str] = []
    sys.addaudithook(lambda event, args: _record(opened, event, args))
    control = _control(opened, work)
    rows = []
    for index, (name, make) in enumerate(vectors()):
        case = work / f"case{index}"
        case.mkdir()
        path = make(case)
        opened.clear()
        outcome = _try(path)
        elsewhere = [where for where in opened if where != str(path) and where not in LISTED]
        rows.append([name, outcome, elsewhere])
    print(json.dumps({"control": control, "rows": rows}))


def _record(opened: list[str], event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        inside = args[0] in LISTED and args[2] & os.O_NOFOLLOW
        opened.append(str(args[0]) if inside or args[0] not in LISTED else f"{args[0]} without O_NOFOLLOW")
    elif event in ("os.listdir", "os.scandir") and not isinstance(args[0], int):
        opened.append(f"listing of {args[0]}")
    elif event.startswith(("socket", "subprocess", "ctypes", "pickle")):
        opened.append(event)


def _control(opened: list[str], work: Path) -> list[str]:
    """What the hook sees when the secret is opened: proof that it would have been noticed."""
    opened.clear()
    (work / "secret").read_bytes()
    return list(opened)


def _try(path: Path) -> str:
    try:
        check_graph(Bundle.read(path))
    except BundleError as error:
        return f"BundleError: {error}"
    return "accepted"


def _body(work: Path) -> tuple[dict[str, Any], TinyParts]:
    tiny_bundle(work / "whole")
    return json.loads((work / "whole" / "manifest.json").read_bytes()), tiny_parts()


def _listed(work: Path, name: str) -> Path:
    """A directory whose manifest, well signed, names another file, which is where it says if it can be."""
    body, _ = _body(work)
    secret = b"secret"
    body["files"][1] = {"path": name, "sha256": hashlib.sha256(secret).hexdigest(), "size_bytes": len(secret)}
    (work / "whole" / "manifest.json").write_bytes(sign(body))
    return work / "whole"


def _zip_member(work: Path, name: str) -> Path:
    _, parts = _body(work)
    files = {f: (work / "whole" / f).read_bytes() for f in ("manifest.json", "model.onnx")}
    placeholder = "\1" * len(name.encode())
    data = zip_stored({**files, placeholder: parts.weights})
    path = work / "b.nnf"
    path.write_bytes(data.replace(placeholder.encode(), name.encode()) if name else data)
    return path


def _zip_symlink(work: Path) -> Path:
    tiny_bundle(work / "b.nnf")
    data = (work / "b.nnf").read_bytes()
    mode = ((stat.S_IFREG | 0o644) << 16).to_bytes(4, "little")
    (work / "b.nnf").write_bytes(data.replace(mode, ((stat.S_IFLNK | 0o777) << 16).to_bytes(4, "little")))
    return work / "b.nnf"


def _replaced(work: Path, name: str = "weights.bin") -> Path:
    tiny_bundle(work / "b")
    (work / "b" / name).unlink()
    return work / "b" / name


def symlinked_weights(work: Path) -> Path:
    _replaced(work).symlink_to(work.parent / "outside" / "b" / "weights.bin")
    return work / "b"


def symlinked_manifest(work: Path) -> Path:
    _replaced(work, "manifest.json").symlink_to("/etc/passwd")
    return work / "b"


def symlinked_model(work: Path) -> Path:
    _replaced(work, "model.onnx").symlink_to("../../outside/b/model.onnx")
    return work / "b"


def dangling_symlink(work: Path) -> Path:
    _replaced(work).symlink_to("nowhere")
    return work / "b"


def symlink_loop(work: Path) -> Path:
    _replaced(work).symlink_to("weights.bin")
    return work / "b"


def symlinked_device(work: Path) -> Path:
    _replaced(work).symlink_to("/dev/zero")
    return work / "b"


def hard_linked_weights(work: Path) -> Path:
    os.link(work.parent / "outside" / "b" / "weights.bin", _replaced(work))
    return work / "b"


def fifo_as_weights(work: Path) -> Path:
    os.mkfifo(_replaced(work))
    return work / "b"


def fifo_as_manifest(work: Path) -> Path:
    os.mkfifo(_replaced(work, "manifest.json"))
    return work / "b"


def fifo_as_bundle(work: Path) -> Path:
    os.mkfifo(work / "b.nnf")
    return work / "b.nnf"


def socket_as_weights(work: Path) -> Path:
    path = _replaced(work)
    here = os.getcwd()
    os.chdir(path.parent)  # socket paths are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)
    return work / "b"


def directory_as_weights(work: Path) -> Path:
    _replaced(work).mkdir()
    return work / "b"


def symlinked_parent(work: Path) -> Path:
    """The manifest names a file below a link that leads outside."""
    path = _listed(work, "sub/weights.bin")
    (path / "sub").symlink_to(work.parent / "outside" / "b")
    return path


def case_twin(work: Path) -> Path:
    tiny_bundle(work / "b")
    (work / "b" / "WEIGHTS.BIN").write_bytes(b"secret")
    return work / "b"


def unicode_twin(work: Path) -> Path:
    tiny_bundle(work / "b")
    (work / "b" / "weights\u2024bin").write_bytes(b"secret")
    return work / "b"


def undecodable_twin(work: Path) -> Path:
    tiny_bundle(work / "b")
    (work / "b" / os.fsdecode(b"weights\xff.bin")).write_bytes(b"secret")
    return work / "b"


def device_as_bundle(work: Path) -> Path:
    return Path("/dev/zero")


_DIRECTORIES = (
    symlinked_weights,
    symlinked_manifest,
    symlinked_model,
    dangling_symlink,
    symlink_loop,
    symlinked_device,
    hard_linked_weights,
    fifo_as_weights,
    fifo_as_manifest,
    fifo_as_bundle,
    socket_as_weights,
    directory_as_weights,
    symlinked_parent,
    case_twin,
    unicode_twin,
    undecodable_twin,
    device_as_bundle,
)


def _graph(work: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    body, parts = _body(work)
    edit(parts.model)
    (work / "b.nnf").write_bytes(seal(body, parts.model.SerializeToString(deterministic=True), parts.weights))
    return work / "b.nnf"


def _location(model: onnx.ModelProto, location: str) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location


def _outside(name: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=[1, 16, 16, 16], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "16384")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _sparse() -> onnx.SparseTensorProto:
    sparse = onnx.SparseTensorProto(dims=[16])
    sparse.values.CopyFrom(_outside("sparse"))
    sparse.indices.CopyFrom(_outside("indices"))
    return sparse


def _constant(attribute: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["constant.out"], "constant", **{attribute: value})


def second_location(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    tensor.external_data.add(key="location", value="../secret")


def another_key(model: onnx.ModelProto) -> None:
    """A key that older loaders set as an attribute of their own objects (CVE-2026-34445)."""
    tensor = next(t for t in model.graph.initializer if t.external_data)
    tensor.external_data.add(key="basepath", value="/etc")


def external_data_beside_raw_data(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.external_data.add(key="location", value="../secret")


def sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(_sparse())


def constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, _constant("value", _outside("c")))


def sparse_constant(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["constant.out"], "constant")
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(_sparse())
    model.graph.node.insert(0, node)


def constant_in_a_branch(model: onnx.ModelProto) -> None:
    all_graphs(model.graph)[-1].node.insert(0, _constant("value", _outside("c")))


def initializer_in_a_branch(model: onnx.ModelProto) -> None:
    all_graphs(model.graph)[-1].initializer.append(_outside("inner"))


def sparse_initializer_in_a_branch(model: onnx.ModelProto) -> None:
    all_graphs(model.graph)[-1].sparse_initializer.append(_sparse())


def tensor_list_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="x", type=onnx.AttributeProto.TENSORS).tensors.append(_outside("t"))


def hidden_tensor_in_an_attribute(model: onnx.ModelProto) -> None:
    """An attribute of type INT that carries a tensor as well."""
    next(a for n in model.graph.node for a in n.attribute if n.op_type == "Gather").t.CopyFrom(_outside("t"))


def function(model: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [_constant("value", _outside("c"))], opset))


def training_information(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(_outside("t"))


_GRAPHS = (
    second_location,
    another_key,
    external_data_beside_raw_data,
    sparse_initializer,
    constant,
    sparse_constant,
    constant_in_a_branch,
    initializer_in_a_branch,
    sparse_initializer_in_a_branch,
    tensor_list_attribute,
    hidden_tensor_in_an_attribute,
    function,
    training_information,
)

if __name__ == "__main__":
    main(Path(sys.argv[1]))
