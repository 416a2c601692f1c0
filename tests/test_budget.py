"""Random checkpoints in a published model's shapes, and budgets that hold for a whole process that runs them."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headrace as package
from conftest import Run, command_environment
from headrace.bench.budget import BudgetRow, measure_budgets
from headrace.bench.checkpoint import write_checkpoint
from headrace.bench.formats import FORMATS, write_weights
from headrace.catalog import PUBLISHED, PublishedModel
from headrace.checkpoints import open_checkpoint
from headrace.checkpoints.components import Component
from headrace.checkpoints.headers import TensorEntry
from headrace.checkpoints.shapes import transformer_shapes
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig
from headrace.quant.formats import Gguf

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


def entries_of(component: Component) -> list[TensorEntry]:
    """Everything that is stored of a network."""
    parts = (entry for matrix in component.matrices.values() for entry in matrix.parts.values())
    return [*component.tensors.values(), *parts]


@pytest.mark.parametrize(
    ("precision", "stored"),
    [("bf16", {"BF16"}), ("fp8", {"F8_E4M3", "BF16", "F32"}), ("int8", {"I8", "BF16", "F32"})],
)
def test_a_random_checkpoint_has_the_shapes_and_opens(tmp_path: Path, precision: str, stored: set[str]) -> None:
    model = reduced(128, 1, 2, 64)
    total = write_checkpoint(model, tmp_path / "model", precision, shard_bytes=200_000)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.transformer_config == model.transformer
    assert checkpoint.language_model_config == model.text_encoder.config
    assert (checkpoint.variant, checkpoint.precision) == (model.variant, precision)
    assert len(checkpoint.transformer.files) > 1
    assert {entry.dtype for entry in entries_of(checkpoint.transformer)} == stored
    parts = checkpoint.transformer, checkpoint.autoencoder, checkpoint.language_model
    assert total == sum(entry.size for part in parts for entry in entries_of(part))


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


TWICE = """
import sys, headrace
memory = headrace.plan(sys.argv[1], memory="100GB", size="128x128").minimum_bytes
pipe = headrace.load(sys.argv[1], device="cpu", memory=memory)
first, second = (pipe.generate("a", size="128x128", steps=1, seed=1).image.tobytes() for _ in range(2))
assert first == second
from headrace.memory.process import peak_bytes
assert peak_bytes() <= memory, (peak_bytes(), memory)
"""


def test_the_smallest_budget_does_for_one_call_after_another(tmp_path: Path) -> None:
    write_checkpoint(reduced(128, 1, 2, 64), tmp_path / "model", "bf16")
    command = [sys.executable, "-c", TWICE, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=command_environment())
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose blocks are most of what it takes."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    write_checkpoint(reduced(1024, 2, 6, 640), folder, "bf16", shard_bytes=10**8)
    return folder


def check_rows(rows: list[BudgetRow]) -> None:
    """Budgets hold, were foreseen, and change no bit; the last of them is too small and was refused."""
    *held, refused = rows
    assert (refused.measured_bytes, refused.memory_bytes < refused.minimum_bytes) == (None, True)
    assert held[-1].memory_bytes == held[-1].minimum_bytes
    for row in held:
        assert row.measured_bytes is not None
        assert row.measured_bytes <= row.memory_bytes, row
        assert row.measured_bytes == pytest.approx(row.predicted_bytes, rel=0.1), row
    assert [row.same_pictures for row in held] == [None, True, True]


def test_a_budget_holds_and_is_foreseen(wide: Path) -> None:
    rows = list(measure_budgets(str(wide), size="256x256"))
    check_rows(rows)
    assert rows[0].resident_blocks == 8 >= rows[1].resident_blocks > rows[2].resident_blocks


@pytest.mark.parametrize(
    "stored",
    [
        "Q4_K",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("fp8 (e5m2)", "int8, rotated", "mxfp8", "nvfp4", "nf4", "Q8_0", "Q2_K")
        ),
    ],
)
def test_the_smallest_budget_holds_where_weights_stay_as_stored(wide: Path, tmp_path: Path, stored: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(wide, model, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    shutil.copytree(wide / "vae", model / "vae", dirs_exist_ok=True)
    shapes = transformer_shapes(open_checkpoint(wide).transformer_config)
    suffix = "gguf" if isinstance(FORMATS[stored], Gguf) else "safetensors"
    write_weights(model / "transformer" / f"diffusion_pytorch_model.{suffix}", shapes, FORMATS[stored])
    least = package.plan(model, memory="100GB", size="128x128").minimum_bytes
    (row,) = measure_budgets(str(model), [least], size="128x128", steps=1)
    assert (row.memory_bytes, row.minimum_bytes, row.resident_blocks) == (least, least, 0)
    assert row.measured_bytes is not None
    assert 0.9 * least < row.measured_bytes <= least


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize(
    ("singles", "work"),
    [
        (6, {"size": "512x512"}),
        (6, {"size": "512x512", "references": ["768x768", "512x256"]}),
        (6, {"size": "512x512", "count": 3}),
        (2, {"size": "2048x2048", "steps": 1}),
    ],
    ids=["picture", "references", "batch", "4 megapixels"],
)
def test_budgets_hold_at_the_width_of_klein_4b(
    tmp_path: Path, precision: str, singles: int, work: dict[str, Any]
) -> None:
    write_checkpoint(reduced(KLEIN.transformer.hidden_size, 1, singles, 320), tmp_path / "model", precision)
    check_rows(list(measure_budgets(str(tmp_path / "model"), **work)))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell which files are open")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_streams(wide: Path, tmp_path: Path, number: signal.Signals) -> None:
    memory = package.plan(wide, memory="100GB", size="64x64").minimum_bytes
    command = [sys.executable, "-m", "headrace", "generate", "a cat", "--model", str(wide), "--size", "64x64"]
    command += ["--steps", "1000", "--device", "cpu", "--memory", f"{memory}B"]
    with subprocess.Popen(command, cwd=tmp_path, env=command_environment(), stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 60
            while not reads(run.pid, wide / "transformer"):
                assert run.poll() is None, run.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            run.send_signal(number)
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
    assert (run.returncode, said) == (1, "headrace: Stopped; nothing unfinished was written.\n")
    assert not list(tmp_path.iterdir())


def reads(process: int, folder: Path) -> bool:
    """Whether the process has a file in the folder open."""
    with contextlib.suppress(OSError):
        return any(str(folder) in str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir())
    return False
