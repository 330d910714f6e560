"""Layers that compute in 8 bits, as ONNX's operators of the same names do, bit by bit.

Values between them are codes: whole numbers from 0 to 255 in float32 tensors, each standing for
``(code - zero) * scale``. Weights are whole numbers from -63 to 63: with 7 bits no processor's 16-bit sums of two
products overflow, so all of them give the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_runtime.errors import UsageError

__all__ = ["Coding", "Decoded", "DecodedConv", "DecodedLinear", "Dequantize", "Quantize", "QuantizedConv"]

LARGEST_CODE, LARGEST_WEIGHT = 255, 63
_SCALE_DIGITS = 12
_EXACT_BELOW = 2**24
"""Whole numbers up to here are exact in float32, and so are their sums in any order."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How codes stand for values: ``(code - zero) * scale``. Raises `UsageError` when built invalid."""

    scale: float
    """Above 0; a float32."""

    zero: int
    """The code of 0, from 0 to 255."""

    def __post_init__(self) -> None:
        if not (0 < self.scale < math.inf and 0 <= self.zero <= LARGEST_CODE):
            raise UsageError(f"a coding has a finite scale above 0 and a zero from 0 to 255, got {self}")

    @classmethod
    def of_range(cls, low: float, high: float) -> Coding:
        """One that spans a range of values; 0 is always in it.

        Its scale is rounded up to 12 binary digits, so that a value that two units know gets one coding in both, though
        its sums were made in another order.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        digits, power = math.frexp(max((high - low) / LARGEST_CODE, 1e-12))
        scale = math.ldexp(math.ceil(digits * 2**_SCALE_DIGITS) / 2**_SCALE_DIGITS, power)
        return cls(scale, min(LARGEST_CODE, max(0, round(-low / scale))))

    def codes(self, values: Tensor) -> Tensor:
        """Values, rounded half to even; what lies outside the range becomes its end."""
        return (torch.round(values / self.scale) + self.zero).clamp(0, LARGEST_CODE)

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        return (codes - self.zero) * self.scale


class _Coding(nn.Module):
    """A layer with one coding, which its state dict tells apart from others."""

    def __init__(self, coding: Coding) -> None:
        super().__init__()
        self.coding = coding
        _remember(self, "coding", coding)


class Quantize(_Coding):
    """float32 values to codes: ONNX's QuantizeLinear to uint8."""

    def forward(self, x: Tensor) -> Tensor:
        """Codes of any shape."""
        return self.coding.codes(x)


class Dequantize(_Coding):
    """Codes to float32 values: ONNX's DequantizeLinear."""

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape."""
        return self.coding.values(x)


class QuantizedConv(nn.Module):
    """Codes [N, C, H, W] to codes: ONNX's QLinearConv, an activation that only cuts off included in its range.

    Args:
        weight: int8 [O, C / groups, kernel, kernel], from -63 to 63.
        weight_scale: float32 [O], above 0.
        bias: int32 [O], in units of the input's scale times the weights'.
        taken: coding of the input.
        given: coding of the output.
        pads: zeros at the top, left, bottom and right.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor,
        *,
        taken: Coding,
        given: Coding,
        stride: tuple[int, int],
        pads: tuple[int, int, int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)
        self.taken, self.given = taken, given
        _remember(self, "taken", taken)
        _remember(self, "given", given)
        self.stride, self.pads, self.dilation, self.groups = stride, pads, dilation, groups
        largest = LARGEST_CODE * weight.to(torch.int64).abs().sum((1, 2, 3)) + bias.to(torch.int64).abs()
        self._sums_in = torch.float32 if int(largest.max()) < _EXACT_BELOW else torch.float64

    def forward(self, x: Tensor) -> Tensor:
        """Codes [N, O, H', W']."""
        top, left, bottom, right = self.pads
        x = functional.pad(x - self.taken.zero, (left, right, top, bottom))
        kind = self._sums_in
        sums = functional.conv2d(
            x.to(kind), self.weight.to(kind), self.bias.to(kind), self.stride, 0, self.dilation, self.groups
        )
        factor = self.taken.scale * self.weight_scale / self.given.scale
        return (torch.round(sums.float() * factor.view(-1, 1, 1)) + self.given.zero).clamp(0, LARGEST_CODE)


def _remember(module: nn.Module, name: str, coding: Coding) -> None:
    """Make a coding a part of a module's state, so that a digest of the state depends on it."""
    module.register_buffer(f"{name}_scale", torch.tensor(coding.scale))
    module.register_buffer(f"{name}_zero", torch.tensor(coding.zero))


class Decoded(nn.Module):
    """A layer that computes in float32 and whose weights are stored in 8 bits.

    Args:
        weight: int8 [O, ...], from -63 to 63.
        weight_scale: float32 [O], above 0.
        bias: float32 [O].
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)

    def decoded(self) -> Tensor:
        """What the weights stand for, float32."""
        return self.weight * self.weight_scale.view(-1, *(1,) * (self.weight.ndim - 1))


class DecodedConv(Decoded):
    """A convolution; `like` is the one whose stride, padding, dilation and groups it has."""

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor, like: nn.Conv2d) -> None:
        super().__init__(weight, weight_scale, bias)
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, O, H', W'] of [N, C, H, W]."""
        return functional.conv2d(x, self.decoded(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class DecodedLinear(Decoded):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, O] of [N, C]."""
        return functional.linear(x, self.decoded(), self.bias)
