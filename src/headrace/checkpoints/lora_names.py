"""Which layer of ours a LoRA means, by the name it has for it. Without torch.

Trainers name layers as Black Forest Labs or as diffusers does, with one of several prefixes, and some write underscores
for dots. Where they have a layer in parts that is one of ours, a part is some of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from headrace.checkpoints.headers import Shape
from headrace.checkpoints.layouts import TRANSFORMER_RULES, Layout

Part = Literal["q", "k", "v", "qkv", "mlp"]

# The longest first; the empty one stands for names without any.
DOTTED_PREFIXES = (
    "base_model.model.transformer.",
    "base_model.model.diffusion_model.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "",
)
UNDERSCORED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.)?(?:text_encoders?|text_model|te\d?|clip)\.|lora_te\d?_|text_encoder_"
)

# What diffusers or a trainer calls layers, or parts of layers, which the rules of layouts do not have: ours, theirs.
OTHER_NAMES: tuple[tuple[str, str, Part | None], ...] = (
    ("double_blocks.{i}.img_attn.qkv", "transformer_blocks.{i}.attn.to_qkv", None),
    ("double_blocks.{i}.txt_attn.qkv", "transformer_blocks.{i}.attn.to_added_qkv", None),
    ("single_blocks.{i}.linear1", "single_transformer_blocks.{i}.attn.to_q", "q"),
    ("single_blocks.{i}.linear1", "single_transformer_blocks.{i}.attn.to_k", "k"),
    ("single_blocks.{i}.linear1", "single_transformer_blocks.{i}.attn.to_v", "v"),
    ("single_blocks.{i}.linear1", "single_transformer_blocks.{i}.attn.to_qkv", "qkv"),
    ("single_blocks.{i}.linear1", "single_transformer_blocks.{i}.proj_mlp", "mlp"),
    ("single_blocks.{i}.linear2", "single_transformer_blocks.{i}.proj_out", None),
)
BLOCK = re.compile(r"((?:single_|double_|transformer_|sformer_)blocks[._])(0|[1-9][0-9]{0,3})(?=[._])")
MAX_NAME = 512


@dataclass(frozen=True)
class Target:
    """One of our layers, or one of our norms, or a part of a layer.

    part: of a layer that is several of theirs. halves_swapped: whether their second half of rows is our first one.
    """

    layer: str
    part: Part | None = None
    halves_swapped: bool = False

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm, which has one scale for each channel of a head."""
        return self.layer.endswith("_norm")

    def rows(self, shape: Shape) -> tuple[int, int]:
        """The first of its rows in a weight of this shape (out, in), and how many there are."""
        height, width = shape
        if self.part is None:
            return 0, height
        if self.part == "mlp":
            return 3 * width, height - 3 * width
        return "qkv".index(self.part) * width, width * len(self.part)


def find_target(name: str) -> tuple[Layout, str, Target] | None:
    """What a layer's name in a LoRA means: whose name it is, the prefix before it, and the target.

    None for what is no layer of FLUX.2's transformer.
    """
    if len(name) > MAX_NAME:
        return None
    for prefixes, table in ((DOTTED_PREFIXES, _dotted()), (UNDERSCORED_PREFIXES, _underscored())):
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            continue
        own = name[len(prefix) :]
        # Some exports lost the first letters of a name to a prefix they took off.
        own = f"tran{own}" if own.startswith("sformer_blocks") else own
        block = BLOCK.search(own)
        known = table.get(own if block is None else f"{own[: block.start(2)]}{{i}}{own[block.end(2) :]}")
        if known is not None:
            layout, target = known
            layer = target.layer.replace("{i}", block[2]) if block is not None else target.layer
            return layout, prefix, replace(target, layer=layer)
    return None


@cache
def _dotted() -> dict[str, tuple[Layout, Target]]:
    return dict(_names())


@cache
def _underscored() -> dict[str, tuple[Layout, Target]]:
    return {name.replace(".", "_"): known for name, known in _names()}


def _names() -> Iterator[tuple[str, tuple[Layout, Target]]]:
    """Every name of a layer, or of a norm with and without the name of its only tensor, and what it means."""
    for rule in TRANSFORMER_RULES:
        ours, _, tensor = rule.ours.rpartition(".")
        yield ours, ("bfl", Target(ours))
        if tensor == "scale":
            yield rule.ours, ("bfl", Target(ours))
        parts: tuple[Part | None, ...] = (None,) if len(rule.theirs) == 1 else ("q", "k", "v")
        for theirs, part in zip(rule.theirs, parts, strict=True):
            yield theirs.removesuffix(".weight"), ("diffusers", Target(ours, part, rule.halves_swapped))
    for ours, theirs, part in OTHER_NAMES:
        yield theirs, ("diffusers", Target(ours, part))
