"""Trains both stages of a small supernet; the process that `test_training` kills, and the ranks of `test_ranks`.

    python -m tests.builder.train_child FOLDER

writes FOLDER/local.pt, FOLDER/paths.pt and, at the end, FOLDER/loss.json. One batch holds a NaN, so the run goes back
once in each stage. A line is printed for each batch, and the names of the threads that are left at the end.
"""

import json
import math
import sys
from pathlib import Path

import torch

from builder.distill import LocalConfig, LoopConfig, PathConfig, train_local, train_paths
from builder.elastify import elastify
from builder.runlog import RunLog
from builder.training import Compute, joined_ranks, keeper
from tests.builder.nets import BottleneckNet, images, made

STEPS, BATCH = 12, 16
BROKEN = (1, 9)
"""Epoch and number of the batch with a NaN."""


def source_of(ranks, broken):
    share = BATCH // ranks.world

    def source(epoch, first):
        for number in range(first, STEPS):
            x = images(BATCH, seed=100 + STEPS * epoch + number)
            if broken and (epoch, number) == BROKEN:
                x[0, 0, 0, 0] = float("nan")
            print(f"batch {epoch} {number}", flush=True)
            mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
            yield x[mine], (torch.arange(BATCH) % 5)[mine]

    return source


def train(folder, *, whole):
    """Both stages in this process, or as one of the ranks that torchrun started; `whole`: without the broken batch."""
    threads, kept = torch.get_num_threads(), (keeper.CHECKPOINT_EVERY_S, keeper.SAVING_SHARE, keeper.SNAPSHOT_EVERY)
    torch.set_num_threads(1)
    keeper.CHECKPOINT_EVERY_S, keeper.SAVING_SHARE, keeper.SNAPSHOT_EVERY = 0.0, math.inf, 2
    try:
        with joined_ranks() as ranks, RunLog() as log:
            losses = stages(folder, source_of(ranks, broken=not whole), Compute(ranks=ranks), log)
            if ranks.first:
                (folder / "loss.json").write_text(json.dumps(losses))
    finally:
        torch.set_num_threads(threads)
        keeper.CHECKPOINT_EVERY_S, keeper.SAVING_SHARE, keeper.SNAPSHOT_EVERY = kept


def stages(folder, source, compute, log):
    supernet = elastify(made(BottleneckNet), images(32))
    compute.place_module(supernet)
    pace = LoopConfig(epochs=2, steps_per_epoch=STEPS, learning_rate=2e-3, seed=3)
    local = train_local(supernet, LocalConfig(pace), source, folder / "local.pt", log, compute=compute)
    paths = train_paths(supernet, PathConfig(pace), source, folder / "paths.pt", log, compute=compute)
    return {"local": local, "paths": paths}


if __name__ == "__main__":
    train(Path(sys.argv[1]), whole="--whole" in sys.argv)
    print("threads:", *sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")), flush=True)
