"""Attention and rotary positions: what the transformer's blocks and the language model's layers have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.nn.config import ATTENTION_ROWS


class Rotation(NamedTuple):
    """Cosines and sines that turn pairs of channels by position, each (S, head_dim / 2) in float32."""

    cos: Tensor
    sin: Tensor

    def slice(self, start: int | None, stop: int | None) -> Rotation:
        """The rotation of the positions from `start` up to `stop`."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])


def rotation(positions: Tensor, axes_dim: tuple[int, ...], theta: float) -> Rotation:
    """Rotary angles of positions with one or more axes, each axis turning its own share of the channels.

    positions: (S, axes). Angles are taken in float64, where the device has it, as both references do (Su et al. 2021,
    extended to several axes as in the FLUX family).
    """
    precise = torch.float32 if positions.device.type == "mps" else torch.float64
    angles = []
    for axis, width in enumerate(axes_dim):
        exponents = torch.arange(0, width, 2, dtype=precise, device=positions.device) / width
        angles.append(positions[:, axis, None].to(precise) * theta**-exponents)
    turned = torch.cat(angles, dim=-1)
    return Rotation(turned.cos().float(), turned.sin().float())


def rotate(x: Tensor, spin: Rotation) -> Tensor:
    """Turn neighbouring channels (0, 1), (2, 3), … of (B, heads, S, head_dim) in float32 by their position's angles.

    As one product of complex numbers: half the time that four real ones and putting them together took.
    """
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(spin.cos, spin.sin)).flatten(-2)


def rotate_halves(x: Tensor, spin: Rotation) -> Tensor:
    """Turn channel i with channel i + head_dim / 2, the pairing of Hugging Face's language models."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * spin.cos - second * spin.sin, second * spin.cos + first * spin.sin], dim=-1)
    return turned.to(x.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over (B, heads, S, head_dim).

    mask: booleans broadcast to (B, heads, queries, keys), True where a query may look; a query that may look nowhere
    gets zeros. Fewer key/value heads than query heads are shared in order (grouped-query attention).
    """
    if mask is None and _runs_by_rows(query, key):
        return _attention_by_rows(query, key, value)
    if query.shape[2] == 1 and query.shape[1] != key.shape[1]:
        # The heads of one token that share keys are so many queries: a tenth of the time on a CPU.
        grouped = query.reshape(*key.shape[:2], -1, query.shape[3])
        return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(query.shape)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


def _runs_by_rows(query: Tensor, key: Tensor) -> bool:
    """Where torch's fused attention runs far below the rate of plain products: bf16 on a CPU, unless learning."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and key.shape[2] >= ATTENTION_ROWS
        and query.shape[1] == key.shape[1]
        and not torch.is_grad_enabled()
    )


def _attention_by_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Head by head, some queries at a time: product, softmax, product. The scores of one piece stay in the cache."""
    out = torch.empty_like(query)
    query = query * query.shape[-1] ** -0.5
    heads = (tensor.flatten(0, 1) for tensor in (query, key, value, out))
    for q, k, v, o in zip(*heads, strict=True):
        for rows, target in zip(q.split(ATTENTION_ROWS), o.split(ATTENTION_ROWS), strict=True):
            torch.mm(torch.softmax(rows @ k.t(), dim=-1), v, out=target)
    return out
