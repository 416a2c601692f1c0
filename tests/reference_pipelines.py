"""Small random pipelines, made by diffusers and transformers themselves: the other side of comparisons."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Kind = Literal["dev", "klein", "klein-base", "klein-kv"]

WORDS = "a red apple on the left of two green trees near the old stone house, with the text HELLO; un chat noir, 42"
SPECIAL_TOKENS = {
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "mistral": [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[IMG]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
    ],
}
CHAT_TEMPLATES = {
    "qwen": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}",
    "mistral": "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m.content[0].text + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ '[INST]' + m.content[0].text + '[/INST]' }}{% endif %}{% endfor %}",
}


def make_tokenizer(family: Literal["qwen", "mistral"]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a few hundred tokens with the family's special tokens, padding side and template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL_TOKENS[family],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    left = family == "mistral"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>" if left else "<|endoftext|>",
        padding_side="left" if left else "right",
    )
    fast.chat_template = CHAT_TEMPLATES[family]
    return fast


def make_pipeline(
    kind: Kind,
    seed: int = 0,
    *,
    heads: int = 2,
    head_dim: int = 32,
    depth: int = 1,
    single_depth: int = 2,
    text_hidden: int = 32,
    channels: tuple[int, ...] = (16, 16, 32, 32),
    norm_groups: int = 8,
    layers_per_block: int = 1,
) -> Any:
    """A diffusers pipeline with random weights, in float32 and in evaluation mode."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer("mistral" if kind == "dev" else "qwen")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": text_hidden,
        "intermediate_size": 2 * text_hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
    }
    text_encoder: Any
    if kind == "dev":
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Mistral3Config(
            text_config={"model_type": "mistral", "num_hidden_layers": 31, **sizes},
            vision_config={"model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 8, **vision},
            image_token_index=5,
        )
        text_encoder = Mistral3ForConditionalGeneration(config)
    else:
        text_encoder = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, tie_word_embeddings=True, **sizes))
    transformer = Flux2Transformer2DModel(
        num_layers=depth,
        num_single_layers=single_depth,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=3 * text_hidden,
        axes_dims_rope=(head_dim // 4,) * 4,
        guidance_embeds=kind == "dev",
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers_per_block,
        norm_num_groups=norm_groups,
        sample_size=64,
    )
    vae.bn.running_mean.copy_(0.2 * torch.randn(128))
    vae.bn.running_var.copy_(0.5 + torch.rand(128))
    for module in (text_encoder, transformer, vae):
        _spread(module)
        module.eval()
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": transformer,
    }
    if kind == "dev":
        pipeline: Any = Flux2Pipeline(**parts)
    elif kind == "klein-kv":
        pipeline = Flux2KleinKVPipeline(**parts)
    else:
        pipeline = Flux2KleinPipeline(**parts, is_distilled=kind == "klein")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(folder: Path, kind: Kind, seed: int = 0, max_shard_size: str = "10GB", **widths: Any) -> Any:
    """`make_pipeline`, saved to `folder` as `save_pretrained` writes it; returns the pipeline."""
    pipeline = make_pipeline(kind, seed, **widths)
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return pipeline


def random_widths(seed: int) -> dict[str, Any]:
    """Widths of a pipeline drawn by `seed`: heads, depths, groups and channels that fit together."""
    draw = random.Random(seed)
    groups = draw.choice([2, 4, 8])
    return {
        "heads": draw.randint(1, 4),
        "head_dim": draw.choice([16, 24, 32, 64]),
        "depth": draw.randint(1, 3),
        "single_depth": draw.randint(1, 3),
        "text_hidden": draw.choice([24, 32, 40]),
        "channels": tuple(groups * draw.randint(2, 4) for _ in range(4)),
        "norm_groups": groups,
        "layers_per_block": draw.randint(1, 2),
    }


def _spread(module: torch.nn.Module) -> None:
    """Weights large enough that every part of the network shows in the picture."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, 0.05)
