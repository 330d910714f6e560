"""One resumable training loop for every stage and for plain fits, on one process or many.

`config` says how long and how fast; `compute` where the work runs (device, precision, ranks); `state` is what a
checkpoint holds; `guard` notices a loss that jumps; `loop` puts them together. It knows no supernet and no loss: a
stage gives it a step function and a batch source.
"""

from builder.training.compute import Compute, Precision
from builder.training.config import Batch, BatchSource, LoopConfig
from builder.training.keeper import identity_of
from builder.training.loop import run_loop
from builder.training.ranks import Ranks, joined_ranks, started_processes

__all__ = [
    "Batch",
    "BatchSource",
    "Compute",
    "LoopConfig",
    "Precision",
    "Ranks",
    "identity_of",
    "joined_ranks",
    "run_loop",
    "started_processes",
]
