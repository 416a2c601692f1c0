"""The three networks of a checkpoint, in memory when a plan has them there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from headrace.checkpoints import (
    Checkpoint,
    build_network,
    load_autoencoder,
    load_language_model,
    load_transformer,
)
from headrace.checkpoints.components import Component
from headrace.checkpoints.load import StoredTensors, fill_module
from headrace.checkpoints.lora_choice import ChosenLora
from headrace.checkpoints.lora_load import load_branches
from headrace.checkpoints.writer import Writer
from headrace.device import bits_of, dtype_of
from headrace.memory.files import FileState, PassingFile, check_unchanged, file_states
from headrace.memory.plan import Plan
from headrace.memory.process import return_freed_memory, trim
from headrace.memory.stream import Stream, module_bytes
from headrace.memory.writing import WritingPlan
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import TransformerConfig
from headrace.nn.language_model import LanguageModel
from headrace.nn.transformer import Block, Transformer
from headrace.nn.vision import Vision
from headrace.quant.formats import Bits
from headrace.quant.lora import Branch, attach

Network = TypeVar("Network", bound=nn.Module)
Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class Lent(Generic[Network, Part]):
    """A network for as long as no other is asked for. blocks: one pass of its blocks, to be given to its forward.

    held_bytes: of the device's memory that it takes.
    """

    network: Network
    blocks: Callable[[], Iterable[Part]]
    close: Callable[[], None]
    held_bytes: int


class Networks:
    """Loads the networks of a checkpoint when they are asked for, and keeps or releases them as the plan says."""

    def __init__(self, checkpoint: Checkpoint, precision: str, text_precision: str, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._dtype, self._bits = dtype_of(precision, device), bits_of(precision)
        self._text_dtype, self._text_bits = dtype_of(text_precision, device), bits_of(text_precision)
        components = checkpoint.transformer, checkpoint.autoencoder, checkpoint.language_model
        self._states = file_states(file for component in components for file in component.files)
        self._plan: Plan | WritingPlan | None = None
        self._writer: Writer | None = None
        self._loras: tuple[ChosenLora, ...] = ()
        self._beside = Beside()
        self._held: dict[str, Lent[nn.Module, nn.Module]] = {}

    @property
    def held_bytes(self) -> int:
        """Of the weights that are in the device's memory now, slots and LoRAs included."""
        return sum(lent.held_bytes for lent in list(self._held.values())) + self._beside.held_bytes

    @contextmanager
    def within(
        self, plan: Plan | WritingPlan, loras: tuple[ChosenLora, ...] = (), writer: Writer | None = None
    ) -> Iterator[None]:
        """Follow the plan, with these LoRAs beside the transformer, or with this language model that writes.

        Afterwards nothing is left in memory, unless the plan keeps everything. Raises HeadraceError where a file is no
        longer what it was when the checkpoint was opened.
        """
        check_unchanged(self._states)
        self._plan, self._loras, self._writer = plan, loras, writer
        if not plan.keeps_all:
            return_freed_memory()
            self.release()
        try:
            yield
        finally:
            self._plan = self._writer = None
            if not plan.keeps_all:
                self.release()

    def use(self, loras: tuple[ChosenLora, ...]) -> None:
        """Other LoRAs beside the transformer from now on, within the same plan."""
        if loras == self._loras:
            return
        self._loras = loras
        if self._plan is not None and not self._plan.keeps_all and "transformer" in self._held:
            self.release()  # what LoRAs add to blocks that pass through is hung on them when they are built

    def language_model(self) -> Lent[LanguageModel, nn.Module]:
        """The text encoder, which is the whole language model where that is in memory."""
        if self.holds_writer:
            return cast("Lent[LanguageModel, nn.Module]", self._held["writer"])
        return cast("Lent[LanguageModel, nn.Module]", self._lend("text_encoder", self._language_model))

    @property
    def holds_writer(self) -> bool:
        """Whether the language model is in memory with all that it writes with."""
        return "writer" in self._held

    def writer(self) -> Lent[LanguageModel, nn.Module]:
        """The whole language model, which takes the text encoder's place."""
        reader = self._held.pop("text_encoder", None)
        if reader is not None:
            reader.close()
            del reader
        return cast("Lent[LanguageModel, nn.Module]", self._lend("writer", self._load_writer))

    def vision(self) -> Vision:
        """The language model's eyes."""
        return cast("Vision", self._lend("vision", self._vision).network)

    def transformer(self) -> Lent[Transformer, Block]:
        """The transformer, with the LoRAs."""
        lent = self._lend("transformer", self._transformer)
        if self._beside.loras != self._loras:
            self._beside.remove()
            self._beside = Beside()  # which it stays where the next ones cannot be read
            self._beside = Beside(self._loras, self._branches(), lent.network)
        return cast("Lent[Transformer, Block]", lent)

    def autoencoder(self) -> Autoencoder:
        """Encoder and decoder."""
        return cast("Autoencoder", self._lend("autoencoder", self._autoencoder).network)

    def release(self) -> None:
        """Let go of every network, after the threads that read for them have ended."""
        while self._held:
            _, lent = self._held.popitem()
            lent.close()
            del lent
        self._beside = Beside()
        trim()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.accelerator.empty_host_cache()

    def _lend(self, name: str, load: Callable[[Any], Lent[nn.Module, nn.Module]]) -> Lent[nn.Module, nn.Module]:
        if self._plan is None:
            raise RuntimeError("networks are lent only within a plan")
        if name not in self._held:
            if not self._plan.keeps_all:
                self.release()
            self._held[name] = load(self._plan)
        return self._held[name]

    def _language_model(self, plan: Plan) -> Lent[nn.Module, nn.Module]:
        if plan.keeps_all:
            whole = load_language_model(self._checkpoint, self._text_dtype, self._device, self._text_bits)
            return Lent(whole, lambda: whole.layers, _nothing, module_bytes(whole))
        component = self._checkpoint.language_model
        config, count = self._checkpoint.language_model_config, max(self._checkpoint.text.layers)

        def build() -> LanguageModel:
            norm = count == config.num_layers
            make = lambda: LanguageModel(config, layers=count, norm=norm)  # noqa: E731
            return build_network(make, component, self._text_dtype, self._text_bits)

        return self._streamed(build, component, _of(component, self._states))

    def _load_writer(self, plan: WritingPlan) -> Lent[nn.Module, nn.Module]:
        assert self._writer is not None
        component, config = self._writer.component, self._writer.config

        def build() -> LanguageModel:
            make = lambda: LanguageModel(config, norm=True, head=True)  # noqa: E731
            return build_network(make, component, self._text_dtype, self._text_bits)

        if plan.keeps_all:
            network = build()
            fill_module(network, component, self._device)
            return Lent(network, lambda: network.layers, _nothing, module_bytes(network))
        gathers = not config.tie_word_embeddings  # else the head is made of all rows
        stays = plan.resident_blocks, plan.pinned_blocks
        return self._streamed(build, component, file_states(component.files), *stays, gathers=gathers)

    def _streamed(
        self,
        build: Callable[[], LanguageModel],
        component: Component,
        states: Mapping[Path, FileState],
        resident: Sequence[int] = (),
        pinned: Sequence[int] = (),
        gathers: bool = True,
    ) -> Lent[nn.Module, nn.Module]:
        """A language model whose layers pass through memory. gathers: whether rows of its embedding are."""
        network = build()
        names = [f"layers.{index}" for index in range(len(network.layers))]
        network.layers = nn.ModuleList()
        if gathers:
            network.register_module("embed_tokens", EmbeddingRows(component, self._text_dtype, self._device))
        fill_module(network, component, self._device)
        stream = Stream(lambda: list(build().layers), names, resident, component, self._device, states, pinned)
        return Lent(network, stream.blocks, stream.close, module_bytes(network) + stream.held_bytes)

    def _vision(self, plan: WritingPlan) -> Lent[nn.Module, nn.Module]:
        assert self._writer is not None
        eyes = self._writer.eyes
        assert eyes is not None
        network = build_network(lambda: Vision(eyes.config), eyes.component, self._text_dtype, None)
        fill_module(network, eyes.component, self._device)
        return Lent(network, tuple, _nothing, module_bytes(network))

    def _transformer(self, plan: Plan) -> Lent[nn.Module, nn.Module]:
        if plan.keeps_all:
            whole = load_transformer(self._checkpoint, self._dtype, self._device, self._bits)
            return Lent(whole, whole.blocks, _nothing, module_bytes(whole))
        branches = self._branches()
        self._beside = Beside(self._loras, branches)
        component = self._checkpoint.transformer
        lent = stream_transformer(
            component,
            self._checkpoint.transformer_config,
            plan.resident_blocks,
            self._dtype,
            self._bits,
            self._device,
            _of(component, self._states),
            plan.pinned_blocks,
            branches,
        )
        return cast("Lent[nn.Module, nn.Module]", lent)

    def _branches(self) -> dict[str, Branch]:
        return load_branches(self._loras, self._checkpoint.transformer, self._dtype, self._device)

    def _autoencoder(self, plan: Plan) -> Lent[nn.Module, nn.Module]:
        whole = load_autoencoder(self._checkpoint, self._dtype, self._device)
        return Lent(whole, tuple, _nothing, module_bytes(whole))


