"""A work folder and what is in it: the oracle, its data, the supernet."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from builder import checkpoint
from builder.data import DataFolder, open_data
from builder.elastify import Supernet
from builder.errors import BuildError
from builder.export import BundleInfo
from builder.project.factory import make_network
from builder.project.settings import KIND, ProjectSettings
from builder.project.weights import load_weights, read_weights
from builder.recipes.common import (
    CHECK_IMAGES,
    FIT_IMAGES,
    Request,
    claim_work,
    finished,
    kept_prior,
    make_supernet,
    provenance,
    spread,
    weights_digest,
)
from builder.runlog import RunLog
from builder.training import Compute
from edge_runtime.errors import InputError, StateError, UsageError

__all__ = ["Project"]

ORACLE, ANSWERS, TRAINED = "oracle.pt", "answers.pt", "trained.pt"

ANSWERS_TOLERANCE = 1e-3
"""Relative to the largest logit: other threads or versions round otherwise, another network answers otherwise."""


class Project:
    """Everything of one work folder, loaded when it is needed.

    Args:
        settings: what the folder is for.
        work: the folder.
        log: where figures are written.
        begins: whether the folder is new; it becomes the project's by `claim`.
        weights: the weights file of a new project; None where the factory's network is trained already.
    """

    def __init__(
        self, settings: ProjectSettings, work: Path, log: RunLog, *, begins: bool = False, weights: Path | None = None
    ) -> None:
        self.settings, self.work, self.log, self._begins, self._weights = settings, work, log, begins, weights

    def claim(self) -> None:
        """Keep weights and settings in a new work folder, so that other commands can go on with it."""
        if self._begins:
            checkpoint.save(self.work / ORACLE, dict(self.oracle.state_dict()))
            checkpoint.save(self.work / ANSWERS, {"logits": self._answers(self.oracle)})
            claim_work(self.work, KIND, dataclasses.asdict(self.settings))

    @cached_property
    def oracle(self) -> nn.Module:
        """The developer's network with its weights, in eval mode.

        Raises `UsageError`, `InputError` or `BuildError` where it cannot be made or is no classifier of this input.
        """
        path = self.work / ORACLE
        network = make_network(self.settings.model)
        if not self._begins:
            try:
                kept = checkpoint.load(path)
            except StateError as error:  # its own hint would have the user delete what no command makes again
                raise StateError(error.message, hint="begin again in another --work folder") from error
            if kept is None:
                raise StateError(f"{path} is missing", hint="begin again in another --work folder")
            load_weights(network, kept, path)
        elif self._weights is not None:
            load_weights(network, read_weights(self._weights), self._weights)
        network.eval().requires_grad_(False)
        self._check(network)
        if not self._begins:
            self._check_answers(network)
        return network

    def _answers(self, network: nn.Module) -> Tensor:
        noise = torch.randn(2, *self.settings.input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits: Tensor = network(noise)
        return logits

    def _check_answers(self, network: nn.Module) -> None:
        """A factory that was changed may build a network that takes the weights all the same."""
        if (kept := checkpoint.load(self.work / ANSWERS)) is None:  # begun by an earlier version
            return
        wanted, found = kept["logits"], self._answers(network)
        if wanted.shape != found.shape or (wanted - found).abs().max() > ANSWERS_TOLERANCE * wanted.abs().max():
            raise StateError(
                f"{self.settings.model} answers otherwise than when {self.work} was begun",
                hint="undo the change in its code, or begin again in another --work folder",
            )

    def _check(self, network: nn.Module) -> None:
        size = "x".join(map(str, self.settings.input_size))
        try:
            with torch.no_grad():
                found = network(torch.zeros(2, *self.settings.input_size))
        except Exception as error:  # the user's own code
            said = str(error).partition("\n")[0]
            raise BuildError(
                f"{self.settings.model} cannot take images of {size}: {type(error).__name__}: {said}",
                hint="check --input-size",
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[0] != 2 or found.shape[1] < 2:
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UsageError(
                f"for two images {self.settings.model} gives {what}, not class logits [2, K]",
                hint="a bundle holds a classifier so far; other networks go through builder.elastify in Python",
            )

    @cached_property
    def class_count(self) -> int:
        """Width of the oracle's output."""
        with torch.no_grad():
            return int(self.oracle(torch.zeros(1, *self.settings.input_size)).shape[1])

    @cached_property
    def data(self) -> DataFolder:
        """The images, opened; `InputError` where their classes are not the network's."""
        settings = self.settings
        self._check_names(settings.classes)
        opened = open_data(
            Path(settings.data), settings.preprocessing(), class_names=settings.classes, seed=settings.seed
        )
        for images in (opened.train, opened.validation):
            if images.labels is not None and images.labels.max() >= self.class_count:
                raise InputError(
                    f"label {images.labels.max()} of the data is not a class of the network",
                    hint=f"the network has {self.class_count} classes, counted from 0",
                )
        return opened

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """One name for each logit."""
        names = self.settings.classes or self.data.class_names
        self._check_names(names)
        return tuple(names) or tuple(f"class{index}" for index in range(self.class_count))

    def _check_names(self, names: tuple[str, ...]) -> None:
        if names and len(names) != self.class_count:
            raise UsageError(
                f"there are {len(names)} class names for the {self.class_count} outputs of the network",
                hint="give all of them, one a line in the order of the outputs: --classes FILE",
            )

    @cached_property
    def supernet(self) -> Supernet:
        """The untrained supernet; the same every time."""
        return make_supernet(
            self.oracle, self.fit_images, self.settings.elastic_options(), self.settings.seed, self.log
        )

    @cached_property
    def held_out(self) -> Tensor:
        """Images that training does not see, as the network takes them."""
        return spread(self.data.validation, CHECK_IMAGES)

    @cached_property
    def unseen(self) -> Tensor:
        """As many images as `held_out`, and other ones where there are so many."""
        return spread(self.data.validation, CHECK_IMAGES, shifted=True)

    def read_held_out(self) -> None:
        """Read what is used after the training. Raises `InputError` for damaged images now, not hours later."""
        _ = self.held_out, self.unseen

    def bundle_info(self, name: str | None = None) -> BundleInfo:
        """What a bundle says beside its graph; it names no path of this machine."""
        settings = self.settings
        return BundleInfo(
            name=name or self.work.resolve().name,
            preprocessing=settings.preprocessing(),
            class_names=self.class_names,
            provenance=provenance(
                "nnf-build",
                oracle=f"{type(self.oracle).__name__} of {Path(settings.model).name}",
                data=f"{len(self.data.train)} images of {Path(settings.data).name}",
                request=Request(work=self.work, out=self.work, seed=settings.seed),
            ),
            figures={},
        )

    def keep_trained(self) -> None:
        """Write the trained alternatives, so that the verbs after training need no checkpoint of it."""
        checkpoint.save(self.work / TRAINED, dict(self.supernet.bodies.state_dict()))

    @property
    def trained_digest(self) -> str:
        """Which training is there now. Raises `StateError` where there is none."""
        return weights_digest(self._kept_weights())

    def trained(self) -> Supernet:
        """The trained supernet. Raises `StateError` where it has not been trained, or was another one."""
        kept = self._kept_weights()
        try:
            self.supernet.bodies.load_state_dict(kept)
        except RuntimeError as error:
            raise StateError(
                f"{self.work / TRAINED} is of another supernet",
                hint="this version offers other alternatives; train again in a new folder",
            ) from error
        return self.supernet.eval()

    def _kept_weights(self) -> dict[str, Tensor]:
        if (kept := checkpoint.load(self.work / TRAINED)) is None:
            raise StateError(
                f"there is no trained supernet in {self.work}", hint=f"train it: nnf-build train --work {self.work}"
            )
        return kept

    @cached_property
    def fit_images(self) -> Tensor:
        """Images that training sees, as the network takes them: what is made in closed form is fitted to them."""
        return spread(self.data.train, FIT_IMAGES)

    @cached_property
    def finished(self) -> Supernet:
        """The trained supernet with alternatives in 8 bits. Raises `StateError` where it has not been trained."""
        return finished(self.trained(), self.fit_images, self.settings.storage_ratio, self.log)

    def prior(self, supernet: Supernet, compute: Compute | None = None) -> tuple[tuple[float, ...], ...]:
        """What each alternative of a trained supernet costs in quality, on held-out images."""
        file = "prior.json" if supernet is self.supernet else "prior-int8.json"
        return kept_prior(supernet, self.held_out, self.work, self.log, compute=compute, file=file)
