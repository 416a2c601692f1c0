"""Small checkpoints with drawn weights, written in the layouts that are published."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.checkpoints.export import autoencoder_for_diffusers, transformer_for_diffusers
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig

CONFORMANCE = Path(__file__).resolve().parents[2] / "shared" / "conformance"

TRANSFORMER = TransformerConfig(
    in_channels=128,
    context_in_dim=48,
    hidden_size=64,
    num_heads=2,
    depth=1,
    depth_single_blocks=2,
    axes_dim=(8, 8, 8, 8),
    guidance_embed=False,
)
AUTOENCODER = AutoencoderConfig(channels=(32, 32, 64, 64), layers_per_block=1)
LANGUAGE_MODEL = LanguageModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=28,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    qk_norm=True,
)
QWEN_CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 28,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "tie_word_embeddings": False,
}


def drawn(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A tensor of random values for every shape; a batch count where batch norm keeps one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(0)
        if name.endswith("num_batches_tracked")
        else torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }


def transformer_tensors(seed: int = 0, config: TransformerConfig = TRANSFORMER) -> dict[str, Tensor]:
    return drawn(transformer_shapes(config), seed)


def autoencoder_tensors(seed: int = 1, config: AutoencoderConfig = AUTOENCODER) -> dict[str, Tensor]:
    return drawn(autoencoder_shapes(config), seed)


def language_model_tensors(seed: int = 2, prefix: str = "model.") -> dict[str, Tensor]:
    tensors = drawn(language_model_shapes(LANGUAGE_MODEL, norm=True), seed)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_header(path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"") -> Path:
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_text_encoder(folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder with its tokenizer in it. changes: to its config.json; None takes a field away."""
    config = {name: value for name, value in (QWEN_CONFIG | changes).items() if value is not None}
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", language_model_tensors())
    write_json(folder / "tokenizer.json", {})
    return folder


def write_pipeline(folder: Path, kind: str = "Flux2KleinPipeline", **index: Any) -> Path:
    """A folder in diffusers' layout, small and whole. index: further fields of model_index.json."""
    write_json(folder / "model_index.json", {"_class_name": kind, **index})
    config, tensors = transformer_for_diffusers(TRANSFORMER, transformer_tensors())
    write_json(folder / "transformer" / "config.json", config)
    write_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors)
    config, tensors = autoencoder_for_diffusers(AUTOENCODER, autoencoder_tensors())
    write_json(folder / "vae" / "config.json", config)
    write_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", tensors)
    write_json(folder / "text_encoder" / "config.json", QWEN_CONFIG)
    write_tensors(folder / "text_encoder" / "model.safetensors", language_model_tensors())
    write_json(folder / "tokenizer" / "tokenizer.json", {})
    return folder
