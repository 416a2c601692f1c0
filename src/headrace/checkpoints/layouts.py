"""How Black Forest Labs' tensor names, which are ours, relate to diffusers' and to prefixes met in the wild.

The two layouts differ in names, in that diffusers splits the double-stream blocks' fused `qkv` in three and swaps the
halves of the last modulation (scale, shift instead of shift, scale), and in that it writes the autoencoder's 1x1
attention convolutions as linear layers and counts the decoder's levels from the other end. All of it is the table
below, read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from headrace.checkpoints.headers import Shape

Layout = Literal["bfl", "diffusers"]


@dataclass(frozen=True)
class Rows:
    """`count` rows (first dimension) of a tensor, from row `first`."""

    tensor: str
    first: int
    count: int


@dataclass(frozen=True)
class Assembly:
    """A tensor of `shape` made of rows of others, one after another in memory."""

    shape: Shape
    parts: tuple[Rows, ...]

    def rows(self, first: int, count: int) -> Assembly:
        """`count` rows of the tensor from row `first` on."""
        parts, start = [], 0
        for part in self.parts:
            low, high = max(first, start), min(first + count, start + part.count)
            if low < high:
                parts.append(Rows(part.tensor, part.first + low - start, high - low))
            start += part.count
        return Assembly((count, *self.shape[1:]), tuple(parts))


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and the one, or the three of equal size, that diffusers has for it.

    Names may hold fields: `{i}` and `{j}` are numbers, `{~i}` is the same level counted from the other end, the
    others are one of the words in `FIELDS`.
    """

    ours: str
    theirs: tuple[str, ...]
    halves_swapped: bool = False


NUMBER = r"0|[1-9][0-9]{0,3}"
FIELDS: Mapping[str, str] = {
    "i": NUMBER,
    "j": NUMBER,
    "~i": NUMBER,
    "part": "norm1|conv1|norm2|conv2",
    "side": "encoder|decoder",
    "letter": "[qkv]",
    "value": "weight|bias",
    "statistic": "running_mean|running_var|num_batches_tracked",
}


def _same(*names: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(ours, (theirs,)) for ours, theirs in names)


TRANSFORMER_RULES: tuple[Rule, ...] = (
    *_same(
        ("img_in.weight", "x_embedder.weight"),
        ("txt_in.weight", "context_embedder.weight"),
        ("time_in.in_layer.weight", "time_guidance_embed.timestep_embedder.linear_1.weight"),
        ("time_in.out_layer.weight", "time_guidance_embed.timestep_embedder.linear_2.weight"),
        ("guidance_in.in_layer.weight", "time_guidance_embed.guidance_embedder.linear_1.weight"),
        ("guidance_in.out_layer.weight", "time_guidance_embed.guidance_embedder.linear_2.weight"),
        ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"),
        ("double_stream_modulation_txt.lin.weight", "double_stream_modulation_txt.linear.weight"),
        ("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight"),
        ("double_blocks.{i}.img_attn.norm.query_norm.scale", "transformer_blocks.{i}.attn.norm_q.weight"),
        ("double_blocks.{i}.img_attn.norm.key_norm.scale", "transformer_blocks.{i}.attn.norm_k.weight"),
        ("double_blocks.{i}.img_attn.proj.weight", "transformer_blocks.{i}.attn.to_out.0.weight"),
        ("double_blocks.{i}.img_mlp.0.weight", "transformer_blocks.{i}.ff.linear_in.weight"),
        ("double_blocks.{i}.img_mlp.2.weight", "transformer_blocks.{i}.ff.linear_out.weight"),
        ("double_blocks.{i}.txt_attn.norm.query_norm.scale", "transformer_blocks.{i}.attn.norm_added_q.weight"),
        ("double_blocks.{i}.txt_attn.norm.key_norm.scale", "transformer_blocks.{i}.attn.norm_added_k.weight"),
        ("double_blocks.{i}.txt_attn.proj.weight", "transformer_blocks.{i}.attn.to_add_out.weight"),
        ("double_blocks.{i}.txt_mlp.0.weight", "transformer_blocks.{i}.ff_context.linear_in.weight"),
        ("double_blocks.{i}.txt_mlp.2.weight", "transformer_blocks.{i}.ff_context.linear_out.weight"),
        ("single_blocks.{i}.linear1.weight", "single_transformer_blocks.{i}.attn.to_qkv_mlp_proj.weight"),
        ("single_blocks.{i}.linear2.weight", "single_transformer_blocks.{i}.attn.to_out.weight"),
        ("single_blocks.{i}.norm.query_norm.scale", "single_transformer_blocks.{i}.attn.norm_q.weight"),
        ("single_blocks.{i}.norm.key_norm.scale", "single_transformer_blocks.{i}.attn.norm_k.weight"),
        ("final_layer.linear.weight", "proj_out.weight"),
    ),
    Rule("final_layer.adaLN_modulation.1.weight", ("norm_out.linear.weight",), halves_swapped=True),
    Rule(
        "double_blocks.{i}.img_attn.qkv.weight",
        (
            "transformer_blocks.{i}.attn.to_q.weight",
            "transformer_blocks.{i}.attn.to_k.weight",
            "transformer_blocks.{i}.attn.to_v.weight",
        ),
    ),
    Rule(
        "double_blocks.{i}.txt_attn.qkv.weight",
        (
            "transformer_blocks.{i}.attn.add_q_proj.weight",
            "transformer_blocks.{i}.attn.add_k_proj.weight",
            "transformer_blocks.{i}.attn.add_v_proj.weight",
        ),
    ),
)

