"""The language model that reads the prompt: Mistral 3's text part or Qwen3, by configuration.

A decoder-only transformer with grouped-query attention, rotary positions and, for Qwen3, normed queries and keys. As a
text encoder only the layers up to the last hidden state used are built; the layers above, the final norm and the head
are there for generating text. Parameter names are Hugging Face's without the prefix (`layers.0.self_attn.q_proj`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.nn.attention import Rotation, attention, rotate, rotate_halves, rotation
from headrace.nn.config import LanguageModelConfig
from headrace.nn.linear import Linear


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class KeyValueCache:
    """Keys and values of the tokens read so far, one pair a layer; room for `capacity` of them is taken once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        """How many tokens have been read by all layers."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values (B, kv_heads, S, head_dim) to those of `layer`, and return all of them."""
        if layer not in self._layers:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._layers[layer] = key.new_empty(shape), value.new_empty(shape)
        start, stop = self.length, self.length + key.shape[2]
        keys, values = self._layers[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = key, value
        return keys[:, :, :stop], values[:, :, :stop]


class PictureFeatures(NamedTuple):
    """What stands in the place of some tokens' embeddings: values (N, hidden_size) for the N places of (B, L)."""

    values: Tensor
    places: Tensor


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.turn = rotate if config.paired_rotation else rotate_halves
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, kv_width)
        self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_proj = Linear(width, config.hidden_size)
        if config.qk_norm:
            self.q_norm: nn.Module = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm: nn.Module = RMSNorm(config.head_dim, config.rms_norm_eps)
        else:
            self.q_norm, self.k_norm = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, spin: Rotation, mask: Tensor, cache: KeyValueCache | None, layer: int) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.turn(self.q_norm(q), spin), self.turn(self.k_norm(k), spin)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        return self.o_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Gated SiLU feed-forward layer."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward layer, each normed before and added after."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, spin: Rotation, mask: Tensor, cache: KeyValueCache | None = None, layer: int = 0
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), spin, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class TokenEmbedding(nn.Embedding):
    """An embedding that draws no values on the meta device, where that makes torch import 80 MB for nothing."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class LanguageModel(nn.Module):
    """The language model, or its first `layers` layers; `norm` and `head` are built only where they are used."""

    def __init__(
        self, config: LanguageModelConfig, *, layers: int | None = None, norm: bool = False, head: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        built = config.num_layers if layers is None else layers
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(built))
        if norm:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if head and not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def hidden_states(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        outputs: tuple[int, ...],
        layers: Iterable[nn.Module] | None = None,
        pictures: PictureFeatures | None = None,
    ) -> Tensor:
        """The states after the layers named in `outputs`, side by side.

        token_ids, attention_mask: (B, L) integers; tokens whose mask is 0 are not looked at, but have states too.
        Index 0 is the embedding, k the state after layer k; the state after the model's very last layer has the final
        norm, as in transformers. layers: what to run, in order (default: this network's own).
        Returns (B, L, len(outputs) * hidden_size).
        """
        x = self._embeddings(token_ids, pictures)
        spin, mask = self._positions(attention_mask, 0)
        wanted = {0: x} if 0 in outputs else {}
        for index, layer in enumerate(self.layers if layers is None else layers, start=1):
            x = layer(x, spin, mask)
            if index in outputs:
                wanted[index] = self.norm(x) if index == self.config.num_layers else x
            if index == max(outputs):
                break
        return torch.cat([wanted[index] for index in outputs], dim=-1)

    def forward(
        self,
        token_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layers: Iterable[nn.Module] | None = None,
        pictures: PictureFeatures | None = None,
        last: bool = False,
    ) -> Tensor:
        """Logits of the next token after each of `token_ids` (B, L), or after the last one: (B, L or 1, vocab_size).

        attention_mask: (B, tokens in the cache + L), default all ones. cache: read and extended, so that a text can be
        continued token by token. layers: as in `hidden_states`. Needs all layers, the norm and the head.
        """
        past = cache.length if cache is not None else 0
        if attention_mask is None:
            attention_mask = token_ids.new_ones(token_ids.shape[0], past + token_ids.shape[1])
        x = self._embeddings(token_ids, pictures)
        spin, mask = self._positions(attention_mask, past)
        for index, layer in enumerate(self.layers if layers is None else layers):
            x = layer(x, spin, mask, cache, index)
        if cache is not None:
            cache.length += token_ids.shape[1]
        x = self.norm(x[:, -1:] if last else x)
        return F.linear(x, self.embed_tokens.weight) if self.config.tie_word_embeddings else self.lm_head(x)

    def _embeddings(self, token_ids: Tensor, pictures: PictureFeatures | None) -> Tensor:
        x = self.embed_tokens(token_ids)
        if pictures is None:
            return x
        return x.masked_scatter(pictures.places.unsqueeze(-1), pictures.values.to(x.dtype))

    def _positions(self, attention_mask: Tensor, past: int) -> tuple[Rotation, Tensor]:
        """Rotation of the new tokens, and who of them (rows) may look at whom of all (columns)."""
        index = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        spin = rotation(index[past:, None], (self.config.head_dim,), self.config.rope_theta)
        distance = index[past:, None] - index[None, :]
        seen = distance >= 0
        if self.config.sliding_window is not None:
            seen = seen & (distance < self.config.sliding_window)
        return spin, seen & attention_mask.bool()[:, None, None, :]
