"""The numbers that give each network its shape. Without torch, so that catalogue and inspection need not import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TIME_CHANNELS = 256
"""Channels of the sinusoids that stand for a time or a guidance, in every model."""

ATTENTION_ROWS = 512
"""Queries of a head that attend at a time, where attention goes by rows."""

STRIP_VALUES = 2**22
"""Values of a strip of rows in the autoencoder: few enough for a processor's cache, enough for all of its cores."""


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the rectified-flow transformer; the defaults are FLUX.2 [dev]'s."""

    in_channels: int = 128
    context_in_dim: int = 15360
    hidden_size: int = 6144
    num_heads: int = 48
    depth: int = 8
    depth_single_blocks: int = 48
    axes_dim: tuple[int, ...] = (32, 32, 32, 32)
    theta: int = 2000
    mlp_ratio: float = 3.0
    guidance_embed: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one attention head, which the rotary axes share out among them."""
        return sum(self.axes_dim)

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layer after its gate."""
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder; the defaults are the published one's. `channels` go from full to lowest resolution."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_channels: tuple[int, ...] | None = None
    layers_per_block: int = 2
    latent_channels: int = 32
    norm_groups: int = 32
    batch_norm_eps: float = 1e-4

    @property
    def token_channels(self) -> int:
        """Channels of the patchified latent: every 2x2 patch of the latent becomes one token."""
        return self.latent_channels * 4

    @property
    def token_size(self) -> int:
        """Side of the square of pixels that one token stands for (16 for every published model)."""
        return 2 ** len(self.channels)


@dataclass(frozen=True)
class LanguageModelConfig:
    """Shape of the decoder-only language model: Mistral 3's text part or Qwen3 (`qk_norm`).

    paired_rotation: whether the weights are for turning neighbouring channels of queries and keys together, instead of
    those half a head apart.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    qk_norm: bool
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    paired_rotation: bool = False


@dataclass(frozen=True)
class VisionConfig:
    """Shape of what turns pictures into features for the language model; the defaults are Mistral Small 3.2's.

    image_size: the longest side of a picture, in pixels. merge_size: so many patches a side become one token.
    picture_token: the id of the tokens in whose place features stand. text_size, norm_eps: the language model's.
    """

    text_size: int = 5120
    norm_eps: float = 1e-5
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 1540
    patch_size: int = 14
    rope_theta: float = 1e4
    activation: Literal["silu", "gelu"] = "silu"
    merge_size: int = 2
    projector_bias: bool = False
    picture_token: int = 10

    @property
    def head_dim(self) -> int:
        """Width of one attention head, whose pairs of channels turn by rows and by columns, half of them each."""
        return self.hidden_size // self.num_heads

    @property
    def token_size(self) -> int:
        """Side of the square of pixels that one token stands for."""
        return self.patch_size * self.merge_size


def strip_rows(channels: int, width: int) -> int:
    """Rows of a strip of so many channels and columns: an even number. It depends on the picture's shape alone."""
    return max(2, STRIP_VALUES // (channels * width) // 2 * 2)
