"""Train the alternatives of a supernet from its own frozen original.

`local` teaches every alternative alone, from the teacher's inputs; `paths` trains whole subnets drawn evenly over cost;
`loop` is the resumable loop under both; `prior` measures what each alternative costs in quality.
"""

from builder.distill.local import LocalConfig, train_local
from builder.distill.loop import BatchSource, LoopConfig
from builder.distill.paths import PathConfig, PathSampler, train_paths
from builder.distill.prior import measure_prior

__all__ = [
    "BatchSource",
    "LocalConfig",
    "LoopConfig",
    "PathConfig",
    "PathSampler",
    "measure_prior",
    "train_local",
    "train_paths",
]
