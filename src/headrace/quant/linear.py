"""Linear layers with fewer bits a weight, which take the place of `headrace.nn.linear.Linear` in a finished network.

Their state is plain buffers, the stored tensors of their format, in whatever memory somebody puts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

from headrace.quant.codecs import (
    decode_fp8,
    decode_int8,
    encode_fp8,
    encode_int8,
    fp8_scales,
    int8_scales,
    rotate,
    rotate_unscaled,
)
from headrace.quant.decode import DTYPES, decode, part_rows
from headrace.quant.formats import FP8, INT8, Format, Fp8, Int8, Split, rotation_size

# Weights decoded at a time: enough rows for a product at full rate, few enough to stay in the cache until it. A number
# of rows that is no multiple of the kernels' own tile costs a tenth of the product's time, and more where rows are few.
SLAB_BYTES = 8 * 2**20
TILE_ROWS = 64
# Weights decoded at a time into a slab, by way of a few float32 copies that should stay in the cache.
DECODED = 2**18
# Tokens rotated and quantised at a time, and tokens and output channels multiplied at a time: few enough for what lies
# between two operations to stay in the cache, enough for the kernel not to spend its time packing weights.
QUANTISED_TOKENS = 128
TOKENS, COLUMNS = 1536, 1024
# The GPU kernels' multiples of rows and columns, and the least number of tokens of the int8 one.
GPU_MULTIPLE = 16
GPU_INT8_TOKENS = 32
FP8_CAPABILITY = (8, 9)


class Fp8Linear(nn.Module):
    """Weights in e4m3 with a scale for each row or for all.

    GPUs that multiply e4m3 do so, with activations quantised token by token; elsewhere the weights are decoded, a few
    rows at a time, for a product in the activations' precision.
    """

    def __init__(self, in_features: int, out_features: int, form: Fp8 = FP8) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format = in_features, out_features, form
        self.weight: Tensor
        self.weight_scale: Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn))
        shape = () if form.scales == "tensor" else (out_features,)
        self.register_buffer("weight_scale", torch.empty(shape, dtype=torch.float32))

    def encode(self, first: int, values: Tensor) -> None:
        """Store float32 rows (n, in_features) from row `first` on; only where every row has its scale."""
        scales = fp8_scales(values)
        self.weight_scale[first : first + len(values)] = scales
        self.weight[first : first + len(values)] = encode_fp8(values, scales)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, in_features) -> (B, …, out_features)."""
        multiply = self.scaled_product if self._multiplies(x.device) else self._decoded_product
        return multiply(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def scaled_product(self, tokens: Tensor) -> Tensor:
        """(M, in_features) -> (M, out_features) by the device's own product of e4m3 with e4m3."""
        scales = fp8_scales(tokens)
        out = F.scaled_mm(
            encode_fp8(tokens, scales),
            self.weight.t(),
            scale_a=scales[:, None],
            scale_recipe_a=ScalingType.RowWise,
            scale_b=self.weight_scale.expand(self.out_features)[None].contiguous(),
            scale_recipe_b=ScalingType.RowWise,
            output_dtype=torch.bfloat16,
        )
        return out.to(tokens.dtype)

    def _multiplies(self, device: torch.device) -> bool:
        return multiplies_fp8(device) and not (self.in_features % GPU_MULTIPLE or self.out_features % GPU_MULTIPLE)

    def _decoded_product(self, tokens: Tensor) -> Tensor:
        def decode_rows(first: int, slab: Tensor) -> None:
            scales = self.weight_scale
            decode_fp8(
                self.weight[first : first + len(slab)], scales[first:][: len(slab)] if scales.ndim else scales, slab
            )

        return decoded_product(tokens, self.out_features, decode_rows)


class Int8Linear(nn.Module):
    """Rotated weights in int8 with a scale for each row; activations are rotated and quantised token by token.

    The sums are whole numbers, exact in any order. One kernel reads the weights as they lie in the file, streamed or
    resident: on CPUs it runs within a few percent of the rate of one that has them packed.
    """

    def __init__(self, in_features: int, out_features: int, form: Int8 = INT8) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format = in_features, out_features, form
        self.rotation = rotation_size(in_features, form)
        self.weight: Tensor
        self.weight_scale: Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))

    def encode(self, first: int, values: Tensor) -> None:
        """Store float32 rows (n, in_features), not yet rotated, from row `first` on."""
        rotated = rotate(values, self.format)
        scales = int8_scales(rotated)
        self.weight_scale[first : first + len(values)] = scales
        self.weight[first : first + len(values)] = encode_int8(rotated, scales)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, in_features) -> (B, …, out_features)."""
        tokens = x.reshape(-1, self.in_features)
        if x.device.type == "cpu":
            out = self._cpu_product(tokens)
        elif x.device.type == "cuda" and not (self.in_features % 8 or self.out_features % 8):
            out = self._gpu_product(tokens)
        else:
            out = F.linear(tokens, self._decoded(x.dtype))
        return out.view(*x.shape[:-1], self.out_features)

    def _cpu_product(self, tokens: Tensor) -> Tensor:
        quantised = [self._quantised(part) for part in torch.split(tokens, QUANTISED_TOKENS)]
        codes, scales = (torch.cat(parts) for parts in zip(*quantised, strict=True))
        out = tokens.new_empty(len(tokens), self.out_features)
        for columns, rows in product(_slices(self.out_features, COLUMNS), _slices(len(tokens), TOKENS)):
            sums = torch._int_mm(codes[rows], self.weight[columns].t())
            out[rows, columns] = _scaled(sums, self.weight_scale[columns], scales[rows])
        return out

    def _gpu_product(self, tokens: Tensor) -> Tensor:
        codes, scales = self._quantised(tokens)
        padded = F.pad(codes, (0, 0, 0, max(0, GPU_INT8_TOKENS - len(codes))))
        sums = torch._int_mm(padded, self.weight.t())[: len(codes)]
        return _scaled(sums, self.weight_scale, scales).to(tokens.dtype)

    def _quantised(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(M, in_features) -> codes of the rotated tokens, and their scales (M,)."""
        rotated = rotate_unscaled(tokens, self.format)
        scales = int8_scales(rotated)
        return encode_int8(rotated, scales), scales * self.rotation**-0.5

    def _decoded(self, dtype: torch.dtype) -> Tensor:
        return decode_int8(self.weight, self.weight_scale, self.format).to(dtype)


