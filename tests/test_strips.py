"""The autoencoder strip by strip: the picture of the untiled one at every pixel, in the memory that is foreseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from allocations import Allocations
from headrace.bench.decoder import compare
from headrace.checkpoints.export import autoencoder_for_diffusers
from headrace.memory.activations import decoder_activations, encoder_activations
from headrace.nn import config as nn_config
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig
from headrace.nn.strips import group_norm

WHOLE = 2**40


def autoencoder(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def in_strips(values: int, run: Any, x: Tensor) -> Tensor:
    """`run(x)` with strips of so many values."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(nn_config, "STRIP_VALUES", values)
        return run(x)


CONFIGS = st.builds(
    AutoencoderConfig,
    channels=st.lists(st.sampled_from([8, 16, 24]), min_size=2, max_size=4).map(tuple),
    decoder_channels=st.none(),
    layers_per_block=st.integers(1, 2),
    latent_channels=st.sampled_from([2, 4]),
    norm_groups=st.sampled_from([1, 4, 8]),
)


@settings(deadline=None, max_examples=30)
@given(CONFIGS, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 300, 1000, 5000]))
def test_strips_leave_no_seam(config: AutoencoderConfig, rows: int, columns: int, values: int) -> None:
    network, side = autoencoder(config), config.token_size
    image = torch.rand(1, 3, side * rows, side * columns) * 2 - 1
    latent = torch.randn(1, config.token_channels, rows, columns)
    for run, x in ((network.encode, image), (network.decode, latent)):
        untiled = in_strips(WHOLE, run, x)
        scale = untiled.abs().max().clamp(min=1)
        torch.testing.assert_close(in_strips(values, run, x) / scale, untiled / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("values", [WHOLE, 2**10])
def test_strips_are_those_of_diffusers(values: int) -> None:
    config = AutoencoderConfig((8, 16, 24, 24), (16, 16, 16, 24), 2, 4, 8)
    network = autoencoder(config)
    settings, tensors = autoencoder_for_diffusers(config, network.state_dict())
    theirs: Any = AutoencoderKLFlux2(**{key: value for key, value in settings.items() if key[0] != "_"}).eval()
    theirs.load_state_dict(tensors)
    image, latent = torch.rand(1, 3, 112, 80) * 2 - 1, torch.randn(1, 4, 14, 10)
    with torch.inference_mode():
        moments = theirs.encode(image).latent_dist
        picture = theirs.decode(latent).sample
    torch.testing.assert_close(in_strips(values, network.decode_latent, latent), picture, atol=1e-5, rtol=1e-5)
    mean, log_variance = in_strips(values, network.encode_moments, image)
    torch.testing.assert_close(mean, moments.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_variance, moments.logvar, atol=1e-5, rtol=1e-5)


def test_a_batch_has_the_bits_of_its_pictures() -> None:
    network = autoencoder(AutoencoderConfig((8, 8, 16), None, 1, 4, 4))
    latent, images = torch.randn(3, 16, 9, 6), torch.rand(3, 3, 72, 48)
    for run, batch in ((network.decode, latent), (network.encode, images)):
        alone = torch.cat([in_strips(500, run, one) for one in batch.split(1)])
        assert torch.equal(in_strips(500, run, batch), alone)


@torch.inference_mode()
def test_statistics_of_strips_are_exact_where_the_mean_is_large() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6, eps=1e-6)
    picture = torch.randn(1, 6, 37, 50) * torch.linspace(0.5, 3, 37)[:, None] + 200
    strips = list(picture.split([2, 20, 14, 1], dim=2))
    made = torch.cat([group_norm(norm, strips)(strip) for strip in strips], dim=2)
    torch.testing.assert_close(made.double(), norm.double()(picture.double()), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_statistics_of_rounded_strips_are_those_of_their_values() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6, eps=1e-6)
    picture = (torch.randn(1, 6, 32, 50) + 3).bfloat16()
    exact = norm(picture.float())
    strips = list(picture.split(8, dim=2))
    made = torch.cat([group_norm(norm.bfloat16(), strips)(strip) for strip in strips], dim=2)
    torch.testing.assert_close(made, exact.bfloat16(), atol=0, rtol=2**-8)


def test_gradients_are_those_of_the_whole_picture() -> None:
    network = autoencoder(AutoencoderConfig((8, 8), None, 1, 4, 4)).requires_grad_()
    latent = torch.randn(2, 4, 12, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn_config, "STRIP_VALUES", 1)
        network.decode_latent(latent).square().mean().backward()
    weight = network.decoder.conv_in.weight
    assert weight.grad is not None
    step = torch.zeros_like(weight)
    step[0, 0, 1, 1] = 1e-2
    with torch.no_grad():
        above, below = (weight + step, weight - step)
        losses = []
        for moved in (above, below):
            weight.copy_(moved)
            losses.append(network.decode_latent(latent).square().mean())
    assert float(weight.grad[0, 0, 1, 1]) == pytest.approx(float(losses[0] - losses[1]) / 2e-2, rel=0.02, abs=1e-4)


SHAPES = [
    AutoencoderConfig((8, 16, 32, 32), None, 2, 8, 4),
    AutoencoderConfig((16, 32, 64, 128), None, 1, 32, 1),
    AutoencoderConfig((32, 16, 16), (16, 32, 64), 1, 8, 4),
    AutoencoderConfig((16, 16, 16, 16), None, 2, 8, 4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: "-".join(map(str, config.channels)))
@pytest.mark.parametrize(("height", "width", "values"), [(256, 192, 2**22), (256, 192, 2**14), (512, 256, 2**16)])
def test_the_autoencoder_allocates_what_is_foreseen(
    config: AutoencoderConfig, dtype: torch.dtype, height: int, width: int, values: int
) -> None:
    network, side = autoencoder(config).to(dtype), config.token_size
    latent = torch.randn(1, config.token_channels, height // side, width // side).to(dtype)
    image = torch.rand(1, 3, height, width).to(dtype)
    cases: Any = [(network.decode, latent, decoder_activations), (network.encode, image, encoder_activations)]
    for run, x, foresee in cases:
        with Allocations() as allocations:
            in_strips(values, run, x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn_config, "STRIP_VALUES", values)
            foreseen = foresee(config, width, height, dtype.itemsize)
        assert 0.98 * foreseen <= allocations.peak <= 1.02 * foreseen


def test_strips_take_less_than_half_of_the_whole() -> None:
    network = autoencoder(SHAPES[0])
    latent = torch.randn(1, 32, 32, 16)
    peaks = []
    for values in (2**14, WHOLE):
        with Allocations() as allocations:
            in_strips(values, network.decode, latent)
        peaks.append(allocations.peak)
    assert peaks[0] < 0.5 * peaks[1]


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_the_comparison_with_diffusers(part: Any) -> None:
    ours, theirs = compare(part, 128, 96, "fp32", SHAPES[0])
    assert (ours.what, theirs.what) == ("headrace", "diffusers")
    assert theirs.largest < 0.01
    for row in (ours, theirs):
        assert 0 < row.start_bytes <= row.peak_bytes
