"""What it needs that the language model writes, worked out before anything is loaded. Without torch.

The vision tower runs first, once, and what it saw is small. Then every token is one pass of all layers: those that fit
into the budget stay, the others are read again for each. Norm and head stay; keys and values are kept in room for
everything that is read and may be written. Where all networks of the model fit as well, they are all kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.checkpoints.headers import Shape
from headrace.checkpoints.shapes import (
    autoencoder_shapes,
    language_model_shapes,
    transformer_shapes,
    vision_shapes,
)
from headrace.checkpoints.writer import Writer
from headrace.memory.activations import vision_activations, writing_activations
from headrace.memory.plan import (
    Budget,
    Model,
    blocks_bytes,
    needs,
    pin,
    residence_order,
    residents,
    stored_sizes,
    stored_values,
)
from headrace.memory.sizes import network_sizes


@dataclass(frozen=True)
class WritingWork:
    """tokens: that are read. new_tokens: that may be written. pictures: their sizes as the vision tower sees them."""

    tokens: int
    new_tokens: int
    pictures: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class WritingPlan:
    """Writing within a budget; the fields are those of `Plan`, for the language model's layers."""

    model: str
    precision: str
    memory_bytes: int
    peak_bytes: int
    minimum_bytes: int
    fits: bool
    keeps_all: bool
    streamed_bytes: int
    resident_blocks: tuple[int, ...]
    pinned_blocks: tuple[int, ...]
    host_bytes: int

    @property
    def work(self) -> str:
        """What is planned, to begin a sentence with."""
        return f"{self.model}'s language model in {self.precision}, to write,"


def writer_shapes(writer: Writer) -> dict[str, Shape]:
    """All that the language model writes and sees with."""
    shapes = language_model_shapes(writer.config, norm=True, head=True)
    return shapes if writer.eyes is None else shapes | vision_shapes(writer.eyes.config)


def plan_writing(
    model: Model,
    writer: Writer,
    work: WritingWork,
    budget: Budget,
    precision: str,
    text_precision: str,
    multiplies_bf16: bool = True,
) -> WritingPlan:
    """As `plan_work`, for the language model. precision: of the transformer, which is kept where there is room."""
    value_bytes, bits = stored_values(text_precision, multiplies_bf16)
    config = writer.config
    text = stored_sizes(
        language_model_shapes(config, norm=True, head=True), writer.component.formats, value_bytes, bits
    )
    eyes = 0
    if writer.eyes is not None:
        eyes = network_sizes(vision_shapes(writer.eyes.config), {}, value_bytes).total
    looking = max(
        (vision_activations(writer.eyes.config, *size, value_bytes) for size in work.pictures if writer.eyes), default=0
    )
    cache = 2 * config.num_kv_heads * config.head_dim * config.num_layers * value_bytes
    cache *= work.tokens + work.new_tokens
    writing = cache + writing_activations(config, work.tokens, work.new_tokens, value_bytes)

    on_cpu = budget.host is None
    process = budget.process + (budget.libraries if on_cpu else 0)
    other_bytes, other_bits = stored_values(precision, multiplies_bf16)
    others = stored_sizes(
        transformer_shapes(model.transformer), model.formats.get("transformer", {}), other_bytes, other_bits
    )
    others_total = others.total + network_sizes(autoencoder_shapes(model.autoencoder), {}, other_bytes).total
    kept = process + text.total + eyes + others_total + max(looking, writing)

    order = residence_order(text.blocks, 0)
    # Rows of the embedding are gathered from the file, unless the head is made of it.
    standing = process + text.rest + (text.embedding if config.tie_word_embeddings else 0) + writing
    seeing = process + eyes + looking if work.pictures else 0
    keeps_all = kept <= budget.memory
    stay = order if keeps_all else residents(text.blocks, order, budget.memory - standing)
    minimum = max(seeing, standing + min(needs(text.blocks, order)))
    passing = [index for index in order if index not in stay]
    pinned: tuple[int, ...] = ()
    host_bytes = 0
    if budget.host is not None and not keeps_all:
        pinned, host_bytes = pin(text.blocks, passing, (), budget.host)
    return WritingPlan(
        model=model.name,
        precision=text_precision,
        memory_bytes=budget.memory,
        peak_bytes=kept if keeps_all else max(seeing, standing + blocks_bytes(text.blocks, stay)),
        minimum_bytes=min(minimum, kept),
        fits=min(minimum, kept) <= budget.memory and host_bytes <= (budget.host or 0),
        keeps_all=keeps_all,
        streamed_bytes=sum(text.blocks[index] for index in passing),
        resident_blocks=tuple(sorted(stay)),
        pinned_blocks=tuple(sorted(pinned)),
        host_bytes=host_bytes,
    )