AUTOENCODER_RULES: tuple[Rule, ...] = _same(
    ("bn.{statistic}", "bn.{statistic}"),
    ("encoder.quant_conv.{value}", "quant_conv.{value}"),
    ("decoder.post_quant_conv.{value}", "post_quant_conv.{value}"),
    ("{side}.conv_in.{value}", "{side}.conv_in.{value}"),
    ("{side}.norm_out.{value}", "{side}.conv_norm_out.{value}"),
    ("{side}.conv_out.{value}", "{side}.conv_out.{value}"),
    ("{side}.mid.block_1.{part}.{value}", "{side}.mid_block.resnets.0.{part}.{value}"),
    ("{side}.mid.block_2.{part}.{value}", "{side}.mid_block.resnets.1.{part}.{value}"),
    ("{side}.mid.attn_1.norm.{value}", "{side}.mid_block.attentions.0.group_norm.{value}"),
    ("{side}.mid.attn_1.{letter}.{value}", "{side}.mid_block.attentions.0.to_{letter}.{value}"),
    ("{side}.mid.attn_1.proj_out.{value}", "{side}.mid_block.attentions.0.to_out.0.{value}"),
    ("encoder.down.{i}.block.{j}.{part}.{value}", "encoder.down_blocks.{i}.resnets.{j}.{part}.{value}"),
    ("encoder.down.{i}.block.{j}.nin_shortcut.{value}", "encoder.down_blocks.{i}.resnets.{j}.conv_shortcut.{value}"),
    ("encoder.down.{i}.downsample.conv.{value}", "encoder.down_blocks.{i}.downsamplers.0.conv.{value}"),
    ("decoder.up.{i}.block.{j}.{part}.{value}", "decoder.up_blocks.{~i}.resnets.{j}.{part}.{value}"),
    ("decoder.up.{i}.block.{j}.nin_shortcut.{value}", "decoder.up_blocks.{~i}.resnets.{j}.conv_shortcut.{value}"),
    ("decoder.up.{i}.upsample.conv.{value}", "decoder.up_blocks.{~i}.upsamplers.0.conv.{value}"),
)

# The same tensor under another name in repacked files of Black Forest Labs' layout: theirs -> ours.
SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(.*\.(?:query|key)_norm)\.weight"), r"\1.scale"),
    (re.compile(r"(quant_conv\.(?:weight|bias))"), r"encoder.\1"),
    (re.compile(r"(.*\.)scale_weight"), r"\1weight_scale"),
    (re.compile(r"(.*\.)scale_input"), r"\1input_scale"),
    (re.compile(r"(post_quant_conv\.(?:weight|bias))"), r"decoder.\1"),
)

# llama.cpp's names of a language model's tensors, and Hugging Face's (gguf-py, tensor_mapping.py).
GGUF_OUTSIDE = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rotary_emb.inv_freq",
}
GGUF_LAYER = re.compile(r"blk\.(\d{1,4})\.(\w+)\.weight")
GGUF_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TRANSFORMER_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
AUTOENCODER_PREFIXES = ("", "vae.", "first_stage_model.")
LANGUAGE_MODEL_PREFIX = re.compile(
    r"(?:text_encoders\.[A-Za-z0-9_-]+\.(?:transformer\.)?|text_encoder\.)?"
    r"(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.|)"
)


def spelled_as_ours(name: str) -> str:
    """The name Black Forest Labs gave a tensor that a repacked file spells in another way."""
    for pattern, replacement in SPELLINGS:
        if pattern.fullmatch(name):
            return pattern.sub(replacement, name)
    return name