def stream_transformer(
    component: Component,
    config: TransformerConfig,
    resident: Sequence[int],
    dtype: torch.dtype,
    bits: Bits | None,
    device: torch.device,
    states: Mapping[Path, FileState],
    pinned: Sequence[int] = (),
    branches: Mapping[str, Branch] | None = None,
) -> Lent[Transformer, Block]:
    """A transformer of which only the blocks at the places `resident` stay, and the others pass through a ring.

    pinned: where a GPU computes, the places of those that are kept in the host's memory. branches: what LoRAs add to
    its layers; they stay.
    """

    def build() -> Transformer:
        network = build_network(lambda: Transformer(config), component, dtype, bits)
        attach(network, branches or {})
        return network

    network = build()
    network.double_blocks, network.single_blocks = nn.ModuleList(), nn.ModuleList()
    fill_module(network, component, device)
    names = [
        *(f"double_blocks.{index}" for index in range(config.depth)),
        *(f"single_blocks.{index}" for index in range(config.depth_single_blocks)),
    ]
    make: Callable[[], list[Block]] = lambda: list(build().blocks())  # noqa: E731
    stream = Stream(make, names, resident, component, device, states, pinned)
    return Lent(network, stream.blocks, stream.close, module_bytes(network) + stream.held_bytes)


