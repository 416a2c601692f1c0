"""Eight-bit codes of weights and activations, and back; `headrace.quant.decode` reads all other formats.

Every scale is the largest magnitude of a row divided by the largest code, so that nothing is clipped. Rows are the last
dimension: a weight's output channels, an activation's tokens.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from headrace.quant.formats import INT8, Int8, rotation_size

FP8_MAX = 448.0
INT8_MAX = 127.0
# e4m3 has its exponent biased by 7; read in the exponent field of bfloat16 or float32, which is biased by 127, a value
# comes out 2**120 too small.
EXPONENT_SHIFT = 2.0**120


def fp8_scales(values: Tensor) -> Tensor:
    """(…, K) -> (…): float32 scales that bring each row into e4m3's range; 1 for a row of zeros.

    They are rounded up to bfloat16, so that decoding in bfloat16 rounds once.
    """
    scales = values.abs().amax(dim=-1).float() / FP8_MAX
    rounded = scales.bfloat16().float()
    up = torch.nextafter(rounded.bfloat16(), torch.tensor(torch.inf, dtype=torch.bfloat16, device=values.device))
    scales = torch.where(rounded < scales, up.float(), rounded)
    return torch.where(scales > 0, scales, 1.0)


def encode_fp8(values: Tensor, scales: Tensor) -> Tensor:
    """(…, K) with scales (…) or () -> e4m3 codes, rounded to nearest even, of `values / scales`."""
    scaled = values.float() / scales[..., None]
    return scaled.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def decode_fp8(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """Write `codes * scales` into `out`: codes (N, K) e4m3 but not NaN, scales (N,) or (), out bfloat16 or float32.

    In bfloat16 the scales are rounded first, which for those of `fp8_scales` changes nothing. On a CPU, whose own
    conversion is scalar, sign, exponent and mantissa are shifted into the place they have in the wider format: exact,
    subnormal numbers included.
    """
    scales = scales[:, None].to(out.dtype) if scales.ndim else scales
    if codes.device.type != "cpu":
        out.copy_(codes).mul_(scales)
        return
    narrow = out.dtype == torch.bfloat16
    bits = out.view(torch.int16 if narrow else torch.int32)
    bits.copy_(codes.view(torch.int8))
    bits.bitwise_left_shift_(4 if narrow else 20)
    bits.bitwise_and_(-0x7810 if narrow else -0x78100000)  # keeps sign, four bits of exponent, three of mantissa
    out.mul_(scales * EXPONENT_SHIFT)


def int8_scales(values: Tensor) -> Tensor:
    """(…, K) -> (…): float32 scales that bring each row into -127..127; 1 for a row of zeros."""
    scales = values.abs().amax(dim=-1).float() / INT8_MAX
    return torch.where(scales > 0, scales, 1.0)


def encode_int8(values: Tensor, scales: Tensor) -> Tensor:
    """(…, K) with scales (…) -> `values / scales`, rounded to nearest even."""
    return (values.float() / scales[..., None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)


def decode_int8(codes: Tensor, scales: Tensor, form: Int8 = INT8) -> Tensor:
    """(N, K) codes of rotated rows with scales (N,) or () -> float32 rows, rotated back."""
    return rotate(codes.float() * (scales[:, None] if scales.ndim else scales), form)


def rotate(values: Tensor, form: Int8 = INT8) -> Tensor:
    """(…, K) -> the same shape: every run of `rotation_size(K)` values times an orthonormal Hadamard matrix.

    Spreads outlier channels over their run, so that eight bits suffice (Ashkboos et al. 2024, QuaRot,
    arXiv:2404.00456). The matrix is symmetric: rotating twice gives the values back, and the product of a rotated
    activation with a rotated weight is that of the two.
    """
    size = rotation_size(values.shape[-1], form)
    return values if size == 1 else rotate_unscaled(values, form) * size**-0.5


def rotate_unscaled(values: Tensor, form: Int8 = INT8) -> Tensor:
    """`rotate` times the square root of the rotation's size: entries of the matrix are 1 and -1, exact in bfloat16."""
    size = rotation_size(values.shape[-1], form)
    if size == 1:
        return values
    matrix = hadamard(size, values.dtype, values.device, form.rotation == "regular")
    return (values.reshape(-1, size) @ matrix).view(values.shape)


@cache
def hadamard(size: int, dtype: torch.dtype, device: torch.device, regular: bool = False) -> Tensor:
    """(size, size) of 1 and -1 with orthogonal rows, symmetric, as a Kronecker power.

    By Sylvester's doubling; size is a power of two. With `regular`, of the one of order four whose rows all have the
    same sum (ConvRot, arXiv:2512.03673); size is a power of four.
    """
    seed = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]] if regular else [[1, 1], [1, -1]]
    with torch.inference_mode(False):
        factor = torch.tensor(seed, dtype=dtype, device=device)
        matrix = torch.ones(1, 1, dtype=dtype, device=device)
        while matrix.shape[0] < size:
            matrix = torch.kron(factor, matrix)
        return matrix
