"""The error tree of the runtime; every error says what is wrong and what to do next.

    EdgeError                      exit code 1
    +-- UsageError                 2   an argument that cannot be meant
    |   +-- InputError             2   an image, array, label file or data directory that cannot be used
    |   +-- GateError              2   a gate vector or gate text that is not in the space
    |   `-- ProfileError           2   a device profile that is unknown or invalid
    +-- BudgetError                3   measured, but no subnet meets the budget
    +-- BundleError                4   a bundle that is damaged, hostile or of an unknown version
    +-- BackendError               5   the inference runtime refused, failed or is not installed
    +-- ResourceError              6   a limit of this machine forbids it (memory, a lock held by another run)
    +-- StateError                74   a file or directory that cannot be read or written

The exit code of the command line lives on the class. Foreign exceptions (onnxruntime, onnx, Pillow, OSError) are
translated at the seam where the library is called, with the cause chained. This file imports nothing.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BudgetError",
    "BundleError",
    "EdgeError",
    "GateError",
    "InputError",
    "ProfileError",
    "ResourceError",
    "StateError",
    "UsageError",
]


class EdgeError(Exception):
    """Root of the tree: `message` says what is wrong, with the value; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(EdgeError):
    """An argument or option that cannot be meant."""

    exit_code = 2


class InputError(UsageError):
    """An image, tensor, label file or data directory that cannot be used."""


class GateError(UsageError):
    """A gate vector, gate text or gate space that is not valid."""


class ProfileError(UsageError):
    """A device profile that is unknown or invalid."""


class BudgetError(EdgeError):
    """Everything was measured, and no subnet meets the budget.

    `fastest` is the text form of the fastest measured subnet's gates and `latency_ms` its p95 in milliseconds; empty
    and None where nothing was measured, or where the memory does not suffice and so the fastest was not looked for.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", fastest: str = "", latency_ms: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.fastest = fastest
        self.latency_ms = latency_ms


class BundleError(EdgeError):
    """A bundle that is missing, damaged, hostile or of an unknown version.

    `faults` holds one line per fault found; all are reported together.
    """

    exit_code = 4

    def __init__(self, message: str, *, faults: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.faults = faults

    def __str__(self) -> str:
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        return super().__str__() + lines


class BackendError(EdgeError):
    """The inference runtime is missing, refused the graph, or failed while running it."""

    exit_code = 5


class ResourceError(EdgeError):
    """A limit of this machine forbids it: memory, time, or a lock that another run holds."""

    exit_code = 6


class StateError(EdgeError):
    """A file or directory that cannot be read or written."""

    exit_code = 74
