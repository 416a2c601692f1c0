"""The catalogue's numbers are the published ones, and the networks really have them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headrace import catalog
from headrace.checkpoints import listed_models
from headrace.checkpoints.shapes import (
    autoencoder_shapes,
    count_parameters,
    language_model_shapes,
    transformer_shapes,
)
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig
from headrace.nn.language_model import LanguageModel
from headrace.nn.transformer import Transformer

TRANSFORMER_PARAMETERS = {
    "dev": 32_223_281_152,
    "klein-4b": 3_875_544_576,
    "klein-base-4b": 3_875_544_576,
    "klein-9b": 9_078_581_248,
    "klein-base-9b": 9_078_581_248,
    "klein-9b-kv": 9_078_581_248,
}
# What FLUX.2 reads, which is up to the last layer it uses and without norm and head; and the whole language model.
TEXT_ENCODER_PARAMETERS = {
    "Mistral-Small-3.2-24B": (17_343_754_240, 23_572_403_200),
    "Qwen3-8B": (5_831_883_520, 8_190_735_360),
    "Qwen3-4B": (3_114_088_192, 4_022_468_096),
}


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("entry", catalog.PUBLISHED, ids=lambda entry: entry.name)
def test_transformer_has_exactly_the_published_parameters(entry: catalog.PublishedModel) -> None:
    with torch.device("meta"):
        network = Transformer(entry.transformer)
    assert sum(parameter.numel() for parameter in network.parameters()) == TRANSFORMER_PARAMETERS[entry.name]
    assert count_parameters(transformer_shapes(entry.transformer)) == TRANSFORMER_PARAMETERS[entry.name]
    assert transformer_shapes(entry.transformer) == shapes_of(network)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (AutoencoderConfig(), 84_046_115),
        (AutoencoderConfig(decoder_channels=(96, 192, 384, 384)), 62_373_091),
        (AutoencoderConfig(channels=(8, 16), layers_per_block=3, latent_channels=4, norm_groups=4), None),
    ],
)
def test_autoencoder_has_exactly_the_published_parameters(config: AutoencoderConfig, parameters: int | None) -> None:
    with torch.device("meta"):
        network = Autoencoder(config)
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert parameters in (None, counted)
    assert count_parameters(autoencoder_shapes(config)) == counted
    assert autoencoder_shapes(config) == shapes_of(network)


@pytest.mark.parametrize("encoder", catalog.TEXT_ENCODERS, ids=lambda encoder: encoder.name)
def test_text_encoder_has_exactly_the_published_parameters(encoder: catalog.TextEncoder) -> None:
    layers = max(encoder.settings.layers)
    truncated, whole = TEXT_ENCODER_PARAMETERS[encoder.name]
    with torch.device("meta"):
        network = LanguageModel(encoder.config, layers=layers)
        complete = LanguageModel(encoder.config, norm=True, head=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == truncated
    assert sum(parameter.numel() for parameter in complete.parameters()) == whole
    assert language_model_shapes(encoder.config, layers=layers) == shapes_of(network)
    assert language_model_shapes(encoder.config, norm=True, head=True) == shapes_of(complete)


@pytest.mark.parametrize("entry", catalog.PUBLISHED, ids=lambda entry: entry.name)
def test_published_text_encoders_fit_their_transformers(entry: catalog.PublishedModel) -> None:
    encoder = entry.text_encoder
    assert len(encoder.settings.layers) * encoder.config.hidden_size == entry.transformer.context_in_dim
    assert entry.autoencoder.token_channels == entry.transformer.in_channels
    assert entry.transformer.num_heads * entry.transformer.head_dim == entry.transformer.hidden_size


def test_listing_counts_bytes_and_says_what_may_be_sold() -> None:
    listed = {model.name: model for model in listed_models()}
    dev = listed["dev"].as_dict()
    assert dev["parameters"] == {
        "transformer": 32_223_281_152,
        "text_encoder": 17_343_754_240,
        "autoencoder": 84_046_115,
    }
    assert dev["bytes"]["bf16"] == 2 * sum(dev["parameters"].values())
    assert dev["commercial_use"] is False
    assert listed["klein-4b"].commercial_use is True
    assert [listed[name].steps for name in ("dev", "klein-9b", "klein-base-9b", "klein-9b-kv")] == [50, 4, 50, 4]


def test_listing_and_opening_import_no_torch() -> None:
    code = "import sys, headrace.checkpoints as c; c.listed_models(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
