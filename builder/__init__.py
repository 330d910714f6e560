"""The offline half: turns a trained torch network into an elastic bundle. Needs ``pip install 'nnf-edge[build]'``.

Importing this package loads nothing; each room imports torch where it needs it, and `require_torch` says what to
install where torch is missing.
"""

from __future__ import annotations

import importlib.util

from edge_runtime.errors import BackendError

__all__ = ["require_torch"]


def require_torch() -> None:
    """Raise `BackendError` with the command to run where torch is not installed; loads nothing."""
    if importlib.util.find_spec("torch") is None:
        raise BackendError("building needs torch, which is not installed", hint="pip install 'nnf-edge[build]'")
