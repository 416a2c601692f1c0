"""Our networks' tensors and configurations as diffusers has them, to be written with safetensors and json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.checkpoints.layouts import AUTOENCODER_RULES, TRANSFORMER_RULES, Assembly, to_diffusers
from headrace.checkpoints.shapes import autoencoder_shapes, transformer_shapes
from headrace.nn.config import AutoencoderConfig, TransformerConfig


def transformer_for_diffusers(
    config: TransformerConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors of a Flux2Transformer2DModel, from a Transformer's state dict."""
    return transformer_settings(config), assemble(to_diffusers(TRANSFORMER_RULES, transformer_shapes(config)), tensors)


def transformer_settings(config: TransformerConfig) -> dict[str, Any]:
    """The config.json of a Flux2Transformer2DModel."""
    return {
        "_class_name": "Flux2Transformer2DModel",
        "attention_head_dim": config.head_dim,
        "axes_dims_rope": list(config.axes_dim),
        "eps": 1e-6,
        "guidance_embeds": config.guidance_embed,
        "in_channels": config.in_channels,
        "joint_attention_dim": config.context_in_dim,
        "mlp_ratio": config.mlp_ratio,
        "num_attention_heads": config.num_heads,
        "num_layers": config.depth,
        "num_single_layers": config.depth_single_blocks,
        "out_channels": None,
        "patch_size": 1,
        "rope_theta": config.theta,
        "timestep_guidance_channels": 256,
    }


def autoencoder_for_diffusers(
    config: AutoencoderConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors of an AutoencoderKLFlux2, from an Autoencoder's state dict."""
    plan = to_diffusers(AUTOENCODER_RULES, autoencoder_shapes(config), len(config.channels))
    return autoencoder_settings(config), assemble(plan, tensors)


def autoencoder_settings(config: AutoencoderConfig) -> dict[str, Any]:
    """The config.json of an AutoencoderKLFlux2."""
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKLFlux2",
        "act_fn": "silu",
        "batch_norm_eps": config.batch_norm_eps,
        "batch_norm_momentum": 0.1,
        "block_out_channels": list(config.channels),
        "decoder_block_out_channels": None if config.decoder_channels is None else list(config.decoder_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": config.norm_groups,
        "out_channels": 3,
        "patch_size": [2, 2],
        "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }


def assemble(plan: Mapping[str, Assembly], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes each tensor of a plan out of rows of the given ones, as copies that share no memory."""
    made = {}
    for name, assembly in plan.items():
        rows = [
            tensors[part.tensor].reshape(1) if not assembly.shape else tensors[part.tensor][part.first :][: part.count]
            for part in assembly.parts
        ]
        made[name] = torch.cat(rows).reshape(assembly.shape)
    return made
