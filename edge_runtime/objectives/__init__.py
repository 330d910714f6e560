"""What "better" means: budgets, measurements, scores and the frontier between them. Measures nothing, reads no clock.

Latencies are milliseconds as floats where they are compared and whole nanoseconds where they are raw samples; memory is
MiB in a budget, as people write it, and bytes in a record. This room is pure Python, so that it is cheap to import.
"""

from edge_runtime.objectives.budget import MIB, Budget
from edge_runtime.objectives.measurement import Measurement, pooled_tail
from edge_runtime.objectives.percentiles import RUNS_NEEDED, percentile, upper_rank
from edge_runtime.objectives.score import Frontier, Score

__all__ = [
    "MIB",
    "RUNS_NEEDED",
    "Budget",
    "Frontier",
    "Measurement",
    "Score",
    "percentile",
    "pooled_tail",
    "upper_rank",
]
