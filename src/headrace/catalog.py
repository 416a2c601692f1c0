"""The published FLUX.2 models, and sprite: their shapes, files, defaults and licences. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig

Variant = Literal["dev", "klein", "klein-base", "klein-kv"]
Template = Literal["mistral", "qwen"]

DEFAULT_SIZE = (1024, 1024)
REFERENCE_LIMIT = 10


FLUX2_AUTOENCODER = AutoencoderConfig()
# The small decoder (black-forest-labs/FLUX.2-small-decoder) goes with the encoder of the published autoencoder.
AUTOENCODERS = {
    "FLUX.2 autoencoder": FLUX2_AUTOENCODER,
    "FLUX.2 autoencoder with the small decoder": AutoencoderConfig(decoder_channels=(96, 192, 384, 384)),
}


@dataclass(frozen=True)
class TextSettings:
    """How a prompt becomes the transformer's context: `length` tokens, each the hidden states after `layers`, joined.

    Layer 0 is the embedding. pad_side: where a short prompt is filled up to `length`.
    """

    template: Template
    layers: tuple[int, ...]
    pad_side: Literal["left", "right"]
    length: int = 512


@dataclass(frozen=True)
class TextEncoder:
    """A language model as the published models use it."""

    name: str
    config: LanguageModelConfig
    settings: TextSettings


@dataclass(frozen=True)
class Licence:
    name: str
    commercial_use: bool

    def sentence(self, model: str, page: str) -> str:
        """What somebody who downloads `model` has to know."""
        allowed = "commercial use is allowed" if self.commercial_use else "commercial use is not allowed"
        return f"{model} is under the {self.name}: {allowed} (see {page})."


@dataclass(frozen=True)
class PublishedModel:
    """One published model.

    single_file: the name of the file that holds the transformer alone, in Black Forest Labs' layout.
    guidance: embedded for dev, classifier-free for klein-base, and without effect for the distilled ones.
    """

    name: str
    variant: Variant
    transformer: TransformerConfig
    text_encoder: TextEncoder
    licence: Licence
    hub_id: str
    single_file: str
    steps: int
    guidance: float
    autoencoder: AutoencoderConfig = FLUX2_AUTOENCODER
    default_size: tuple[int, int] = DEFAULT_SIZE
    reference_limit: int = REFERENCE_LIMIT


MISTRAL = TextSettings("mistral", layers=(10, 20, 30), pad_side="left")
QWEN = TextSettings("qwen", layers=(9, 18, 27), pad_side="right")

MISTRAL_SMALL = TextEncoder(
    "Mistral-Small-3.2-24B",
    LanguageModelConfig(
        vocab_size=131072,
        hidden_size=5120,
        intermediate_size=32768,
        num_layers=40,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e9,
        rms_norm_eps=1e-5,
        qk_norm=False,
    ),
    MISTRAL,
)
QWEN3_8B = TextEncoder(
    "Qwen3-8B",
    LanguageModelConfig(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        qk_norm=True,
    ),
    QWEN,
)
QWEN3_4B = TextEncoder(
    "Qwen3-4B",
    LanguageModelConfig(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    QWEN,
)
TEXT_ENCODERS = (MISTRAL_SMALL, QWEN3_8B, QWEN3_4B)

DEV_TRANSFORMER = TransformerConfig()
KLEIN_9B_TRANSFORMER = TransformerConfig(
    context_in_dim=12288, hidden_size=4096, num_heads=32, depth=8, depth_single_blocks=24, guidance_embed=False
)
KLEIN_4B_TRANSFORMER = TransformerConfig(
    context_in_dim=7680, hidden_size=3072, num_heads=24, depth=5, depth_single_blocks=20, guidance_embed=False
)

APACHE = Licence("Apache License 2.0", commercial_use=True)
FLUX_NON_COMMERCIAL = Licence("FLUX Non-Commercial License", commercial_use=False)
# By the licence's name as a headrace.json or a model card writes it, too.
COMMERCIAL_USE = {licence.name: licence.commercial_use for licence in (APACHE, FLUX_NON_COMMERCIAL)} | {
    "Apache-2.0": True,
    "apache-2.0": True,
}

# Steps and guidance by which each kind was published.
DEFAULTS: dict[Variant, tuple[int, float]] = {
    "dev": (50, 4.0),
    "klein": (4, 1.0),
    "klein-base": (50, 4.0),
    "klein-kv": (4, 1.0),
}


def _published(
    name: str,
    variant: Variant,
    transformer: TransformerConfig,
    text_encoder: TextEncoder,
    licence: Licence,
    repository: str,
    single_file: str,
) -> PublishedModel:
    steps, guidance = DEFAULTS[variant]
    hub_id = f"black-forest-labs/{repository}"
    return PublishedModel(
        name, variant, transformer, text_encoder, licence, hub_id, f"{single_file}.safetensors", steps, guidance
    )


PUBLISHED = (
    _published("dev", "dev", DEV_TRANSFORMER, MISTRAL_SMALL, FLUX_NON_COMMERCIAL, "FLUX.2-dev", "flux2-dev"),
    _published("klein-4b", "klein", KLEIN_4B_TRANSFORMER, QWEN3_4B, APACHE, "FLUX.2-klein-4B", "flux-2-klein-4b"),
    _published(
        "klein-base-4b",
        "klein-base",
        KLEIN_4B_TRANSFORMER,
        QWEN3_4B,
        APACHE,
        "FLUX.2-klein-base-4B",
        "flux-2-klein-base-4b",
    ),
    _published(
        "klein-9b",
        "klein",
        KLEIN_9B_TRANSFORMER,
        QWEN3_8B,
        FLUX_NON_COMMERCIAL,
        "FLUX.2-klein-9B",
        "flux-2-klein-9b",
    ),
    _published(
        "klein-base-9b",
        "klein-base",
        KLEIN_9B_TRANSFORMER,
        QWEN3_8B,
        FLUX_NON_COMMERCIAL,
        "FLUX.2-klein-base-9B",
        "flux-2-klein-base-9b",
    ),
    _published(
        "klein-9b-kv",
        "klein-kv",
        KLEIN_9B_TRANSFORMER,
        QWEN3_8B,
        FLUX_NON_COMMERCIAL,
        "FLUX.2-klein-9b-kv",
        "flux-2-klein-9b-kv",
    ),
)

# Models whose weights are inside the package; their shapes and settings are in the folder itself.
BUNDLED = ("sprite",)
