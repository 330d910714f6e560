"""Train the alternatives of a supernet from its own frozen original.

`local` teaches every alternative alone, from the teacher's inputs; `paths` trains whole subnets drawn evenly over cost
by `sampler`; `losses` says what they learn; `prior` measures what each alternative costs in quality. The loop under
both stages is `builder.training`.
"""

from builder.distill.local import LocalConfig, train_local
from builder.distill.paths import PathConfig, train_paths
from builder.distill.prior import measure_prior
from builder.distill.sampler import PathSampler
from builder.training import BatchSource, LoopConfig

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