def from_llama_cpp(name: str) -> str:
    """Hugging Face's name of a tensor that llama.cpp calls `name`; the same where it has none."""
    match = GGUF_LAYER.fullmatch(name)
    if match is None:
        return GGUF_OUTSIDE.get(name, name)
    inside = GGUF_INSIDE.get(match[2])
    return name if inside is None else f"layers.{match[1]}.{inside}.weight"


def diffusers_names(rules: tuple[Rule, ...], name: str, levels: int) -> tuple[Rule, tuple[str, ...]] | None:
    """The rule for a tensor of ours, and what diffusers calls it; None for a name that is none of ours.

    levels: how many resolutions the autoencoder has, for `{~i}`.
    """
    for rule in rules:
        match = _pattern(rule.ours).fullmatch(name)
        if match is not None:
            theirs = tuple(_filled(template, match.groupdict(), levels) for template in rule.theirs)
            known = tuple(name for name in theirs if name is not None)
            return (rule, known) if len(known) == len(theirs) else None
    return None


def our_name(rules: tuple[Rule, ...], name: str, levels: int) -> tuple[Rule, str] | None:
    """The rule for a tensor of diffusers', and what we call the tensor it is (a part of); None for any other name."""
    for rule in rules:
        for template in rule.theirs:
            match = _pattern(template).fullmatch(name)
            if match is not None:
                ours = _filled(rule.ours, match.groupdict(), levels)
                return None if ours is None else (rule, ours)
    return None


def from_diffusers(rules: tuple[Rule, ...], shapes: Mapping[str, Shape], levels: int = 0) -> dict[str, Assembly]:
    """For each of our tensors, how it is made of diffusers' tensors."""
    plan = {}
    for name, shape in shapes.items():
        rule, theirs = _rule_of(rules, name, levels)
        rows = _row_count(shape) // len(theirs)
        parts = [part for their_name in theirs for part in _parts(their_name, 0, rows, rule.halves_swapped)]
        plan[name] = Assembly(shape, tuple(parts))
    return plan


def to_diffusers(rules: tuple[Rule, ...], shapes: Mapping[str, Shape], levels: int = 0) -> dict[str, Assembly]:
    """For each of diffusers' tensors, how it is made of ours."""
    plan = {}
    for name, shape in shapes.items():
        rule, theirs = _rule_of(rules, name, levels)
        rows = _row_count(shape) // len(theirs)
        for index, their_name in enumerate(theirs):
            their_shape = (rows, *shape[1:]) if shape else ()
            if ".attn_1." in name and len(shape) == 4:
                their_shape = shape[:2]
            plan[their_name] = Assembly(their_shape, tuple(_parts(name, index * rows, rows, rule.halves_swapped)))
    return plan


def as_stored(shapes: Mapping[str, Shape]) -> dict[str, Assembly]:
    """For each of our tensors, that it is stored whole and under the same name."""
    return {name: Assembly(shape, (Rows(name, 0, _row_count(shape)),)) for name, shape in shapes.items()}


def _rule_of(rules: tuple[Rule, ...], name: str, levels: int) -> tuple[Rule, tuple[str, ...]]:
    found = diffusers_names(rules, name, levels)
    if found is None:
        raise KeyError(name)
    return found


def _parts(tensor: str, first: int, count: int, halves_swapped: bool) -> Iterator[Rows]:
    if halves_swapped:
        half = count // 2
        yield Rows(tensor, first + half, half)
        yield Rows(tensor, first, half)
    else:
        yield Rows(tensor, first, count)


def _row_count(shape: Shape) -> int:
    return shape[0] if shape else 1


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{([^}]+)\}", template)
    text = ""
    for index, piece in enumerate(pieces):
        text += re.escape(piece) if index % 2 == 0 else f"(?P<{_group(piece)}>{FIELDS[piece]})"
    return re.compile(text)


def _group(field: str) -> str:
    return "reversed_i" if field == "~i" else field


def _filled(template: str, fields: Mapping[str, str], levels: int) -> str | None:
    """The template with its fields filled in; None when a level is not among the `levels` there are."""
    values = dict(fields)
    counted = {"i": "reversed_i", "reversed_i": "i"}
    if "{~i}" in template or "reversed_i" in fields:
        known = "i" if "i" in fields else "reversed_i"
        level = levels - 1 - int(fields[known])
        if level < 0:
            return None
        values[counted[known]] = str(level)
    return re.sub(r"\{([^}]+)\}", lambda match: values[_group(match.group(1))], template)
