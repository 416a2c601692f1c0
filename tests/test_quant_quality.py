"""What `headrace bench quality` measures with, and that it measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from headrace.bench import quality
from headrace.bench.quality import as_tensor, compare_layers, compare_pictures, picture_row, psnr, ssim
from headrace.checkpoints import open_checkpoint


def noise(seed: int) -> torch.Tensor:
    return torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(seed))


def test_psnr() -> None:
    picture = noise(0)
    assert psnr(picture, picture) == math.inf
    assert psnr(picture, picture + 0.1) == pytest.approx(20, abs=1e-3)


def test_ssim() -> None:
    picture = noise(0)
    assert ssim(picture, picture) == pytest.approx(1, abs=1e-5)
    assert abs(ssim(picture, noise(1))) < 0.1
    # Two flat pictures differ in luminance alone: (2ab + c) / (a² + b² + c) with c = 0.01².
    flat = torch.full((3, 20, 20), 0.25), torch.full((3, 20, 20), 0.75)
    assert ssim(*flat) == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-4)


def test_rows_have_means_and_worst_cases() -> None:
    white, grey, black = (Image.new("RGB", (16, 16), (value,) * 3) for value in (255, 128, 0))
    assert as_tensor(white).max() == 1
    row = picture_row("x", [white, grey], [black, black])
    assert (row.lowest_psnr, row.psnr) == pytest.approx((0, (0 - 20 * math.log10(128 / 255)) / 2))
    assert row.lowest_ssim < row.ssim


def test_the_measurements(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "PROMPTS", quality.PROMPTS[:1])
    monkeypatch.setattr(quality, "TIMES", (0.5,))
    checkpoint = open_checkpoint(tiny_model("klein"))
    rows = {row.what: row for row in compare_pictures(checkpoint, seeds=1, size="64x64", device="cpu")}
    assert list(rows) == ["fp8", "int8", "fp32", "bf16, another seed"]
    assert rows["int8"].psnr > rows["fp8"].psnr > rows["bf16, another seed"].psnr
    layers = {(row.bits, row.layers): row for row in compare_layers(checkpoint)}
    for bits in ("fp8", "int8"):
        assert layers[bits, "blocks"].decibels > layers[bits, "all"].decibels
        assert layers[bits, "blocks"].share > layers[bits, "all"].share
    assert layers["int8", "blocks"].decibels > layers["fp8", "blocks"].decibels
