"""Writes a trained model as diffusers' ``Flux2KleinPipeline.save_pretrained`` writes one, in bf16.

Beside it goes ``headrace.json``: what differs from the published models (text length and layers, steps, size).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from headrace.catalog import TextSettings
from headrace.checkpoints.export import autoencoder_for_diffusers, transformer_for_diffusers
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import LanguageModelConfig
from headrace.train import run
from headrace.train.tokenizer import save_tokenizer

if TYPE_CHECKING:
    from headrace.train.transformer import Network

DIFFUSERS = "0.42.1"
TRANSFORMERS = "5.23.0"
"""The versions whose files these are."""

MAX_POSITIONS = 4096

BASE_STEPS = 20
BASE_GUIDANCE = 4.0
"""How a model that is not distilled is to be used, unless somebody says otherwise."""

CLASSES = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen3ForCausalLM"),
    "tokenizer": ("transformers", "TokenizersBackend"),
    "transformer": ("diffusers", "Flux2Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
}

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": DIFFUSERS,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


@dataclass(frozen=True)
class ModelSettings:
    """How the exported model is to be used. ``distilled``: it is run without classifier-free guidance, as klein is."""

    name: str
    steps: int
    guidance: float
    distilled: bool
    default_size: tuple[int, int]
    licence: str = "Apache-2.0"


def export(
    folder: Path,
    network: Network,
    autoencoder: Autoencoder,
    tokenizer: Tokenizer,
    text: TextSettings,
    settings: ModelSettings,
) -> None:
    """Writes the whole pipeline into ``folder``, which other files may be in; every file is replaced by a rename."""
    transformer_config, transformer = transformer_for_diffusers(
        network.transformer.config, network.transformer.state_dict()
    )
    _save_model(folder / "transformer", "diffusion_pytorch_model", transformer_config, transformer)
    vae_config, vae = autoencoder_for_diffusers(autoencoder.config, autoencoder.state_dict())
    _save_model(folder / "vae", "diffusion_pytorch_model", vae_config, vae)
    language_model = {f"model.{name}": tensor for name, tensor in network.language_model.state_dict().items()}
    _save_tensors(folder / "text_encoder" / "model.safetensors", language_model)
    _save_json(folder / "text_encoder" / "config.json", qwen3_config(network.language_model.config))
    _save_json(folder / "text_encoder" / "generation_config.json", _GENERATION)
    save_tokenizer(tokenizer, folder / "tokenizer")
    _save_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {"_class_name": "Flux2KleinPipeline", "_diffusers_version": DIFFUSERS, "is_distilled": settings.distilled}
    _save_json(folder / "model_index.json", index | {part: list(names) for part, names in CLASSES.items()})
    use = {
        "name": settings.name,
        "text_length": text.length,
        "text_layers": list(text.layers),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "default_size": list(settings.default_size),
        "licence": settings.licence,
    }
    _save_json(folder / "headrace.json", use)


_GENERATION = {
    "_from_model_config": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "transformers_version": TRANSFORMERS,
    "use_cache": True,
}


def qwen3_config(config: LanguageModelConfig) -> dict[str, Any]:
    """The config.json of transformers' Qwen3ForCausalLM."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": None,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": ["full_attention"] * config.num_layers,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": config.num_layers,
        "model_type": "qwen3",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": None,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "transformers_version": TRANSFORMERS,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def _save_model(folder: Path, stem: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    _save_tensors(folder / f"{stem}.safetensors", tensors)
    versions = {"_class_name": config["_class_name"], "_diffusers_version": DIFFUSERS}
    _save_json(folder / "config.json", {**versions, **config})


def _save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    rounded = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    run.save_tensors(rounded, {"format": "pt"}, file)


def _save_json(file: Path, document: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
