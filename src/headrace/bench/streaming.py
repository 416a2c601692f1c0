"""Denoising steps whose weights are streamed from disk: against the disk, against arithmetic, against all in memory."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from headrace.bench.blocks import (
    CPU,
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
from headrace.bench.rates import PIECE_BYTES, read_rate
from headrace.catalog import PublishedModel
from headrace.checkpoints.components import Component, transformer_component
from headrace.checkpoints.weights import read_weights
from headrace.device import bits_of, dtype_of
from headrace.errors import RequestError
from headrace.memory.files import file_states
from headrace.memory.networks import Lent, stream_transformer
from headrace.memory.plan import Budget, Model, Work, plan_work, step_operations
from headrace.memory.process import forget_peak, peak_bytes, resident_bytes, return_freed_memory
from headrace.memory.stream import module_bytes
from headrace.nn.transformer import Block, Transformer

# Passes timed together: the slots and the blocks that are read ahead are then as in the middle of a run.
PASSES = 2


@dataclass(frozen=True)
class Reading:
    """The streamed bytes of a step, and how fast they come.

    raw: bytes a second of the files read from beginning to end. share: of that rate, what passes reach in which blocks
    are read and none is run; the median of all rounds.
    """

    bytes: int
    raw: float
    share: float


@dataclass(frozen=True)
class StreamRow:
    """One streamed step at one size. seconds: of the fastest round.

    reading: the seconds its bytes take at the raw rate; arithmetic: its operations at the rate of plain bf16 products,
    the median of all rounds. over_floor: the step's seconds over the larger of the two, likewise.
    over_resident: over those of a step with all weights in memory, likewise; None under a budget.
    peak: the process's largest resident set during these steps, in bytes.
    """

    width: int
    height: int
    seconds: float
    reading: float
    arithmetic: float
    over_floor: float
    over_resident: float | None
    peak: int


@dataclass(frozen=True)
class Streaming:
    """What was measured of one model."""

    reading: Reading
    rows: tuple[StreamRow, ...]


def measure_streaming(
    published: PublishedModel,
    folder: Path,
    precision: str,
    sizes: Sequence[Size],
    memory: int | None,
    rounds: int,
) -> Streaming:
    """Write random weights, read them, and take steps on the CPU with the blocks streamed.

    folder: a new one for the weights. memory: the budget of the whole process in bytes, within which blocks stay; None:
    no block does, and streamed steps take turns with steps that have all weights in memory.
    Raises RequestError where the disk has no room, or the budget is too small for one of the sizes.
    """
    write_checkpoint(published, folder, precision, networks=("transformer",))
    component, config = transformer_component(read_weights(folder / "transformer"))
    model = describe_transformer(published, config)
    resident = () if memory is None else _resident_blocks(model, precision, sizes, memory)
    return_freed_memory()
    dtype, bits = dtype_of(precision, CPU), bits_of(precision)
    lent = stream_transformer(component, config, resident, dtype, bits, CPU, file_states(component.files))
    with closing(lent):
        total = _streamed_bytes(lent, resident)
        rates = in_turns(
            {"raw": partial(_raw_rate, component), "streamed": partial(_streamed_rate, lent, total)}, rounds
        )
        share = median_ratio(rates["streamed"], rates["raw"])
        reading = Reading(total, statistics.median(rates["raw"]), share)
        whole = load_whole(component, config, precision) if memory is None else None
        rows = tuple(_rows(model, lent, whole, dtype, sizes, reading, rounds))
    return Streaming(reading, rows)


def _resident_blocks(model: Model, precision: str, sizes: Sequence[Size], memory: int) -> tuple[int, ...]:
    plan = plan_work(model, [Work(*size) for size in sizes], Budget(memory, resident_bytes()), precision)
    if not plan.fits:
        raise RequestError(f"--memory allows {memory / 1e9:.3g} GB, and this takes {plan.minimum_bytes / 1e9:.3g} GB.")
    return plan.resident_blocks


def _raw_rate(component: Component) -> float:
    """Bytes a second of one reading of all files, none of them in the system's cache."""
    buffer, seconds, total = memoryview(bytearray(PIECE_BYTES)), 0.0, 0
    for file in component.files:
        with file.open("rb") as written:
            os.fsync(written.fileno())  # the cache keeps what is not yet on the disk
        size = file.stat().st_size
        seconds += size / read_rate(file, buffer)
        total += size
    return total / seconds


def _streamed_bytes(lent: Lent[Transformer, Block], resident: Sequence[int]) -> int:
    """The bytes that are streamed in a pass."""
    return sum(module_bytes(block) for index, block in enumerate(lent.blocks()) if index not in resident)


def _streamed_rate(lent: Lent[Transformer, Block], total: int) -> float:
    """Bytes a second of passes that follow another one, as those of later steps do; nothing is read afterwards."""

    def read_all() -> None:
        for _ in lent.blocks():
            pass

    read_all()
    seconds = sum(seconds_of(read_all) for _ in range(PASSES))
    lent.close()
    return PASSES * total / seconds


def _rows(
    model: Model,
    lent: Lent[Transformer, Block],
    whole: Transformer | None,
    dtype: torch.dtype,
    sizes: Sequence[Size],
    reading: Reading,
    rounds: int,
) -> Iterator[StreamRow]:
    for size in sizes:
        inputs = random_inputs(model, size, dtype)
        step = inputs.step(lent.network, lent.blocks)
        peaks: list[int] = []
        works: dict[str, Callable[[], float]] = {
            "products": partial(sequence_product_rate, inputs, model.transformer),
            "streamed": partial(_watched, step, peaks),
        }
        if whole is not None:
            works["resident"] = partial(seconds_of, inputs.step(whole, whole.blocks))
        figures = in_turns(works, rounds)
        seconds, resident = figures["streamed"], figures.get("resident")
        read = reading.bytes / reading.raw
        arithmetic = [step_operations(model, Work(*size)) / rate for rate in figures["products"]]
        floors = [max(read, each) for each in arithmetic]
        yield StreamRow(
            *size,
            seconds=min(seconds),
            reading=read,
            arithmetic=statistics.median(arithmetic),
            over_floor=median_ratio(seconds, floors),
            over_resident=None if resident is None else median_ratio(seconds, resident),
            peak=max(peaks),
        )


def _watched(step: Step, peaks: list[int]) -> float:
    """The seconds of a step; the largest resident set meanwhile goes to `peaks`."""
    forget_peak()
    seconds = seconds_of(step)
    peaks.append(peak_bytes())
    return seconds
