"""Which networks the tensor names in a file belong to, in which layout and under which prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from headrace.checkpoints.layouts import AUTOENCODER_PREFIXES, LANGUAGE_MODEL_PREFIX, TRANSFORMER_PREFIXES, Layout

Kind = Literal["transformer", "autoencoder", "text encoder"]

# One tensor that tells each network and layout from everything else that is published.
SIGNATURES: tuple[tuple[str, Kind, Layout | Literal["transformers", "llama.cpp"]], ...] = (
    ("double_stream_modulation_img.lin.weight", "transformer", "bfl"),
    ("double_stream_modulation_img.linear.weight", "transformer", "diffusers"),
    ("encoder.down.0.block.0.conv1.weight", "autoencoder", "bfl"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "autoencoder", "diffusers"),
    ("embed_tokens.weight", "text encoder", "transformers"),
    ("token_embd.weight", "text encoder", "llama.cpp"),
)
# What torchao calls a weight that it has quantised.
TORCHAO_CODES = re.compile(r"\._weight_qdata$")
# What can be beside a language model's layers and has no part in reading a prompt.
BESIDE_LANGUAGE_MODEL = re.compile(
    r"(?:model\.|language_model\.)?(?:lm_head|vision_tower|multi_modal_projector|visual)\..*"
    r"|(?:.*\.)?rotary_emb\.inv_freq|tekken_model|spiece_model"
)


@dataclass(frozen=True)
class Found:
    """One network among the tensors of a file: names that begin with `prefix` are its own."""

    kind: Kind
    layout: Layout | Literal["transformers", "llama.cpp"]
    prefix: str


def recognise(names: Iterable[str]) -> tuple[Found, ...]:
    """All networks that are in a file with tensors of these names; none when it is not a file of FLUX.2."""
    found = []
    for name in names:
        plain = TORCHAO_CODES.sub(".weight", name)
        for signature, kind, layout in SIGNATURES:
            if plain.endswith(signature):
                prefix = plain[: len(plain) - len(signature)]
                if _is_known(kind, prefix):
                    found.append(Found(kind, layout, prefix))
    return tuple(sorted(found, key=lambda item: (item.kind, item.prefix)))


def own_names(found: Found, names: Iterable[str], others: Iterable[Found]) -> dict[str, str]:
    """What each tensor of a network is called without its prefix -> its name in the file."""
    foreign = tuple(other.prefix for other in others if other is not found and len(other.prefix) > len(found.prefix))
    return {
        name[len(found.prefix) :]: name
        for name in names
        if name.startswith(found.prefix) and not (foreign and name.startswith(foreign))
    }


def _is_known(kind: Kind, prefix: str) -> bool:
    if kind == "transformer":
        return prefix in TRANSFORMER_PREFIXES
    if kind == "autoencoder":
        return prefix in AUTOENCODER_PREFIXES
    return LANGUAGE_MODEL_PREFIX.fullmatch(prefix) is not None
