"""How the language model sees: Mistral 3's vision tower (Pixtral) and the projector to the width of its embeddings.

A transformer over the patches of one picture, of any shape, with rotary positions of two axes; then squares of
neighbouring patches are merged into one token each. Parameter names are Hugging Face's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.nn.attention import Rotation, attention, rotate_halves, rotation
from headrace.nn.config import VisionConfig
from headrace.nn.language_model import RMSNorm
from headrace.nn.linear import Linear

# The tower's own, whatever the configuration says of the language model's (transformers, modeling_pixtral.py).
TOWER_EPS = 1e-5


class PatchAttention(nn.Module):
    """Attention among all patches of a picture."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, spin: Rotation) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(attention(rotate_halves(q, spin), rotate_halves(k, spin), v).transpose(1, 2).flatten(2))


class PatchMLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = F.silu if config.activation == "silu" else F.gelu
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class PatchLayer(nn.Module):
    """Attention and feed-forward layer, each normed before and added after."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, TOWER_EPS)
        self.attention = PatchAttention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, TOWER_EPS)
        self.feed_forward = PatchMLP(config)

    def forward(self, x: Tensor, spin: Rotation) -> Tensor:
        x = x + self.attention(self.attention_norm(x), spin)
        return x + self.feed_forward(self.ffn_norm(x))


class PatchTransformer(nn.Module):
    """The tower's layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PatchLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, spin: Rotation) -> Tensor:
        for layer in self.layers:
            x = layer(x, spin)
        return x


class VisionTower(nn.Module):
    """A picture to the states of its patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_conv = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.ln_pre = RMSNorm(config.hidden_size, TOWER_EPS)
        self.transformer = PatchTransformer(config)

    def forward(self, picture: Tensor) -> Tensor:
        """(3, H, W), both sides multiples of the patch size -> (1, rows, columns, hidden_size)."""
        patches = self.patch_conv(picture.unsqueeze(0))
        rows, columns = patches.shape[2:]
        states = self.transformer(self.ln_pre(patches.flatten(2).transpose(1, 2)), self._positions(rows, columns))
        return states.view(1, rows, columns, -1)

    def _positions(self, rows: int, columns: int) -> Rotation:
        """Rows turn the first half of the pairs by every other frequency, columns the second half by those between."""
        device = self.patch_conv.weight.device
        places = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        by_row, by_column = (
            rotation(places[:, axis, None], (self.config.head_dim,), self.config.rope_theta) for axis in (0, 1)
        )
        return Rotation(
            torch.cat([by_row.cos[:, 0::2], by_column.cos[:, 1::2]], dim=-1),
            torch.cat([by_row.sin[:, 0::2], by_column.sin[:, 1::2]], dim=-1),
        )


class PatchMerger(nn.Module):
    """Squares of patches to one token each."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merge_size = config.merge_size
        self.merging_layer = Linear(config.hidden_size * config.merge_size**2, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """(1, rows, columns, hidden_size) -> (rows * columns / merge_size^2, hidden_size)."""
        side = self.merge_size
        _, rows, columns, width = states.shape
        squares = states.view(rows // side, side, columns // side, side, width)
        return self.merging_layer(squares.permute(0, 2, 4, 1, 3).flatten(2).flatten(0, 1))


class Projector(nn.Module):
    """The tower's states to features as wide as the language model's embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.patch_merger = PatchMerger(config)
        self.linear_1 = nn.Linear(config.hidden_size, config.text_size, bias=config.projector_bias)
        self.linear_2 = nn.Linear(config.text_size, config.text_size, bias=config.projector_bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(self.patch_merger(self.norm(states)))))


class Vision(nn.Module):
    """Tower and projector: a picture to what the language model sees of it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config)
        self.multi_modal_projector = Projector(config)

    def forward(self, picture: Tensor) -> Tensor:
        """(3, H, W), both sides multiples of `config.token_size` -> (tokens, text_size), row by row."""
        return self.multi_modal_projector(self.vision_tower(picture))
