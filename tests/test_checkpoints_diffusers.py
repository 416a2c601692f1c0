"""Whatever diffusers and transformers save is loaded tensor by tensor, and computes what it computed there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor

from headrace.checkpoints import (
    inspect,
    load_autoencoder,
    load_language_model,
    load_transformer,
    open_checkpoint,
)
from headrace.checkpoints.components import autoencoder_component, transformer_component
from headrace.checkpoints.export import autoencoder_for_diffusers, transformer_for_diffusers
from headrace.checkpoints.load import fill_module
from headrace.checkpoints.weights import read_weights
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig, TransformerConfig
from headrace.nn.transformer import Transformer
from reference_pipelines import Kind, random_widths, save_pipeline

KINDS: tuple[Kind, ...] = ("dev", "klein", "klein-base", "klein-kv")


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(ours[name], tensor), name


def text_model(pipeline: Any) -> dict[str, Tensor]:
    encoder = pipeline.text_encoder
    return (encoder.model.language_model if hasattr(encoder.model, "language_model") else encoder.model).state_dict()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("seed", "kind"), list(enumerate(KINDS)))
def test_every_tensor_of_a_saved_pipeline(tmp_path: Path, kind: Kind, seed: int, sharded: bool) -> None:
    widths = random_widths(seed + 4 * sharded)
    pipeline = save_pipeline(tmp_path, kind, seed, "100KB" if sharded else "10GB", **widths)
    assert sharded == bool(list(tmp_path.glob("*/*.index.json")))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.variant == kind
    transformer = load_transformer(checkpoint, torch.float32, "cpu")
    _, tensors = transformer_for_diffusers(checkpoint.transformer_config, transformer.state_dict())
    assert_same(tensors, pipeline.transformer.state_dict())
    autoencoder = load_autoencoder(checkpoint, torch.float32, "cpu")
    _, tensors = autoencoder_for_diffusers(checkpoint.autoencoder_config, autoencoder.state_dict())
    assert_same(tensors, pipeline.vae.state_dict())
    language_model = load_language_model(checkpoint, torch.float32, "cpu").state_dict()
    theirs = text_model(pipeline)
    assert_same(language_model, {name: theirs[name] for name in language_model})
    seen = inspect(tmp_path)
    assert seen.problems == ()
    assert all(network.missing == () == network.unused for network in seen.networks)


@pytest.mark.parametrize(
    ("mlp_ratio", "depths"), [(3.0, (2, 1)), (2.5, (2, 1)), (1.3, (2, 1)), (3.0, (0, 1)), (3.0, (1, 0)), (3.0, (0, 0))]
)
def test_a_transformer_of_any_shape_goes_there_and_back(
    tmp_path: Path, mlp_ratio: float, depths: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    theirs = Flux2Transformer2DModel(
        in_channels=8,
        num_layers=depths[0],
        num_single_layers=depths[1],
        attention_head_dim=24,
        num_attention_heads=3,
        joint_attention_dim=20,
        axes_dims_rope=(4, 8, 8, 4),
        rope_theta=500,
        mlp_ratio=mlp_ratio,
        guidance_embeds=True,
    ).eval()
    theirs.save_pretrained(tmp_path)
    component, config = transformer_component(read_weights(tmp_path))
    assert (config.mlp_size, config.theta, config.axes_dim) == (int(72 * mlp_ratio), 500, (4, 8, 8, 4))
    with torch.device("meta"):
        ours = Transformer(config)
    fill_module(ours, component, "cpu")
    image, context = torch.randn(2, 6, 8), torch.randn(2, 5, 20)
    image_ids, text_ids = torch.randint(0, 9, (6, 4)), torch.randint(0, 9, (5, 4))
    time, guidance = torch.tensor([0.7, 0.7]), torch.tensor([2.5, 2.5])
    with torch.no_grad():
        expected = theirs(image, context, time, image_ids, text_ids, guidance, return_dict=False)[0]
        made = ours(image, image_ids, time, context, text_ids, guidance)
    assert (made - expected).abs().max() <= 1e-4 * expected.abs().max()
    settings, tensors = transformer_for_diffusers(config, ours.state_dict())
    again = Flux2Transformer2DModel.from_config(settings)
    again.load_state_dict(tensors)
    assert_same(again.state_dict(), theirs.state_dict())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert settings == {name: value for name, value in saved.items() if name != "_diffusers_version"}


def test_an_autoencoder_with_a_small_decoder_goes_there_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(4, 8, 12),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        batch_norm_eps=1e-3,
        sample_size=64,
    ).eval()
    theirs.bn.running_mean.normal_()
    theirs.save_pretrained(tmp_path)
    component, config = autoencoder_component(read_weights(tmp_path))
    assert config == AutoencoderConfig((8, 16, 16), (4, 8, 12), 2, 4, 4, 1e-3)
    with torch.device("meta"):
        ours = Autoencoder(config)
    fill_module(ours, component, "cpu")
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        mean, _ = ours.encode_moments(image)
        expected = theirs.encode(image).latent_dist.mean
        assert (mean - expected).abs().max() <= 1e-4 * expected.abs().max()
        picture = theirs.decode(expected).sample
        assert (ours.decode_latent(expected) - picture).abs().max() <= 1e-4 * picture.abs().max()
    settings, tensors = autoencoder_for_diffusers(config, ours.state_dict())
    again = AutoencoderKLFlux2.from_config(settings)
    again.load_state_dict(tensors)
    assert_same(again.state_dict(), theirs.state_dict())


def test_a_transformer_without_its_configuration_is_worked_out(tmp_path: Path) -> None:
    theirs = Flux2Transformer2DModel(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=20,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    _, config = transformer_component(read_weights(tmp_path))
    assert config == TransformerConfig(128, 20, 64, 2, 2, 3, (8, 8, 8, 8), 2000, 3.0, False)
