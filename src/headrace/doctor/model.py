"""A small FLUX.2 for the checks: klein's kind, heads of its real width, random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from headrace import catalog
from headrace.bench.checkpoint import write_checkpoint
from headrace.catalog import TextEncoder
from headrace.checkpoints import Checkpoint, open_checkpoint
from headrace.nn.config import AutoencoderConfig, TransformerConfig

# Two slots for the largest block are 40 % of the blocks: streaming saves more than a resident set varies by itself.
TRANSFORMER = TransformerConfig(
    context_in_dim=192, hidden_size=768, num_heads=6, depth=1, depth_single_blocks=8, guidance_embed=False
)
AUTOENCODER = AutoencoderConfig(channels=(32, 32, 64, 64), layers_per_block=1)
# As many layers as the template's hidden states ask for, and no wider than it takes.
LANGUAGE_MODEL = replace(
    catalog.QWEN3_4B.config,
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=28,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
)


def write_model(folder: Path) -> Checkpoint:
    """Write it in bf16 (180 MB) into a new folder, and open it. Raises RequestError where there is no room."""
    klein = next(model for model in catalog.PUBLISHED if model.name == "klein-4b")
    small = replace(
        klein,
        transformer=TRANSFORMER,
        autoencoder=AUTOENCODER,
        text_encoder=TextEncoder("", LANGUAGE_MODEL, klein.text_encoder.settings),
    )
    write_checkpoint(small, folder, "bf16")
    return open_checkpoint(folder)
