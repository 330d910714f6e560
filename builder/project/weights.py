"""Read a weights file and put it into a network; every way in which they do not fit is one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from builder.checkpoint import why_unreadable
from builder.project.safetensors import read_safetensors
from edge_runtime.errors import InputError, StateError

__all__ = ["load_weights", "read_weights"]

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict beside other things."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put in front of every name."""

SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` file, or from what `torch.save` wrote, read with `weights_only=True`.

    Raises `InputError` when it cannot be read or holds something else.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise InputError(f"the weights {str(path)!r} do not exist", hint="give a .safetensors file or a state dict")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file makes the unpickler raise nearly anything
        raise InputError(
            f"{path} cannot be read as a state dict: {why_unreadable(path, error)}",
            hint="save model.state_dict() alone, not the model; a whole pickled model could run code and is not loaded",
        ) from error
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} holds no state dict", hint="save model.state_dict() alone")
    return {str(name): value for name, value in found.items()}


def _bare(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the prefixes that all names have, as long as they are not the network's own names."""
    for prefix in PREFIXES:
        if weights and not weights.keys() & own.keys() and all(name.startswith(prefix) for name in weights):
            return _bare({name.removeprefix(prefix): value for name, value in weights.items()}, own)
    return weights


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put `weights` into `network`: all of them, and nothing else.

    Raises `InputError` where names are missing or unknown, or shapes differ. (A BN's count of batches may be missing:
    inference does not use it.)
    """
    own = network.state_dict()
    weights = _bare(weights, own)
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{source} lacks {_some(missing)}",
            hint=f"it has {_some(list(weights))}; the factory has to build the very network that was trained",
        )
    if unknown := [name for name in weights if name not in own]:
        raise InputError(
            f"{source} holds {_some(unknown)}, which the network does not have",
            hint="the factory has to build the very network that was trained",
        )
    differing = [name for name, value in weights.items() if value.shape != own[name].shape]
    if differing:
        name = differing[0]
        raise InputError(
            f"{source}: {name} has the shape {list(weights[name].shape)}, in the network it is {list(own[name].shape)}",
            hint="check the number of classes and the widths that the factory builds",
        )
    if broken := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise InputError(f"{source}: {_some(broken)} holds NaN or infinity", hint="take an earlier checkpoint")
    try:
        network.load_state_dict(own | dict(weights))
    except RuntimeError as error:
        raise StateError(f"{source} does not fit the network: {str(error).partition(chr(10))[0]}") from error


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
