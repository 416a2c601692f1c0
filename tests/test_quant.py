"""Eight bits a weight: codes, errors, the layers that multiply with them, and what they take of memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace import catalog
from headrace.checkpoints.shapes import autoencoder_shapes, count_parameters
from headrace.nn.language_model import LanguageModel
from headrace.nn.linear import Linear
from headrace.nn.transformer import Transformer
from headrace.quant import linear as quantised_linear
from headrace.quant.apply import quantise
from headrace.quant.codecs import (
    decode_fp8,
    decode_int8,
    encode_fp8,
    fp8_scales,
    hadamard,
    rotate,
)
from headrace.quant.formats import (
    FP8,
    FP8_TENSOR,
    INT8,
    Bits,
    Format,
    block_linears,
    choose_formats,
    rotation_size,
)
from headrace.quant.linear import Fp8Linear, Int8Linear, multiplies_fp8

WIDTHS = [(1024, 2048), (768, 512), (384, 100)]


def decibels(made: Tensor, expected: Tensor) -> float:
    """Signal to noise, 10 log10 of the ratio of energies."""
    noise = (made.double() - expected.double()).pow(2).sum()
    return float(10 * torch.log10(expected.double().pow(2).sum() / noise))


def weight(width: int, height: int, draw: str = "normal") -> Tensor:
    generator = torch.Generator().manual_seed(width + height)
    values = 0.02 * torch.randn(height, width, generator=generator)
    if draw == "heavy tails":
        values /= torch.randn(height, width, generator=generator).abs().clamp_min(0.2)
    if draw == "rows of different size":
        values *= torch.logspace(-2, 1, height)[:, None]
    return values


def tokens(width: int, count: int = 192) -> Tensor:
    """(1, count, width) activations of which eight channels are 60 times as large as the others."""
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(1, count, width, generator=generator)
    values[..., torch.randperm(width, generator=generator)[:8]] *= 60
    return values


def fp8_linear(values: Tensor) -> Fp8Linear:
    layer = Fp8Linear(values.shape[1], values.shape[0])
    layer.encode(0, values)
    return layer


def int8_linear(values: Tensor) -> Int8Linear:
    layer = Int8Linear(values.shape[1], values.shape[0])
    layer.encode(0, values)
    return layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_code_of_e4m3_is_decoded_exactly(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()][None]
    decoded = torch.empty(codes.shape, dtype=dtype)
    decode_fp8(codes, torch.tensor(1.0), decoded)
    assert torch.equal(decoded.float(), codes.float())
    decode_fp8(codes, torch.tensor([0.375]), decoded)
    assert torch.equal(decoded.float(), 0.375 * codes.float())


def test_the_largest_value_of_a_row_is_not_clipped_and_zeros_stay() -> None:
    values = torch.cat([torch.logspace(-9, 4, 50)[:, None] * torch.tensor([1.0, -0.3, 0.0]), torch.zeros(1, 3)])
    scales = fp8_scales(values)
    assert torch.equal(scales, scales.bfloat16().float())
    decoded = torch.empty_like(values)
    decode_fp8(encode_fp8(values, scales), scales, decoded)
    assert (decoded[:, 0] - values[:, 0]).abs().le(values[:, 0] / 16).all()
    assert not decoded[-1].any()
    rows = int8_linear(torch.cat([values, values], dim=1))
    assert not rows.weight[-1].any()


@pytest.mark.parametrize(("width", "size"), [(1024, 256), (3072, 256), (24576, 256), (384, 128), (100, 4), (33, 1)])
def test_rotation(width: int, size: int) -> None:
    assert rotation_size(width) == size
    matrix = hadamard(size, torch.float32, torch.device("cpu"))
    assert torch.equal(matrix @ matrix.t(), size * torch.eye(size))
    values, others = torch.randn(5, width), torch.randn(7, width)
    torch.testing.assert_close(rotate(rotate(values)), values)
    torch.testing.assert_close(rotate(values) @ rotate(others).t(), values @ others.t(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("draw", ["normal", "heavy tails", "rows of different size"])
@pytest.mark.parametrize(("width", "height"), WIDTHS)
def test_the_error_of_weights(width: int, height: int, draw: str) -> None:
    values = weight(width, height, draw)
    fp8, int8 = fp8_linear(values), int8_linear(values)
    decoded = torch.empty_like(values)
    decode_fp8(fp8.weight, fp8.weight_scale, decoded)
    assert decibels(decoded, values) >= 31
    assert decibels(decode_int8(int8.weight, int8.weight_scale), values) >= 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "height"), WIDTHS)
def test_the_error_of_outputs_with_outlier_channels(width: int, height: int, dtype: torch.dtype) -> None:
    values, x = weight(width, height), tokens(width)
    expected = x @ values.t()
    with torch.inference_mode():
        assert decibels(fp8_linear(values)(x.to(dtype)), expected) >= 31
        assert decibels(int8_linear(values)(x.to(dtype)), expected) >= 37


@pytest.mark.parametrize(("width", "height"), [(1024, 256), (768, 512)])
def test_the_product_of_fp8_with_fp8(width: int, height: int) -> None:
    """The CPU has the operation too, for all its slowness: the arguments are right, and so is the error."""
    values, x = weight(width, height), tokens(width, 32)[0].bfloat16()
    layer = fp8_linear(values)
    made = layer.scaled_product(x)
    assert (made.shape, made.dtype) == ((32, height), torch.bfloat16)
    assert decibels(made, x.float() @ values.t()) >= 28
    scales = fp8_scales(x)
    emulated = (encode_fp8(x, scales).float() * scales[..., None]) @ (
        layer.weight.float() * layer.weight_scale[:, None]
    ).t()
    assert decibels(made, emulated) >= 50


def test_one_scale_for_the_whole_weight() -> None:
    values, x = weight(64, 48), tokens(64).bfloat16()
    layer, by_row = Fp8Linear(64, 48, FP8_TENSOR), Fp8Linear(64, 48)
    scale = values.abs().max() / 448
    for either in (layer, by_row):
        either.weight.copy_(encode_fp8(values, scale))
        either.weight_scale.copy_(scale.bfloat16())
    with torch.inference_mode():
        assert torch.equal(layer(x), by_row(x))
        assert torch.equal(layer.scaled_product(x[0]), by_row.scaled_product(x[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fp8_multiplies_with_what_its_weights_stand_for(dtype: torch.dtype) -> None:
    layer = fp8_linear(weight(256, 96))
    plain = Linear(256, 96).to(dtype)
    plain.weight.requires_grad_(False)
    decode_fp8(layer.weight, layer.weight_scale, plain.weight)
    x = torch.randn(2, 40, 256).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x))


def test_slabs_do_not_change_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fp8_linear(weight(256, 100)), torch.randn(2, 40, 256)
    with torch.inference_mode():
        whole = layer(x)
        monkeypatch.setattr(quantised_linear, "TILE_ROWS", 1)
        monkeypatch.setattr(quantised_linear, "SLAB_BYTES", 7 * 4 * 256)
        torch.testing.assert_close(layer(x), whole)


@pytest.mark.parametrize("make", [fp8_linear, int8_linear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 384), (3, 384), (3, 5, 7, 384)])
def test_activations_may_have_any_dimensions(
    make: Callable[[Tensor], Fp8Linear | Int8Linear], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    layer, x = make(weight(384, 100)), torch.randn(shape).to(dtype)
    with torch.inference_mode():
        made = layer(x)
        assert (made.shape, made.dtype) == ((*shape[:-1], 100), dtype)
        assert torch.equal(made.flatten(0, -2), layer(x.flatten(0, -2)))


def test_sums_of_int8_are_exact() -> None:
    """Row by row in whole numbers, whatever the kernel: a scale of one on both sides shows the sums themselves."""
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(33, 20)  # an odd width is not rotated
    layer.weight.copy_(torch.randint(-127, 128, (20, 33), generator=generator))
    layer.weight_scale.fill_(1)
    x = torch.randint(-127, 128, (1, 300, 33), generator=generator).float()
    x[..., 0] = 127
    with torch.inference_mode():
        assert torch.equal(layer(x), (x.double() @ layer.weight.double().t()).float())


def test_devices_that_multiply_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not multiplies_fp8(torch.device("cpu"))
    for capability, multiplies in {(8, 0): False, (8, 6): False, (8, 9): True, (9, 0): True, (12, 0): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        multiplies_fp8.cache_clear()
        assert multiplies_fp8(torch.device("cuda")) is multiplies
    multiplies_fp8.cache_clear()


def test_only_linear_layers_of_blocks_are_quantised() -> None:
    config = catalog.KLEIN_4B_TRANSFORMER
    with torch.device("meta"):
        network = Transformer(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    linears = block_linears(shapes)
    assert len(linears) == 5 * 8 + 20 * 2
    quantise(network, choose_formats("int8", linears, {}))
    assert {name for name, part in network.named_modules() if isinstance(part, Int8Linear)} == set(linears)
    plain = {name.split(".")[0] for name, part in network.named_modules() if isinstance(part, Linear)}
    assert plain == {
        "img_in",
        "txt_in",
        "time_in",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
        "final_layer",
    }


def test_what_a_file_holds_in_the_wanted_bits_stands() -> None:
    linears = ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"]
    stored = {"single_blocks.0.linear1": FP8_TENSOR, "img_in": FP8}
    assert choose_formats(None, linears, stored) == {}
    assert choose_formats("fp8", linears, stored) == {"single_blocks.0.linear1": FP8_TENSOR}
    assert choose_formats("int8", linears, stored) == dict.fromkeys(linears, INT8)
    assert choose_formats("fp8", linears, {}) == dict.fromkeys(linears, FP8)
    with torch.device("meta"), pytest.raises(TypeError, match="not a linear layer"):
        quantise(Transformer(catalog.KLEIN_4B_TRANSFORMER), {"double_blocks.0": FP8})


@pytest.mark.parametrize("bits", ["fp8", "int8"])
@pytest.mark.parametrize("model", catalog.PUBLISHED, ids=lambda model: model.name)
def test_bytes_of_the_published_models(model: catalog.PublishedModel, bits: Bits) -> None:
    """Transformer, text encoder up to the last layer used, and autoencoder, against bf16."""
    encoder = model.text_encoder
    with torch.device("meta"):
        transformer = Transformer(model.transformer).bfloat16()
        language_model = LanguageModel(encoder.config, layers=max(encoder.settings.layers)).bfloat16()
    autoencoder = 2 * count_parameters(autoencoder_shapes(model.autoencoder))
    before = held(transformer), held(language_model)
    for network in (transformer, language_model):
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        quantise(network, choose_formats(bits, block_linears(shapes), {}))
    after = held(transformer), held(language_model)
    assert after[0] <= 0.53 * before[0]
    if model.name == "dev":
        assert sum(after) + autoencoder <= 0.55 * (sum(before) + autoencoder)


def held(network: Any) -> int:
    """The bytes of a network's parameters and buffers."""
    return sum(math.prod(value.shape) * value.itemsize for value in network.state_dict().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("form", [FP8, FP8_TENSOR, INT8])
@pytest.mark.parametrize("count", [1, 77, 512])
def test_on_a_gpu(form: Format, count: int) -> None:
    values, x = weight(1024, 2048), tokens(1024, count)
    layer = int8_linear(values) if form == INT8 else fp8_linear(values)
    if form == FP8_TENSOR:
        scale = values.abs().max() / 448
        layer = Fp8Linear(1024, 2048, form)
        layer.weight.copy_(encode_fp8(values, scale))
        layer.weight_scale.copy_(scale)
    with torch.inference_mode():
        made = layer.to("cuda")(x.to("cuda", torch.bfloat16)).float().cpu()
    assert decibels(made, x @ values.t()) >= (37 if form == INT8 else 28)
