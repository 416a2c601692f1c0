"""Loading: peak memory, precision, places, and the hash that identifies what was loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from checkpoint_files import (
    TRANSFORMER,
    transformer_tensors,
    write_json,
    write_pipeline,
    write_tensors,
)
from headrace.checkpoints import digest, load, load_autoencoder, load_transformer, open_checkpoint
from headrace.checkpoints.digest import file_digest
from headrace.checkpoints.export import transformer_for_diffusers
from headrace.checkpoints.layouts import TRANSFORMER_RULES, to_diffusers
from headrace.checkpoints.shapes import transformer_shapes
from headrace.errors import RequestError
from headrace.nn.config import TransformerConfig

PRECISION_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}

# Loads the transformer in argv[1] in the dtype argv[2], and prints how many bytes it has and how far the peak rose.
MEASURE = """
import re, sys
from pathlib import Path
import torch
from headrace.checkpoints.components import transformer_component
from headrace.checkpoints.load import fill_module
from headrace.checkpoints.weights import read_weights
from headrace.nn.transformer import Transformer

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

component, config = transformer_component(read_weights(Path(sys.argv[1])))
with torch.device("meta"):
    network = Transformer(config).to(getattr(torch, sys.argv[2]))
before = peak()
fill_module(network, component, "cpu")
after = peak()
print(sum(p.nbytes for p in network.parameters()), after - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    """A transformer of 100 million parameters in diffusers' layout, whose qkv is split, in two precisions."""
    config = TransformerConfig(
        context_in_dim=1024, hidden_size=1024, num_heads=8, depth=2, depth_single_blocks=2, guidance_embed=False
    )
    plan = to_diffusers(TRANSFORMER_RULES, transformer_shapes(config))
    folder = tmp_path_factory.mktemp("large")
    return {
        dtype: write_tensors(
            folder / f"{str(dtype)[6:]}.safetensors",
            {name: torch.zeros(assembly.shape, dtype=dtype) for name, assembly in plan.items()},
        )
        for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["bfloat16", "float32"])
def test_peak_memory_of_loading(large: dict[torch.dtype, Path], stored: torch.dtype, wanted: str) -> None:
    command = [sys.executable, "-c", MEASURE, str(large[stored]), wanted]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    loaded, rise = map(int, result.stdout.split())
    assert loaded > 150e6
    assert rise < 1.1 * loaded


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_precisions(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    pipeline = write_pipeline(tmp_path, is_distilled=True)
    tensors = {name: tensor.to(stored) for name, tensor in transformer_tensors().items()}
    file = write_tensors(tmp_path / "single.safetensors", tensors)
    checkpoint = open_checkpoint(file, variant="base", autoencoder=pipeline, text_encoder=pipeline)
    assert (
        checkpoint.precision
        == {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}[str(stored)[6:]]
    )
    loaded = load_transformer(checkpoint, wanted, "cpu").state_dict()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == wanted
        assert torch.equal(loaded[name], tensor.to(wanted))


def test_values_longer_than_the_buffer_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "BUFFER_BYTES", 24)
    checkpoint = open_checkpoint(write_pipeline(tmp_path, is_distilled=True))
    loaded = load_transformer(checkpoint, torch.bfloat16, "cpu").state_dict()
    for name, tensor in transformer_tensors().items():
        assert torch.equal(loaded[name], tensor.bfloat16())


def test_nothing_is_left_as_it_was_allocated(tmp_path: Path) -> None:
    """Every parameter and buffer is in the state dict, so none keeps the bytes its memory happened to hold."""
    checkpoint = open_checkpoint(write_pipeline(tmp_path, is_distilled=True))
    for load_network in (load_transformer, load_autoencoder):
        network = load_network(checkpoint, torch.float32, "cpu")
        held = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
        assert held == set(network.state_dict())
    assert load_autoencoder(checkpoint, torch.float32, "cpu").bn.num_batches_tracked == 0


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_pipeline(tmp_path, is_distilled=True))
    file = checkpoint.transformer.files[0]
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    with pytest.raises(RequestError, match="became shorter"):
        load_transformer(checkpoint, torch.float32, "cpu")
    file.unlink()
    with pytest.raises(RequestError, match="cannot be read"):
        load_transformer(checkpoint, torch.float32, "cpu")


def test_the_digest_is_of_the_weights_and_not_of_their_place(tmp_path: Path) -> None:
    first = digest(open_checkpoint(write_pipeline(tmp_path / "a", is_distilled=True)))
    assert first.startswith("sha256:")
    assert len(first) == 7 + 64
    assert digest(open_checkpoint(write_pipeline(tmp_path / "b", is_distilled=True))) == first
    other = write_pipeline(tmp_path / "c", is_distilled=True)
    _, tensors = transformer_for_diffusers(TRANSFORMER, transformer_tensors(seed=5))
    write_tensors(other / "transformer" / "diffusion_pytorch_model.safetensors", tensors)
    assert digest(open_checkpoint(other)) != first
    assert digest(open_checkpoint(tmp_path / "b", variant="base")) != first
    write_json(tmp_path / "b" / "tokenizer" / "tokenizer.json", {"changed": True})
    changed = digest(open_checkpoint(tmp_path / "b"))
    assert changed != first
    write_json(tmp_path / "b" / "tokenizer" / "tokenizer_config.json", {"pad_token": "<pad>"})
    padded = digest(open_checkpoint(tmp_path / "b"))
    write_json(tmp_path / "b" / "tokenizer" / "tokenizer_config.json", {"pad_token": "<other>"})
    assert len({changed, padded, digest(open_checkpoint(tmp_path / "b"))}) == 3


def test_the_digest_of_a_large_file_takes_samples(large: dict[torch.dtype, Path]) -> None:
    file = large[torch.bfloat16]
    before = file_digest(file)
    with file.open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01")
    assert file_digest(file) != before
