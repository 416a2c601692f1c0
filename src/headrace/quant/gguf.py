"""ggml's blocks of weights to float32 (llama.cpp's ggml-common.h has the structures, ggml-quants.c the formulas).

A block of the K types has 256 weights in sub-blocks of 16 or 32, which have small scales of their own; `d` and `dmin`
are float16 for the whole block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from headrace.quant.formats import GGUF_BLOCKS


def decode_blocks(kind: str, data: Tensor) -> Tensor:
    """Bytes (n,) of whole blocks -> (blocks, weights of one) in float32."""
    _, size = GGUF_BLOCKS[kind]
    return _DECODERS[kind](data.view(-1, size))


def _half(data: Tensor) -> Tensor:
    """Bytes (n, 2) -> float16 numbers (n, 1) in float32."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: Tensor) -> Tensor:
    """(…, n) -> (…, 2, n): the low halves of the bytes, then the high ones."""
    return torch.stack([data & 15, data >> 4], dim=-2)


def _crumbs(data: Tensor) -> Tensor:
    """(…, n) -> (…, 4, n): two bits of the bytes at a time, the lowest first."""
    return torch.stack([(data >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-2)


def _bits(data: Tensor) -> Tensor:
    """(…, n) -> (…, 8, n): the bits of the bytes, the lowest first."""
    return torch.stack([(data >> shift) & 1 for shift in range(8)], dim=-2)


def _fifth_bits(data: Tensor) -> Tensor:
    """Four bytes, one bit a weight -> (n, 32) of 0 or 16."""
    return _bits(data).transpose(-1, -2).reshape(-1, 32) << 4


def _q4_0(data: Tensor) -> Tensor:
    return (_nibbles(data[:, 2:]).view(-1, 32).float() - 8).mul_(_half(data[:, :2]))


def _q4_1(data: Tensor) -> Tensor:
    return _nibbles(data[:, 4:]).view(-1, 32).float().mul_(_half(data[:, :2])).add_(_half(data[:, 2:4]))


def _q5_0(data: Tensor) -> Tensor:
    codes = _nibbles(data[:, 6:]).view(-1, 32) | _fifth_bits(data[:, 2:6])
    return (codes.float() - 16).mul_(_half(data[:, :2]))


def _q5_1(data: Tensor) -> Tensor:
    codes = _nibbles(data[:, 8:]).view(-1, 32) | _fifth_bits(data[:, 4:8])
    return codes.float().mul_(_half(data[:, :2])).add_(_half(data[:, 2:4]))


def _q8_0(data: Tensor) -> Tensor:
    return data[:, 2:].contiguous().view(torch.int8).float().mul_(_half(data[:, :2]))


def _q2_k(data: Tensor) -> Tensor:
    scales, codes = data[:, :16], data[:, 16:80]
    step = (scales & 15).float().mul_(_half(data[:, 80:82]))
    least = (scales >> 4).float().mul_(_half(data[:, 82:84]))
    values = _crumbs(codes.view(-1, 2, 32)).reshape(-1, 16, 16).float()
    return values.mul_(step[..., None]).sub_(least[..., None]).view(-1, 256)


def _q3_k(data: Tensor) -> Tensor:
    high, codes, packed = data[:, :32], data[:, 32:96], data[:, 96:108]
    low = _nibbles(packed[:, :8]).view(-1, 16)
    upper = _crumbs(packed[:, 8:]).view(-1, 16)
    scales = (low | (upper << 4)).float() - 32
    # A third bit that is not set takes four away.
    values = _crumbs(codes.view(-1, 2, 32)).reshape(-1, 256).float() - 4 * (1 - _bits(high).view(-1, 256).float())
    step = scales.mul_(_half(data[:, 108:110]))
    return values.view(-1, 16, 16).mul_(step[..., None]).view(-1, 256)


def _scales_and_minima(data: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes -> eight scales and eight minima of six bits each, (n, 8)."""
    first, second, upper = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = torch.cat([first & 63, (upper & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (upper >> 4) | ((second >> 2) & 48)], dim=1)
    return scales, minima


def _q4_k(data: Tensor) -> Tensor:
    return _scaled_and_shifted(data, _nibbles(data[:, 16:].view(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(data: Tensor) -> Tensor:
    codes = _nibbles(data[:, 48:].view(-1, 4, 32)).reshape(-1, 8, 32)
    return _scaled_and_shifted(data, codes | (_bits(data[:, 16:48]) << 4))


def _scaled_and_shifted(data: Tensor, codes: Tensor) -> Tensor:
    """Codes (n, 8, 32) by the scales and minima at the beginning of a block."""
    scales, minima = _scales_and_minima(data[:, 4:16])
    step = scales.float().mul_(_half(data[:, :2]))
    least = minima.float().mul_(_half(data[:, 2:4]))
    return codes.float().mul_(step[..., None]).sub_(least[..., None]).view(-1, 256)


def _q6_k(data: Tensor) -> Tensor:
    low = _nibbles(data[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    high = _crumbs(data[:, 128:192].view(-1, 2, 32)).view(-1, 8, 32)
    codes = (low | (high << 4)).float() - 32
    step = data[:, 192:208].contiguous().view(torch.int8).float().mul_(_half(data[:, 208:210]))
    return codes.view(-1, 16, 16).mul_(step[..., None]).view(-1, 256)


_DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