class DecodedLinear(nn.Module):
    """Weights in any format, decoded a few rows at a time for a product in the activations' precision.

    Its buffers are the format's parts, flat, in the order of `parts`.
    """

    def __init__(self, in_features: int, out_features: int, form: Format) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format = in_features, out_features, form
        for part in form.parts():
            count = part.count(out_features, in_features)
            self.register_buffer(buffer_name(part.name), torch.empty(count, dtype=DTYPES[part.dtype]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, in_features) -> (B, …, out_features)."""
        parts = {part.name: self.get_buffer(buffer_name(part.name)) for part in self.format.parts()}

        together = self.format.together(self.in_features)
        step = max(1, DECODED // self.in_features // together) * together

        def decode_rows(first: int, slab: Tensor) -> None:
            for start in range(0, len(slab), step):
                some = slab[start : start + step]
                decode(self.format, part_rows(self.format, parts, self.in_features, first + start, len(some)), some)

        tokens = x.reshape(-1, self.in_features)
        out = decoded_product(tokens, self.out_features, decode_rows, together)
        return out.view(*x.shape[:-1], self.out_features)


class SplitLinear(nn.Module):
    """A linear layer whose rows are several layers, each in a format of its own."""

    def __init__(self, pieces: list[nn.Module], form: Split) -> None:
        super().__init__()
        self.format = form
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, in_features) -> (B, …, out_features)."""
        return torch.cat([piece(x) for piece in self.pieces], dim=-1)


QuantisedLinear = Fp8Linear | Int8Linear | DecodedLinear


def quantised_linear(in_features: int, out_features: int, form: Format) -> QuantisedLinear:
    """The layer that multiplies with weights in this format, which is not a `Split`."""
    match form:
        case Fp8(codes="F8_E4M3"):
            return Fp8Linear(in_features, out_features, form)
        case Int8(scales="row", rotation="sylvester" | "regular"):
            return Int8Linear(in_features, out_features, form)
        case _:
            return DecodedLinear(in_features, out_features, form)


def decoded_product(
    tokens: Tensor, out_features: int, decode_rows: Callable[[int, Tensor], None], together: int = 1
) -> Tensor:
    """(M, K) -> (M, out_features), with weights that exist a few rows at a time.

    decode_rows: writes the rows from a given one on into a slab (n, K); the first is a multiple of `together`.
    """
    width = tokens.shape[1]
    out = tokens.new_empty(len(tokens), out_features)
    tile = math.lcm(TILE_ROWS, together)
    rows = max(1, SLAB_BYTES // (width * tokens.itemsize) // tile) * tile
    slab = tokens.new_empty(min(rows, out_features), width)
    for first in range(0, out_features, rows):
        decoded = slab[: min(rows, out_features - first)]
        decode_rows(first, decoded)
        torch.mm(tokens, decoded.t(), out=out[:, first : first + rows])
    return out


def buffer_name(part: str) -> str:
    """What a part is called as a buffer, whose name may hold no full stop."""
    return part.replace(".", "_")


def _slices(count: int, step: int) -> list[slice]:
    return [slice(first, first + step) for first in range(0, count, step)]


def _scaled(sums: Tensor, column_scales: Tensor, row_scales: Tensor) -> Tensor:
    return sums.float().mul_(column_scales).mul_(row_scales[:, None])


@cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 by itself: NVIDIA's from compute capability 8.9 (Ada) on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
