"""The resumable loop: a step function, a batch source, a checkpoint.

Everything random in a step comes from torch's generators, whose state is in the checkpoint, and batches are a function
of epoch and number alone. So a run that was killed anywhere repeats at most a few dozen steps and ends with the same
bits as one that was not, also where the loss jumped (see `keeper`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from builder import checkpoint
from builder.errors import BuildError
from builder.runlog import Figure, Progress, RunLog
from builder.training.compute import Compute
from builder.training.config import Batch, BatchSource, LoopConfig
from builder.training.keeper import Keeper
from builder.training.precision import faster_precision
from builder.training.state import TrainingState
from edge_runtime.errors import StateError, UsageError

__all__ = ["Backward", "Step", "run_loop"]

MAX_JUMPS = 5
SLOWER = 0.5
"""The learning rate is multiplied with this after each jump."""

Backward = Callable[[Tensor], None]
"""Backpropagates one loss, scaled where the precision needs it."""


class Step(Protocol):
    """Forward and backward of one batch at a progress in [0, 1); gradients stay in the parameters; gives the loss."""

    def __call__(self, batch: Batch, progress: float, backward: Backward) -> float:
        """Take one step."""


EpochFigures = Callable[[], Mapping[str, Figure]]
"""Called at the end of each epoch with the weights in place that would be kept if training ended there."""


def run_loop(
    name: str,
    trained: nn.Module,
    belongs_to: str,
    config: LoopConfig,
    source: BatchSource,
    step: Step,
    saved: Path | None,
    log: RunLog,
    *,
    compute: Compute | None = None,
    epoch_figures: EpochFigures | None = None,
) -> float:
    """Train the parameters of `trained` that require gradients; gives the mean loss of the last epoch.

    Args:
        name: the stage, for the progress bar and the log.
        trained: holds everything that training changes (parameters and BN statistics); already on the device. At the
            end it holds the moving average.
        belongs_to: digest of the settings and the oracle (see `identity_of`); a checkpoint of another one is refused.
        config: length and pace.
        source: batches by epoch; of this rank's images where there are several.
        step: forward and backward of one batch.
        saved: checkpoint file; read when it exists, and kept at the end so that the stage is not run twice. None
            keeps nothing.
        log: where epochs and jumps are written.
        compute: device, precision and ranks; this CPU and float32 where it is not given.
        epoch_figures: further figures for the log of each epoch.

    Raises:
        StateError: the checkpoint is damaged, or of another oracle, supernet or other settings.
        UsageError: the source gives no batches.
        BuildError: the loss jumped too often.
    """
    compute = compute or Compute()
    keeper = Keeper(saved if compute.ranks.first else None, belongs_to)
    state = TrainingState(trained, config, compute.device)
    return _Loop(name, state, source, step, log, compute, keeper, epoch_figures).run()


class _Loop:
    def __init__(
        self,
        name: str,
        state: TrainingState,
        source: BatchSource,
        step: Step,
        log: RunLog,
        compute: Compute,
        keeper: Keeper,
        epoch_figures: EpochFigures | None,
    ) -> None:
        self.name, self.state, self.config, self.source, self.step = name, state, state.config, source, step
        self.log, self.compute, self.keeper, self.epoch_figures = log, compute, keeper, epoch_figures

    def run(self) -> float:
        """From the checkpoint, or the start, to the end."""
        state, keeper = self.state, self.keeper
        self._begin()
        keeper.begin(state)
        try:
            with self.log.progress(self.name, self.config.steps, done=state.done) as bar:
                while state.done < self.config.steps:
                    self._run_epoch(bar)
        except (KeyboardInterrupt, SystemExit):
            keeper.write_good()
            raise
        keeper.write(state)
        state.trained.load_state_dict(state.result())
        return state.history[-1]

    def _begin(self) -> None:
        """Take up the checkpoint, or the common start of all ranks."""
        compute, state, ranks = self.compute, self.state, self.compute.ranks
        torch.manual_seed(self.config.seed)
        if (kept := self._shared(self.keeper.read() if ranks.first else None)) is not None:
            try:
                state.put(kept)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise self.keeper.foreign(str(error).partition("\n")[0]) from error
            if compute.precision not in ("auto", state.precision):
                raise StateError(
                    f"the stage {self.name!r} was begun in {state.precision}, and {compute.precision} is asked for",
                    hint="leave the precision out (auto) to go on, or delete the checkpoint to train the stage again",
                )
            return
        precision = compute.settled()
        state.use(precision or "fp32")
        if ranks.world > 1:
            state.put(self._shared(state.take()))
        if precision is None:
            state.use(self._faster())
            self.keeper.write(state)

    def _shared(self, kept: dict[str, Any] | None) -> dict[str, Any] | None:
        """Rank 0's state on every rank; as bytes, so that tensors come to the CPU first, whichever device has them."""
        if self.compute.ranks.world == 1:
            return kept
        content = self.compute.ranks.share(None if kept is None else checkpoint.to_bytes(kept))
        return None if content is None else checkpoint.from_bytes(content)

    def _faster(self) -> str:
        before = self.state.take()
        batches = [self.compute.place(batch) for batch in islice(self.source(0, 0), 1)]
        if not batches:
            raise self._empty(0)
        backward = self.compute.backward(self.state.scaler)
        chosen = faster_precision(self.compute, lambda: self.step(batches[0], 0.0, backward), self.config.steps)
        self.state.put(before)
        chosen = self.compute.ranks.share(chosen)
        self.log.event(f"{self.name}.precision", {"precision": chosen})
        return chosen

    def _run_epoch(self, bar: Progress) -> None:
        """The rest of the current epoch, or of it up to a jump."""
        state, config = self.state, self.config
        epoch, first = divmod(state.done, config.steps_per_epoch)
        other_part = epoch + state.jumps * config.epochs
        before = state.done
        for batch in islice(self.source(other_part, first), config.steps_per_epoch - first):
            loss = self._train(self.compute.place(batch))
            if state.guard.jumped(loss):
                self._go_back(loss, bar)
                return
            state.losses.append(loss)
            state.done += 1
            state.follow()
            if state.done % config.steps_per_epoch == 0:
                self._close_epoch(epoch)
            self.keeper.follow(state)
            bar.advance(note=f"loss {loss:.4f}")
        if state.done == before:
            raise self._empty(epoch)

    def _train(self, batch: Batch) -> float:
        """One optimiser step; gives the loss, NaN where the gradients are not finite."""
        state, config, ranks = self.state, self.config, self.compute.ranks
        for group in state.optimizer.param_groups:
            group["lr"] = config.rate(state.done) * SLOWER**state.jumps
        state.optimizer.zero_grad(set_to_none=True)
        with self.compute.autocast(state.precision):
            loss = self.step(batch, state.done / config.steps, self.compute.backward(state.scaler))
        ranks.average_gradients(state.trained)
        ranks.average_statistics(state.trained)
        if all(p.grad is None for p in state.trained.parameters()):
            return ranks.mean(loss)  # every path that was drawn is the frozen original itself
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.trained.parameters(), config.clip_norm)
        if not state.scaler.is_enabled() and not torch.isfinite(norm):
            return float("nan")
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return ranks.mean(loss)

    def _close_epoch(self, epoch: int) -> None:
        state = self.state
        state.history.append(sum(state.losses) / len(state.losses))
        state.losses = []
        figures: dict[str, Figure] = {"epoch": epoch, "loss": state.history[-1], "jumps": state.jumps}
        if self.epoch_figures is not None:
            kept = state.take()
            state.trained.load_state_dict(state.result())
            figures |= self.epoch_figures()
            state.put(kept)
        self.log.event(f"{self.name}.epoch", figures)

    def _go_back(self, loss: float, bar: Progress) -> None:
        """Return to the good state, and go on from there with other batches and paths at a lower rate."""
        state, reached = self.state, self.state.done
        jumps = state.jumps + 1
        if jumps > MAX_JUMPS:
            raise BuildError(
                f"training diverges: in the stage {self.name!r} the loss jumped {jumps} times, last at step {reached}",
                hint="use a lower learning rate, and check the images for values that are not finite",
            )
        self.keeper.restore(state)
        state.jumps = jumps
        torch.manual_seed(int(torch.randint(2**62, ())) ^ jumps)
        self.keeper.begin(state)
        bar.advance(state.done - reached, f"the loss jumped to {loss:.3g}; back to step {state.done}")
        self.log.event(f"{self.name}.jump", {"step": reached, "loss": loss, "back_to": state.done, "jumps": jumps})

    def _empty(self, epoch: int) -> UsageError:
        return UsageError(f"the batch source gives nothing for epoch {epoch}", hint="give it more images")
