"""What can go wrong while building, beside the runtime's own errors."""

from edge_runtime.errors import EdgeError

__all__ = ["BuildError"]


class BuildError(EdgeError):
    """The exported model is not the trained one, or cannot be exported; exit code 1."""
