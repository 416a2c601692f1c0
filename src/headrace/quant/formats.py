"""Which layers are kept in eight bits, in which form, and how many bytes that takes. Without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Bits = Literal["fp8", "int8"]
EIGHT_BITS: tuple[Bits, ...] = ("fp8", "int8")

ROTATION_LIMIT = 256

# The linear layers of the blocks: 95 to 97 % of the published transformers. Modulation, embedders and the final layer
# are 3 to 5 % and would cost 7 dB, so they stay as they are (benchmarks/quality.md).
BLOCK_LINEAR = re.compile(r"(?P<layer>(?:double_blocks|single_blocks|layers)\.\d+\..+)\.weight")


@dataclass(frozen=True)
class Format:
    """Eight bits a weight and a float32 scale for each row (output channel), or one for the whole tensor.

    "fp8" is e4m3 without infinities (Micikevicius et al. 2022, arXiv:2209.05433); "int8" is symmetric, of weights
    rotated along their rows (`headrace.quant.codecs.rotate`).
    """

    bits: Bits
    scales: Literal["row", "tensor"] = "row"


FP8 = Format("fp8")
FP8_TENSOR = Format("fp8", "tensor")
INT8 = Format("int8")


def block_linears(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The layers among tensors of these names (ours) and shapes that are kept in eight bits where eight are wanted."""
    matches = (BLOCK_LINEAR.fullmatch(name) for name, shape in shapes.items() if len(shape) == 2)
    return [match["layer"] for match in matches if match is not None]


def choose_formats(bits: Bits | None, linears: Iterable[str], stored: Mapping[str, Format]) -> dict[str, Format]:
    """Layer -> its format, for those that are to be kept in eight bits (None: no layer is).

    linears: the layers that may be. stored: what the file holds; where it has any of them in the bits that are wanted,
    its maker's choice of layers stands.
    """
    if bits is None:
        return {}
    layers = tuple(linears)
    as_stored = {layer: stored[layer] for layer in layers if layer in stored and stored[layer].bits == bits}
    return as_stored or dict.fromkeys(layers, Format(bits))


def rotation_size(width: int) -> int:
    """The order of the Hadamard matrices that rotate rows of `width`: the largest power of two dividing it, up to 256.

    256 holds the error of a few outlier channels nearly as well as larger ones and costs 3 % of a product.
    """
    return math.gcd(width, ROTATION_LIMIT)
