"""The model files that a workflow names, one by one, and the checkpoint that those used together make.

ComfyUI's files hold one network each: a transformer in Black Forest Labs' layout, an autoencoder, or a language model
without its configuration, which is worked out from the shapes of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from headrace import catalog
from headrace.catalog import TextSettings, Variant
from headrace.checkpoints.components import (
    Component,
    autoencoder_component,
    find_network,
    language_model_component,
    transformer_component,
)
from headrace.checkpoints.configs import MAX_BLOCKS, count_numbered
from headrace.checkpoints.headers import Shape
from headrace.checkpoints.open import Checkpoint
from headrace.checkpoints.text_encoders import TEKKEN, gguf_config
from headrace.checkpoints.weights import read_weights
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig

# Which published language model a file is like; what its tensors do not say is taken from there.
_MISTRAL, _QWEN = catalog.MISTRAL_SMALL, catalog.QWEN3_4B


@dataclass(frozen=True)
class Model:
    """A diffusion model as a graph passes it on (MODEL).

    precision: "auto", or "fp8" where the loader asks for it. shift: of the schedule that BasicScheduler and KSampler
    take times from. caches_references: their keys and values are computed in the first step and kept (FluxKVCache).
    """

    file: Path
    precision: str = "auto"
    shift: float = 2.02
    caches_references: bool = False


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder as a graph passes it on (CLIP)."""

    file: Path


@dataclass(frozen=True)
class Vae:
    """An autoencoder as a graph passes it on (VAE)."""

    file: Path


@cache
def open_transformer(file: Path) -> tuple[Component, TransformerConfig]:
    """Raises RequestError unless the file holds a whole FLUX.2 transformer."""
    return transformer_component(read_weights(file))


@cache
def open_autoencoder(file: Path) -> tuple[Component, AutoencoderConfig]:
    """Raises RequestError unless the file holds FLUX.2's autoencoder, whole."""
    return autoencoder_component(read_weights(file))


@dataclass(frozen=True)
class OpenTextEncoder:
    """A text encoder's file, checked, with what it is used with."""

    component: Component
    config: LanguageModelConfig
    settings: TextSettings
    tokenizer_file: Path


@cache
def open_text_encoder(file: Path) -> OpenTextEncoder:
    """Raises RequestError unless the file holds a Mistral or Qwen3 text encoder, and its tokenizer is there."""
    weights = read_weights(file)
    stored = find_network(weights, "text encoder")
    described = stored.found.layout == "llama.cpp"
    config = gguf_config(file)[0] if described else infer_language_model_config(file, stored.shapes)
    settings = _QWEN.settings if config.qk_norm else _MISTRAL.settings
    component = language_model_component(weights, config, max(settings.layers))
    inside = described or TEKKEN in weights.tensors
    return OpenTextEncoder(component, config, settings, _tokenizer_file(file, inside))


def infer_language_model_config(source: Path, stored: Mapping[str, Shape]) -> LanguageModelConfig:
    """Works out a text encoder's configuration from the shapes of its tensors, by Hugging Face's names without prefix.

    Mistral's head dimension, and what no tensor shows, are those of the published model. Without a final norm the file
    was cut off above the layers that FLUX.2 reads, so that there is at least one layer more in the model.
    """

    def size(name: str, axis: int) -> int:
        shape = stored.get(name, ())
        if len(shape) <= axis:
            raise RequestError(f"{source} is no text encoder of FLUX.2: it has no {name} of the right shape.")
        return shape[axis]

    layers = count_numbered(stored, "layers.")
    if not 0 < layers <= MAX_BLOCKS:
        raise RequestError(f"{source} is no text encoder of FLUX.2: it has {layers} layers.")
    qk_norm = "layers.0.self_attn.q_norm.weight" in stored
    like = (_QWEN if qk_norm else _MISTRAL).config
    head_dim = size("layers.0.self_attn.q_norm.weight", 0) if qk_norm else like.head_dim
    queries, keys = size("layers.0.self_attn.q_proj.weight", 0), size("layers.0.self_attn.k_proj.weight", 0)
    if queries % head_dim or keys % head_dim or not keys or queries % keys:
        raise RequestError(f"{source} is no text encoder of FLUX.2: its attention has {queries} rows for {keys}.")
    return replace(
        like,
        vocab_size=size("embed_tokens.weight", 0),
        hidden_size=size("embed_tokens.weight", 1),
        intermediate_size=size("layers.0.mlp.gate_proj.weight", 0),
        num_layers=layers if "norm.weight" in stored else layers + 1,
        num_heads=queries // head_dim,
        num_kv_heads=keys // head_dim,
        head_dim=head_dim,
        tie_word_embeddings="lm_head.weight" not in stored,
    )


def _tokenizer_file(file: Path, inside: bool) -> Path:
    """The tokenizer of a text encoder's file: in a folder of the file's name, beside it, or in the file itself."""
    places = (file.with_suffix("") / "tokenizer.json", file.with_name("tokenizer.json"))
    for place in places:
        if place.is_file():
            return place
    if inside:
        return file
    raise RequestError(
        f"{file} comes without its tokenizer: put the tokenizer.json of the model it is from into {places[0].parent}."
    )


def assemble(model: Model, encoder: TextEncoder, vae: Vae) -> Checkpoint:
    """The three files as one checkpoint. Raises RequestError where they do not fit together."""
    transformer, transformer_config = open_transformer(model.file)
    autoencoder, autoencoder_config = open_autoencoder(vae.file)
    text = open_text_encoder(encoder.file)
    width = len(text.settings.layers) * text.config.hidden_size
    if width != transformer_config.context_in_dim:
        raise RequestError(
            f"{encoder.file.name} gives embeddings {width} wide, but {model.file.name} reads "
            f"{transformer_config.context_in_dim}: the workflow pairs a model with another's text encoder."
        )
    if autoencoder_config.token_channels != transformer_config.in_channels:
        raise RequestError(
            f"{vae.file.name} makes latents of {autoencoder_config.token_channels} channels, but {model.file.name} "
            f"reads {transformer_config.in_channels}: the workflow pairs a model with another's autoencoder."
        )
    variant: Variant = "dev" if transformer_config.guidance_embed else "klein"
    steps, guidance = catalog.DEFAULTS[variant]
    return Checkpoint(
        name=model.file.stem,
        source=str(model.file),
        variant=variant,
        transformer_config=transformer_config,
        autoencoder_config=autoencoder_config,
        language_model_config=text.config,
        text=text.settings,
        tokenizer_file=text.tokenizer_file,
        steps=steps,
        guidance=guidance,
        default_size=catalog.DEFAULT_SIZE,
        reference_limit=catalog.REFERENCE_LIMIT,
        licence=None,
        notes=(),
        transformer=transformer,
        autoencoder=autoencoder,
        language_model=text.component,
    )
