"""From stored rows to the values they stand for, in every format of `headrace.quant.formats`.

Everything is plain tensor arithmetic, so that any device can do it, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from headrace.quant.codecs import decode_fp8, decode_int8
from headrace.quant.formats import (
    MXFP8_BLOCK,
    NVFP4_BLOCK,
    TILE_BLOCKS,
    TILE_ROWS,
    Format,
    Fp8,
    Gguf,
    Int8,
    Mxfp8,
    Nf4,
    Nvfp4,
    tiled_blocks,
)
from headrace.quant.gguf import decode_blocks

DTYPES: Mapping[str, torch.dtype] = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F32": torch.float32,
}

# Magnitudes of e2m1 by their codes; the fourth bit is the sign (OCP Microscaling Formats 1.0).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_BIAS = 127


def part_rows(form: Format, parts: Mapping[str, Tensor], width: int, first: int, count: int) -> dict[str, Tensor]:
    """The part of flat tensors that `count` rows from row `first` on own.

    Both are multiples of `form.together`, but for the count of the last rows.
    """
    return {
        part.name: parts[part.name]
        if part.whole
        else parts[part.name][part.count(first, width) : part.count(first + count, width)]
        for part in form.parts()
    }


def decode(form: Format, parts: Mapping[str, Tensor], out: Tensor) -> None:
    """Write rows into `out` (N, K), float32 or bfloat16. parts: what these rows own, flat, as `part_rows` gives it."""
    rows, width = out.shape
    match form:
        case Fp8(scales=scales, codes=codes):
            scale = parts["weight_scale"] if scales == "row" else parts["weight_scale"].view(())
            if codes == "F8_E4M3":
                decode_fp8(parts["weight"].view(rows, width), scale, out)
            else:
                # e5m2 is the upper half of float16, whose conversion is fast everywhere.
                wide = parts["weight"].view(torch.uint8).to(torch.int16).bitwise_left_shift_(8).view(torch.float16)
                out.copy_(wide.view(rows, width).float().mul_(scale[:, None] if scale.ndim else scale))
        case Int8(scales=scales):
            scale = parts["weight_scale"] if scales == "row" else parts["weight_scale"].view(())
            out.copy_(decode_int8(parts["weight"].view(rows, width), scale, form))
        case Nvfp4():
            _decode_nvfp4(form, parts, out)
        case Mxfp8():
            exponents = untiled(parts["weight_scale"], rows, width // MXFP8_BLOCK).float() - E8M0_BIAS
            values = torch.empty(rows, width, device=out.device)
            decode_fp8(parts["weight"].view(rows, width), values.new_ones(()), values)
            blocks = values.view(rows, -1, MXFP8_BLOCK)
            out.copy_(blocks.mul_(torch.exp2(exponents)[..., None]).view(rows, width))
        case Nf4():
            _decode_nf4(form, parts, out)
        case Gguf(type=kind):
            out.copy_(decode_blocks(kind, parts["weight"]).view(rows, width))
        case _:
            raise TypeError(f"{form} is not one format")


def untiled(tiles: Tensor, rows: int, blocks: int) -> Tensor:
    """Scales in cuBLAS's tiles of 128 rows by 4 -> (rows, blocks). The tiles may hold more rows and blocks.

    In a tile, 32 runs of 16 scales each have four rows 32 apart, one after another.
    """
    across = tiled_blocks(blocks) // TILE_BLOCKS
    parted = tiles.view(-1, across, 32, TILE_ROWS // 32, TILE_BLOCKS)
    return parted.permute(0, 3, 2, 1, 4).reshape(-1, across * TILE_BLOCKS)[:rows, :blocks]


def tiled(scales: Tensor) -> Tensor:
    """(rows, blocks) -> the same in cuBLAS's tiles, flat, with zeros where the tiles hold more: undoes `untiled`."""
    rows, blocks = scales.shape
    down = -(-rows // TILE_ROWS)
    padded = scales.new_zeros(down * TILE_ROWS, tiled_blocks(blocks))
    padded[:rows, :blocks] = scales
    parted = padded.view(down, TILE_ROWS // 32, 32, -1, TILE_BLOCKS)
    return parted.permute(0, 3, 2, 1, 4).reshape(-1)


def _decode_nvfp4(form: Nvfp4, parts: Mapping[str, Tensor], out: Tensor) -> None:
    rows, width = out.shape
    blocks = width // NVFP4_BLOCK
    codes = parts["weight_scale"].view(torch.uint8)
    codes = untiled(codes, rows, blocks) if form.dialect == "comfy" else codes.view(rows, blocks)
    scales = torch.empty(rows, blocks, device=out.device)
    decode_fp8(codes.contiguous().view(torch.float8_e4m3fn), scales.new_ones(()), scales)
    scales *= parts["weight_scale_2"].view(())
    table = _pairs_of((*E2M1, *(-value for value in E2M1)), form.dialect == "comfy", out.device)
    values = _looked_up(parts["weight"], table).view(rows, blocks, NVFP4_BLOCK).mul_(scales[..., None])
    values = values.view(rows, width)
    out.copy_(values.mul_(parts["pre_quant_scale"]) if form.smoothed else values)


def _decode_nf4(form: Nf4, parts: Mapping[str, Tensor], out: Tensor) -> None:
    largest = parts["weight.absmax"]
    if form.nested is not None:
        groups = parts["weight.nested_absmax"].repeat_interleave(form.nested)[: len(largest)]
        largest = parts["weight.nested_quant_map"][largest.int()].mul_(groups).add_(form.offset)
    codes = parts["weight"]
    level = parts["weight.quant_map"]
    values = torch.stack([level[(codes >> 4).int()], level[(codes & 15).int()]], dim=-1).view(-1)
    missing = -len(values) % form.block
    padded = torch.nn.functional.pad(values, (0, missing)) if missing else values
    scaled = padded.view(-1, form.block).mul_(largest[:, None]).view(-1)
    out.copy_(scaled[: out.numel()].view(out.shape))


def _looked_up(codes: Tensor, table: Tensor) -> Tensor:
    """Bytes (n,) -> the pairs (n, 2) that a table (256, 2) has for them."""
    return torch.nn.functional.embedding(codes.int(), table)


@cache
def _pairs_of(values: tuple[float, ...], high_first: bool, device: torch.device) -> Tensor:
    """(256, 2): the two of 16 values whose codes make up each byte."""
    with torch.inference_mode(False):
        level = torch.tensor(values, device=device)
        high, low = level.repeat_interleave(16), level.repeat(16)
        return torch.stack([high, low] if high_first else [low, high], dim=1)
