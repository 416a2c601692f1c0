"""Values to the stored parts of a format, some rows at a time; the other way is `headrace.quant.decode`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from headrace.quant.codecs import FP8_MAX, encode_fp8, encode_int8, fp8_scales, int8_scales, rotate
from headrace.quant.decode import E2M1, tiled
from headrace.quant.formats import FP8_TENSOR, NVFP4_BLOCK, Format, Fp8, Int8, Nvfp4

# Halfway between the magnitudes of e2m1; a value on the line goes to the even code.
E2M1_BOUNDS = tuple((low + high) / 2 for low, high in pairwise(E2M1))


def tensor_scale(form: Format, largest: Tensor) -> Tensor | None:
    """The scale of a whole matrix by its largest magnitude (); None where the format has none."""
    if form == FP8_TENSOR:
        return fp8_scales(largest.view(1))
    if isinstance(form, Nvfp4):
        scale = largest.float() / (FP8_MAX * E2M1[-1])
        return torch.where(scale > 0, scale, 1.0)
    return None


def is_encoded(form: Format) -> bool:
    """Whether `encode` writes this format."""
    match form:
        case Fp8(codes="F8_E4M3") | Int8(scales="row") | Nvfp4(dialect="comfy", smoothed=False):
            return True
    return False


def encode(form: Format, values: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
    """The parts of float32 rows (n, K), flat. scale: of the whole matrix, from `tensor_scale`.

    Raises TypeError for a format that nothing here writes.
    """
    match form:
        case Fp8(codes="F8_E4M3"):
            scales = fp8_scales(values) if scale is None else scale
            codes = encode_fp8(values, scales if scales.ndim else scales.expand(len(values)))
            return {"weight": codes.view(-1), "weight_scale": scales.view(-1)}
        case Int8(scales="row"):
            rotated = rotate(values, form)
            scales = int8_scales(rotated)
            return {"weight": encode_int8(rotated, scales).view(-1), "weight_scale": scales}
        case Nvfp4(dialect="comfy", smoothed=False) if scale is not None:
            blocks = values.view(len(values), -1, NVFP4_BLOCK)
            scales = (blocks.abs().amax(dim=-1) / E2M1[-1] / scale).clamp_(max=FP8_MAX).to(torch.float8_e4m3fn)
            steps = (scales.float() * scale)[..., None]
            codes = _e2m1(torch.where(steps > 0, blocks / steps, 0.0)).view(-1, 2)
            tiles = tiled(scales.view(torch.uint8)).view(torch.float8_e4m3fn)
            return {
                "weight": (codes[:, 0] << 4) | codes[:, 1],
                "weight_scale": tiles,
                "weight_scale_2": scale.view(-1),
            }
    raise TypeError(f"{form} is not written")


def _e2m1(values: Tensor) -> Tensor:
    """Values to the nearest codes, of two alike the even one; what is larger than 6 becomes 6."""
    bounds = torch.tensor(E2M1_BOUNDS, device=values.device)
    below, upto = torch.bucketize(values.abs(), bounds), torch.bucketize(values.abs(), bounds, right=True)
    codes = torch.where(below % 2 == 0, below, upto)
    return (codes + 8 * (values < 0)).to(torch.uint8)
