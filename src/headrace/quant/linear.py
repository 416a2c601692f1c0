"""Linear layers with eight bits a weight, which take the place of `headrace.nn.linear.Linear` in a finished network.

Their state is two plain buffers, `weight` and `weight_scale`, in whatever memory somebody puts them.
"""

from __future__ import annotations

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
from headrace.quant.formats import FP8, FP8_TENSOR, INT8, Format, rotation_size

# Weights decoded at a time: enough rows for a product at full rate, few enough to stay in the cache until it.
SLAB_BYTES = 8 * 2**20
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

    def __init__(self, in_features: int, out_features: int, form: Format = FP8) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format = in_features, out_features, form
        self.weight: Tensor
        self.weight_scale: Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn))
        shape = () if form == FP8_TENSOR else (out_features,)
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
        out = tokens.new_empty(len(tokens), self.out_features)
        rows = max(1, SLAB_BYTES // (self.in_features * tokens.itemsize))
        slab = tokens.new_empty(min(rows, self.out_features), self.in_features)
        for first in range(0, self.out_features, rows):
            codes = self.weight[first : first + rows]
            decoded = slab[: len(codes)]
            scales = self.weight_scale
            decode_fp8(codes, scales[first : first + rows] if scales.ndim else scales, decoded)
            torch.mm(tokens, decoded.t(), out=out[:, first : first + rows])
        return out


class Int8Linear(nn.Module):
    """Rotated weights in int8 with a scale for each row; activations are rotated and quantised token by token.

    The sums are whole numbers, exact in any order. One kernel reads the weights as they lie in the file, streamed or
    resident: on CPUs it runs within a few percent of the rate of one that has them packed.
    """

    format = INT8

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.rotation = rotation_size(in_features)
        self.weight: Tensor
        self.weight_scale: Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))

    def encode(self, first: int, values: Tensor) -> None:
        """Store float32 rows (n, in_features), not yet rotated, from row `first` on."""
        rotated = rotate(values)
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
        rotated = rotate_unscaled(tokens)
        scales = int8_scales(rotated)
        return encode_int8(rotated, scales), scales * self.rotation**-0.5

    def _decoded(self, dtype: torch.dtype) -> Tensor:
        return decode_int8(self.weight, self.weight_scale).to(dtype)


QuantisedLinear = Fp8Linear | Int8Linear


def _slices(count: int, step: int) -> list[slice]:
    return [slice(first, first + step) for first in range(0, count, step)]


def _scaled(sums: Tensor, column_scales: Tensor, row_scales: Tensor) -> Tensor:
    return sums.float().mul_(column_scales).mul_(row_scales[:, None])


@cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 by itself: NVIDIA's from compute capability 8.9 (Ada) on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
