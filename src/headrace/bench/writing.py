"""How fast a language model reads and writes, beside what bounds it: products, the memory's read rate, the disk's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from headrace.bench.blocks import CPU, in_turns, median_ratio
from headrace.bench.checkpoint import write_checkpoint
from headrace.bench.rates import PIECE_BYTES, product_rate, read_rate
from headrace.catalog import PublishedModel
from headrace.checkpoints.components import language_model_component
from headrace.checkpoints.load import fill_module
from headrace.checkpoints.weights import read_weights
from headrace.device import dtype_of
from headrace.memory.files import file_states
from headrace.memory.stream import Stream, module_bytes
from headrace.nn.language_model import KeyValueCache, LanguageModel

READ_BYTES = 256 * 2**20
WRITTEN = 8
# Rows of the embedding, which is the head as well: few, so that what is measured are the layers.
VOCABULARY = 1000


@dataclass(frozen=True)
class WritingRow:
    """One kind of work. rate: tokens a second; bound: what `bound_by` would allow; share: of that, reached.

    All are medians of rounds in which the work takes turns with a measurement of what bounds it.
    """

    what: str
    bound_by: str
    rate: float
    bound: float
    share: float


@torch.inference_mode()
def measure_writing(
    published: PublishedModel, folder: Path, layers: int, tokens: int, precision: str, rounds: int
) -> list[WritingRow]:
    """Write random layers of a published language model, and run them on the CPU, from memory and from disk.

    folder: a new one for the weights. layers: how many. tokens: that are read at once, and that others follow.
    precision: "fp32" or "bf16".
    """
    encoder = published.text_encoder
    config = replace(encoder.config, vocab_size=VOCABULARY, num_layers=layers, tie_word_embeddings=True)
    settings = replace(encoder.settings, layers=(layers,))
    model = replace(published, text_encoder=replace(encoder, config=config, settings=settings))
    write_checkpoint(model, folder, precision, networks=("text_encoder",))
    component = language_model_component(read_weights(folder / "text_encoder"), config, layers)

    def build() -> LanguageModel:
        with torch.device("meta"):
            return LanguageModel(config, norm=True, head=True).to(dtype_of(precision, CPU))

    whole = build()
    fill_module(whole, component, CPU)
    size = module_bytes(whole.layers)
    parameters = sum(weight.numel() for weight in whole.layers.parameters() if weight.ndim > 1)
    text = torch.randint(0, VOCABULARY, (1, tokens))
    cache = KeyValueCache(tokens + WRITTEN)

    def read() -> float:
        cache.length = 0
        started = time.perf_counter()
        whole(text, cache=cache, last=True)
        return tokens / (time.perf_counter() - started)

    def write(layers_of: Callable[[], Iterable[nn.Module]]) -> float:
        cache.length = tokens
        started = time.perf_counter()
        for _ in range(WRITTEN):
            whole(text[:, :1], cache=cache, layers=layers_of(), last=True)
        return WRITTEN / (time.perf_counter() - started)

    read()
    names = [f"layers.{index}" for index in range(layers)]
    states = file_states(component.files)
    stream: Stream[nn.Module] = Stream(lambda: list(build().layers), names, (), component, CPU, states)
    buffer = memoryview(bytearray(PIECE_BYTES))
    with closing(stream):
        return [
            _row("read", "products", read, lambda: product_rate(CPU, precision) / (2 * parameters), rounds),
            _row("write", "memory", partial(write, lambda: whole.layers), lambda: _memory_rate() / size, rounds),
            _row(
                "write, streamed",
                "disk",
                partial(write, stream.blocks),
                lambda: statistics.mean(read_rate(file, buffer) for file in component.files) / size,
                rounds,
            ),
        ]


def _row(what: str, bound_by: str, work: Callable[[], float], bound: Callable[[], float], rounds: int) -> WritingRow:
    figures = in_turns({"work": work, "bound": bound}, rounds)
    rate, allowed = statistics.median(figures["work"]), statistics.median(figures["bound"])
    return WritingRow(what, bound_by, rate, allowed, median_ratio(figures["work"], figures["bound"]))


def _memory_rate() -> float:
    """Bytes a second that the processor reads of what lies in memory, adding it up."""
    values = torch.ones(READ_BYTES // 4)
    values.sum()
    started = time.perf_counter()
    for _ in range(4):
        values.sum()
    return 4 * READ_BYTES / (time.perf_counter() - started)
