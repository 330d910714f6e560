"""`EdgeModel`: one open bundle that answers frames, adapts and swaps; the wiring of everything below."""

from edge_runtime.model.edge import EdgeModel
from edge_runtime.model.records import Prediction, Stats

__all__ = ["EdgeModel", "Prediction", "Stats"]
