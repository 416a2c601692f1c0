"""What `headrace models` shows: the catalogue with exact sizes, counted from configurations. Without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from headrace import catalog
from headrace.catalog import PublishedModel, TextSettings, Variant
from headrace.checkpoints.hub import page
from headrace.checkpoints.open import BUNDLED_MODELS, open_checkpoint
from headrace.checkpoints.shapes import (
    autoencoder_shapes,
    count_parameters,
    language_model_shapes,
    transformer_shapes,
)
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig

BYTES_PER_VALUE = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Parameters:
    """Exact numbers of learned values; of the text encoder, only those up to the last layer used."""

    transformer: int
    text_encoder: int
    autoencoder: int

    @property
    def total(self) -> int:
        return self.transformer + self.text_encoder + self.autoencoder


@dataclass(frozen=True)
class ListedModel:
    """One model that can be named. bytes: of all three networks, by precision. commercial_use: None where unknown.

    source: the hub id, or "in the package". page: where a person reads about it, where it has one.
    """

    name: str
    variant: Variant
    parameters: Parameters
    bytes: dict[str, int]
    text_encoder: str
    steps: int
    guidance: float
    default_size: tuple[int, int]
    reference_limit: int
    licence: str | None
    commercial_use: bool | None
    source: str
    page: str | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def listed_models() -> tuple[ListedModel, ...]:
    """The models inside the package, then the published ones."""
    return (
        *(_bundled(name) for name in catalog.BUNDLED if (BUNDLED_MODELS / name).is_dir()),
        *(_published(entry) for entry in catalog.PUBLISHED),
    )


def count_all(
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    language_model: LanguageModelConfig,
    text: TextSettings,
) -> Parameters:
    """The parameters of the three networks as they are loaded."""
    layers = max(text.layers)
    norm = layers == language_model.num_layers
    return Parameters(
        transformer=count_parameters(transformer_shapes(transformer)),
        text_encoder=count_parameters(language_model_shapes(language_model, layers=layers, norm=norm)),
        autoencoder=count_parameters(autoencoder_shapes(autoencoder)),
    )


def _published(entry: PublishedModel) -> ListedModel:
    encoder = entry.text_encoder
    parameters = count_all(entry.transformer, entry.autoencoder, encoder.config, encoder.settings)
    return ListedModel(
        name=entry.name,
        variant=entry.variant,
        parameters=parameters,
        bytes=_bytes(parameters),
        text_encoder=encoder.name,
        steps=entry.steps,
        guidance=entry.guidance,
        default_size=entry.default_size,
        reference_limit=entry.reference_limit,
        licence=entry.licence.name,
        commercial_use=entry.licence.commercial_use,
        source=entry.hub_id,
        page=page(entry.hub_id),
    )


def _bundled(name: str) -> ListedModel:
    checkpoint = open_checkpoint(name)
    parameters = count_all(
        checkpoint.transformer_config,
        checkpoint.autoencoder_config,
        checkpoint.language_model_config,
        checkpoint.text,
    )
    return ListedModel(
        name=name,
        variant=checkpoint.variant,
        parameters=parameters,
        bytes=_bytes(parameters),
        text_encoder="its own",
        steps=checkpoint.steps,
        guidance=checkpoint.guidance,
        default_size=checkpoint.default_size,
        reference_limit=checkpoint.reference_limit,
        licence=checkpoint.licence,
        commercial_use=catalog.COMMERCIAL_USE.get(checkpoint.licence or ""),
        source="in the package",
        page=None,
    )


def _bytes(parameters: Parameters) -> dict[str, int]:
    return {precision: parameters.total * size for precision, size in BYTES_PER_VALUE.items()}
