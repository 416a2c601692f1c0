"""The model files that a workflow names, one by one, and the checkpoint that those used together make.

ComfyUI's files hold one network each: a transformer in Black Forest Labs' layout, an autoencoder, or a language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from headrace import catalog
from headrace.catalog import Variant
from headrace.checkpoints.components import (
    Component,
    autoencoder_component,
    language_model_component,
    transformer_component,
)
from headrace.checkpoints.lora_choice import ChosenLora, choose_loras
from headrace.checkpoints.open import Checkpoint
from headrace.checkpoints.text_encoders import TextEncoderFiles, text_encoder_in_file
from headrace.checkpoints.weights import read_weights
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, TransformerConfig


@dataclass(frozen=True)
class Model:
    """A diffusion model as a graph passes it on (MODEL).

    precision: "auto", or "fp8" where the loader asks for it. shift: of the schedule that BasicScheduler and KSampler
    take times from. caches_references: their keys and values are computed in the first step and kept (FluxKVCache).
    loras: files with their strengths, in the order in which they were added.
    """

    file: Path
    precision: str = "auto"
    shift: float = 2.02
    caches_references: bool = False
    loras: tuple[tuple[Path, float], ...] = ()

    @property
    def weights(self) -> Model:
        """The same model as its loader gives it: what has to be read once for all that a graph makes of it."""
        return Model(self.file, self.precision)


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
def open_loras(model: Model) -> tuple[ChosenLora, ...]:
    """The LoRAs beside a model's weights. Raises RequestError where one of them is none, or is not for this model."""
    _, config = open_transformer(model.file)
    return choose_loras(model.loras, config, model.file.stem)


@cache
def open_autoencoder(file: Path) -> tuple[Component, AutoencoderConfig]:
    """Raises RequestError unless the file holds FLUX.2's autoencoder, whole."""
    return autoencoder_component(read_weights(file))


@cache
def open_text_encoder(file: Path) -> tuple[Component, TextEncoderFiles]:
    """Raises RequestError unless the file holds a Mistral or Qwen3 text encoder, and its tokenizer is there.

    A configuration beside it may be another file's: ComfyUI keeps all text encoders in one folder.
    """
    found = text_encoder_in_file(file, read_weights(file))
    return language_model_component(found.weights, found.config, max(found.text.layers)), found


def assemble(model: Model, encoder: TextEncoder, vae: Vae) -> Checkpoint:
    """The three files as one checkpoint. Raises RequestError where they do not fit together."""
    transformer, transformer_config = open_transformer(model.file)
    autoencoder, autoencoder_config = open_autoencoder(vae.file)
    language_model, found = open_text_encoder(encoder.file)
    width = len(found.text.layers) * found.config.hidden_size
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
        language_model_config=found.config,
        text=found.text,
        tokenizer_file=found.tokenizer,
        steps=steps,
        guidance=guidance,
        default_size=catalog.DEFAULT_SIZE,
        reference_limit=catalog.REFERENCE_LIMIT,
        licence=None,
        notes=(),
        transformer=transformer,
        autoencoder=autoencoder,
        language_model=language_model,
    )