class Beside:
    """What LoRAs have hung on a network, so that it can be taken off again."""

    def __init__(
        self,
        loras: tuple[ChosenLora, ...] = (),
        branches: Mapping[str, Branch] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        """network: where the branches are to be hung; None where they are already."""
        self.loras = loras
        branches = branches or {}
        self.held_bytes = sum(tensor.nbytes for branch in branches.values() for tensor in branch.tensors)
        self._handles = () if network is None else attach(network, branches)

    def remove(self) -> None:
        """Take the branches off."""
        for handle in self._handles:
            handle.remove()


class EmbeddingRows(nn.Module):
    """The rows of a token embedding, gathered from the file: a prompt needs a few hundred of them."""

    def __init__(self, component: Component, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.component, self.dtype, self.device = component, dtype, device

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, hidden_size)."""
        rows: dict[int, Tensor] = {}
        ids = token_ids.flatten().tolist()
        with StoredTensors(self.component, PassingFile) as stored:
            for token in sorted(set(ids)):
                rows[token] = stored.decoded("embed_tokens.weight", token, 1)
        gathered = torch.cat([rows[token] for token in ids]).view(*token_ids.shape, -1)
        return gathered.to(self.device, self.dtype)


def _of(component: Component, states: Mapping[Path, FileState]) -> dict[Path, FileState]:
    return {file: states[file] for file in component.files}


def _nothing() -> None:
    """A network that is kept whole has nothing to close."""
