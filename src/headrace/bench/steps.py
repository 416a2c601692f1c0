"""Denoising steps with all weights in memory, beside plain products and beside diffusers on the same weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headrace.bench.blocks import (
    CPU,
    Inputs,
    Size,
    Step,
    describe_transformer,
    in_turns,
    load_whole,
    median_ratio,
    random_inputs,
    seconds_of,
    sequence_product_rate,
)
from headrace.bench.checkpoint import write_checkpoint
from headrace.catalog import PublishedModel
from headrace.checkpoints.components import transformer_component
from headrace.checkpoints.weights import read_weights
from headrace.device import dtype_of
from headrace.memory.plan import Model, Work, step_operations

THEIRS = "diffusers bf16"


@dataclass(frozen=True)
class StepRow:
    """One step at one size. seconds: of the fastest round.

    share: operations a second over those of plain bf16 products in the same round, the median of all rounds.
    speedup: the seconds of diffusers' bf16 step over these in the same round, the median; None without diffusers.
    """

    what: str
    width: int
    height: int
    seconds: float
    share: float
    speedup: float | None


def compare_steps(
    published: PublishedModel, folder: Path, sizes: Sequence[Size], precisions: Sequence[str], rounds: int
) -> Iterator[StepRow]:
    """Steps on the CPU in each precision, in turns with diffusers' and with products.

    folder: a new one for the weights, which both load from there. Raises RequestError where the disk has no room.
    """
    write_checkpoint(published, folder, "bf16", networks=("transformer",))
    component, config = transformer_component(read_weights(folder / "transformer"))
    model = describe_transformer(published, config)
    networks = {precision: load_whole(component, config, precision) for precision in precisions}
    theirs = _load_diffusers(folder) if importlib.util.find_spec("diffusers") else None
    for size in sizes:
        inputs = random_inputs(model, size, torch.bfloat16)
        steps: dict[str, Step] = {
            f"headrace {precision}": _inputs(model, size, precision).step(network, network.blocks)
            for precision, network in networks.items()
        }
        if theirs is not None:
            steps[THEIRS] = _their_step(theirs, inputs)
        yield from _rows(model, size, inputs, steps, rounds)


def _rows(model: Model, size: Size, inputs: Inputs, steps: dict[str, Step], rounds: int) -> Iterator[StepRow]:
    works = {name: partial(seconds_of, step) for name, step in steps.items()}
    figures = in_turns({"products": partial(sequence_product_rate, inputs, model.transformer), **works}, rounds)
    operations = step_operations(model, Work(*size))
    products = [operations / rate for rate in figures.pop("products")]
    theirs = figures.get(THEIRS)
    for name, seconds in figures.items():
        speedup = None if theirs is None else median_ratio(theirs, seconds)
        yield StepRow(name, *size, min(seconds), median_ratio(products, seconds), speedup)


def _inputs(model: Model, size: Size, precision: str) -> Inputs:
    return random_inputs(model, size, dtype_of(precision, CPU))


def _load_diffusers(folder: Path) -> Any:
    from diffusers import Flux2Transformer2DModel

    network: Any = Flux2Transformer2DModel.from_pretrained(  # type: ignore[no-untyped-call]
        folder, subfolder="transformer", torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
    )
    return network.eval()


def _their_step(network: Any, inputs: Inputs) -> Step:
    return lambda: network(
        hidden_states=inputs.picture,
        encoder_hidden_states=inputs.text,
        timestep=inputs.time.bfloat16(),
        guidance=None if inputs.guidance is None else inputs.guidance.bfloat16(),
        img_ids=inputs.picture_ids,
        txt_ids=inputs.text_ids,
        return_dict=False,
    )
