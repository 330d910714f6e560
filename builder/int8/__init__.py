"""Copies of trained units that compute in 8 bits.

`modules` holds the layers; `layers` finds what becomes one, `ranges` where values are cut; `quantise` copies one piece
and `supernet` all.
"""

from builder.int8.modules import Coding, DecodedConv, DecodedLinear, Dequantize, Quantize, QuantizedConv
from builder.int8.quantise import Quantised, quantised
from builder.int8.supernet import with_int8

__all__ = [
    "Coding",
    "DecodedConv",
    "DecodedLinear",
    "Dequantize",
    "Quantised",
    "Quantize",
    "QuantizedConv",
    "quantised",
    "with_int8",
]
