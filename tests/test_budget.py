"""Random checkpoints in a published model's shapes, and budgets that hold for a whole process that runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import headrace as package
from conftest import Run
from headrace.bench.checkpoint import write_checkpoint
from headrace.catalog import PUBLISHED, PublishedModel
from headrace.checkpoints import open_checkpoint
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig

KLEIN = next(published for published in PUBLISHED if published.name == "klein-4b")


def reduced(width: int, depth: int, single_depth: int, text_width: int) -> PublishedModel:
    """klein-4b with fewer and narrower blocks."""
    encoder = replace(
        KLEIN.text_encoder.config,
        vocab_size=1000,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_heads=text_width // 64,
        num_kv_heads=1,
    )
    transformer = replace(
        KLEIN.transformer,
        hidden_size=width,
        num_heads=width // 128,
        depth=depth,
        depth_single_blocks=single_depth,
        context_in_dim=3 * text_width,
    )
    return replace(
        KLEIN,
        transformer=transformer,
        text_encoder=replace(KLEIN.text_encoder, config=encoder),
        autoencoder=AutoencoderConfig(channels=(32, 32, 64, 64), layers_per_block=1),
    )


@pytest.mark.parametrize(("precision", "stored"), [("bf16", {"BF16"}), ("fp8", {"F8_E4M3", "BF16", "F32"})])
def test_a_random_checkpoint_has_the_shapes_and_opens(tmp_path: Path, precision: str, stored: set[str]) -> None:
    model = reduced(128, 1, 2, 64)
    total = write_checkpoint(model, tmp_path / "model", precision, shard_bytes=200_000)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.transformer_config == model.transformer
    assert checkpoint.language_model_config == model.text_encoder.config
    assert (checkpoint.variant, checkpoint.precision) == (model.variant, precision)
    assert len(checkpoint.transformer.files) > 1
    assert {entry.dtype for entry in checkpoint.transformer.tensors.values()} == stored
    parts = checkpoint.transformer, checkpoint.autoencoder, checkpoint.language_model
    assert total == sum(entry.size for part in parts for entry in part.tensors.values())


def test_a_folder_in_use_and_a_full_disk_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="not an empty folder"):
        write_checkpoint(KLEIN, tmp_path, "bf16")
    huge = replace(KLEIN, transformer=replace(KLEIN.transformer, hidden_size=2**20))
    with pytest.raises(RequestError, match="GB free"):
        write_checkpoint(huge, tmp_path / "model", "fp32")
    assert not list((tmp_path / "model").iterdir())


def test_below_the_minimum_the_run_is_refused_and_the_minimum_named(tmp_path: Path, headrace: Run) -> None:
    write_checkpoint(reduced(128, 1, 2, 64), tmp_path / "model", "bf16")
    arguments = ["generate", "a", "--model", tmp_path / "model", "--size", "64x64", "--device", "cpu"]
    result = headrace(*arguments, "--memory", "20MB")
    assert result.returncode == 2
    assert "the smallest budget that works is" in result.stderr
    assert not list(tmp_path.glob("*.png"))
    assert headrace(*arguments, "--memory", "20").returncode == 2


def test_a_budget_holds_and_is_foreseen(tmp_path: Path, headrace: Run) -> None:
    model = tmp_path / "model"
    write_checkpoint(reduced(1024, 2, 6, 640), model, "bf16", shard_bytes=10**8)
    arguments = ["generate", "a cat", "--model", model, "--size", "256x256", "--steps", "2", "--seed", "1"]
    arguments += ["--device", "cpu", "--json"]
    minimum = package.plan(model, memory="100GB", size="256x256", precision="bf16").minimum_bytes
    pictures = set()
    for name, budget in (("whole", 10**11), ("middle", minimum + 10**8), ("least", minimum + 10**7)):
        result = headrace(*arguments, "--memory", f"{budget}B", "-o", f"{name}.png")
        assert result.returncode == 0, result.stderr
        peak = json.loads(result.stdout)["peak_memory_bytes"]
        assert peak <= budget
        foreseen = package.plan(model, memory=budget, size="256x256", precision="bf16").peak_bytes
        assert peak == pytest.approx(foreseen, rel=0.1)
        pictures.add((tmp_path / f"{name}.png").read_bytes())
    assert len(pictures) == 1
