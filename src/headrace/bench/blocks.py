"""What the measurements of the transformer share: random inputs, the rate of plain products, and taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.catalog import PublishedModel
from headrace.checkpoints import build_network
from headrace.checkpoints.components import Component
from headrace.checkpoints.load import fill_module
from headrace.device import bits_of, dtype_of
from headrace.flow.latents import picture_positions, text_positions
from headrace.memory.plan import Model, describe
from headrace.nn.config import TransformerConfig
from headrace.nn.transformer import Block, Transformer

# A product is repeated until so many seconds have passed.
PRODUCT_SECONDS = 0.5

CPU = torch.device("cpu")

Size = tuple[int, int]
Step = Callable[[], object]


def reduced(published: PublishedModel, blocks: tuple[int, int] | None) -> PublishedModel:
    """The model with so many double-stream and single-stream blocks; None: all of its own."""
    if blocks is None:
        return published
    return replace(
        published, transformer=replace(published.transformer, depth=blocks[0], depth_single_blocks=blocks[1])
    )


def describe_transformer(published: PublishedModel, config: TransformerConfig) -> Model:
    """What a plan has to know of the model, with this transformer."""
    return replace(describe(published.name), transformer=config)


def load_whole(component: Component, config: TransformerConfig, precision: str) -> Transformer:
    """The transformer with all its blocks in the CPU's memory."""
    network = build_network(partial(Transformer, config), component, dtype_of(precision, CPU), bits_of(precision))
    fill_module(network, component, CPU)
    return network


@dataclass(frozen=True)
class Inputs:
    """What one step gets: picture tokens (1, N, channels), text (1, L, context), their positions, and a time."""

    picture: Tensor
    picture_ids: Tensor
    text: Tensor
    text_ids: Tensor
    time: Tensor
    guidance: Tensor | None

    def step(self, network: Transformer, blocks: Callable[[], Iterable[Block]]) -> Step:
        """One velocity of a network through one pass of its blocks."""
        return lambda: network(
            self.picture, self.picture_ids, self.time, self.text, self.text_ids, self.guidance, blocks=blocks()
        )


def random_inputs(model: Model, size: Size, dtype: torch.dtype) -> Inputs:
    """Inputs for a picture of this size, the text at the model's full length."""
    config, (width, height) = model.transformer, size
    rows, columns = height // model.autoencoder.token_size, width // model.autoencoder.token_size
    half = torch.full((1,), 0.5)
    return Inputs(
        picture=torch.randn(1, rows * columns, config.in_channels).to(dtype),
        picture_ids=picture_positions(rows, columns),
        text=torch.randn(1, model.text.length, config.context_in_dim).to(dtype),
        text_ids=text_positions(model.text.length),
        time=half,
        guidance=half if config.guidance_embed else None,
    )


def sequence_product_rate(inputs: Inputs, config: TransformerConfig) -> float:
    """Operations a second of a bf16 product of the whole sequence with a matrix as wide as a block's widest layer."""
    wide = 3 * config.hidden_size + 2 * config.mlp_size
    tokens = torch.randn(inputs.picture.shape[1] + inputs.text.shape[1], config.hidden_size).bfloat16()
    weight = torch.randn(wide, config.hidden_size).bfloat16()
    F.linear(tokens, weight)
    count, took = 0, 0.0
    while took < PRODUCT_SECONDS:
        took += seconds_of(lambda: F.linear(tokens, weight))
        count += 1
    return 2 * tokens.numel() * wide * count / took


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The figure each work returns, in every round but a first one for warming up.

    Works that are compared run within seconds of each other, so that what else the machine does meets all alike.
    """
    figures: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, work in works.items():
                figure = work()
                if turn:
                    figures[name].append(figure)
    return figures


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median over all rounds of one figure over another of the same round."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
