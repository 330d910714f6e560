"""Find a user's factory, ``path/to/model.py:function`` or ``package.module:function``, and call it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from builder.errors import BuildError
from edge_runtime.errors import UsageError

__all__ = ["make_network"]

_FORMS = "path/to/model.py:function or package.module:function"


def make_network(reference: str) -> nn.Module:
    """Call the factory that `reference` names, without arguments.

    The file's folder (or the current one, for a module) is put on the import path, as if the file were run.

    Raises:
        UsageError: there is no such file, module or function, or it gives no `torch.nn.Module`.
        BuildError: the user's own code raises.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise UsageError(f"{reference!r} does not name a factory", hint=f"write {_FORMS}")
    module = _load_file(Path(where)) if where.endswith(".py") else _import(where)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        raise UsageError(f"{where} has no function {name!r}", hint=f"it has {', '.join(known) or 'none'}")
    network = _called(factory, f"{reference} fails")
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{reference} gives a {type(network).__name__}, not a torch.nn.Module",
            hint="let it return the network itself, built without arguments",
        )
    return network


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"the model file {str(path)!r} does not exist", hint=f"write {_FORMS}")
    _on_path(path.resolve().parent)
    name = f"nnf_project_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be copied and pickled
    _called(lambda: spec.loader.exec_module(module), f"{path} cannot be run")
    return module


def _import(name: str) -> ModuleType:
    _on_path(Path.cwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"there is no module {name!r}", hint=f"write {_FORMS}")
    module: ModuleType = _called(lambda: importlib.import_module(name), f"the module {name} cannot be imported")
    return module


def _on_path(folder: Path) -> None:
    if os.fspath(folder) not in sys.path:
        sys.path.insert(0, os.fspath(folder))


def _called(call: Callable[[], object], what: str) -> object:
    try:
        return call()
    except Exception as error:  # the user's code may raise whatever it likes
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        said = str(error).partition("\n")[0]
        hint = "it is called without arguments" if last.filename == __file__ else f"see {where}, or run with --debug"
        raise BuildError(f"{what}: {type(error).__name__}: {said}", hint=hint) from error
