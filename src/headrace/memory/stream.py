"""Blocks of a network that are read from disk as they are needed, through a ring of slots allocated once.

A slot is a slab of memory with room for any one of the streamed blocks; each of these has a module whose tensors lie in
the slab. A reader thread fills the slots ahead of use, in the order the blocks run, and goes on with the first blocks
of the next pass while the last ones of this pass compute. Where a GPU computes, a slot is the GPU's memory, and the
thread copies into it, on a stream of its own, from pinned memory of the host: some blocks are kept there, the others
are read into a slab that they share. Events keep the order, and the computing thread waits for no copy.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from headrace.checkpoints.components import Component
from headrace.checkpoints.load import StoredTensors, fill_module, read_module
from headrace.errors import HeadraceError
from headrace.memory.files import FileState, PassingFile, check_unchanged
from headrace.memory.plan import SLOTS

ALIGNMENT = 64

Block = TypeVar("Block", bound=nn.Module)


class Stream(Generic[Block]):
    """The blocks of a network in the order they run, some of which stay in memory while the others pass through it."""

    def __init__(
        self,
        make: Callable[[], Sequence[Block]],
        names: Sequence[str],
        resident: Sequence[int],
        component: Component,
        device: torch.device,
        states: Mapping[Path, FileState],
        pinned: Sequence[int] = (),
    ) -> None:
        """Allocates all memory the stream will ever use, and reads the blocks that stay.

        make: all blocks, new at every call, on the meta device in their final dtypes. names: what they are called in
        the component's plan. resident: the places of those that stay. states: of the component's files. pinned: where
        a GPU computes, the places of those that are kept in the host's memory.
        """
        self._count = len(names)
        blocks = make()
        self._resident = {index: blocks[index] for index in resident}
        for index, block in self._resident.items():
            fill_module(block, component, device, names[index])
        streamed = [index for index in range(len(names)) if index not in self._resident]
        kept = {index: Slab({index: blocks[index]}, pinned=True) for index in pinned}
        passing = [index for index in streamed if index not in kept]
        self.held_bytes = sum(map(module_bytes, self._resident.values()))
        link = GpuLink(device) if device.type == "cuda" else None
        slots: list[Slot[Block]] = []
        for _ in range(min(SLOTS, len(streamed))):
            slab = Slab(_chosen(make(), streamed), device)
            self.held_bytes += slab.memory.nbytes
            if link is None:
                slots.append(Slot(slab))
                continue
            sources = dict(kept)
            if passing:
                sources.update(dict.fromkeys(passing, Slab(_chosen(make(), passing), pinned=True)))
            slots.append(GpuSlot(slab, sources, link))
        self._reader = _Reader(slots, [(index, names[index]) for index in streamed], component, states)

    def blocks(self) -> Iterator[Block]:
        """One pass: every block in order, each valid until the next one is asked for.

        Raises HeadraceError when a file cannot be read or is no longer what it was. A pass that is left half way stops
        the reading; the next one begins anew.
        """
        index = -1
        try:
            for index in range(self._count):
                if index in self._resident:
                    yield self._resident[index]
                    continue
                slot = self._reader.next()
                try:
                    yield slot.lend()
                finally:
                    slot.release()
                    self._reader.recycle(slot)
        finally:
            if index < self._count - 1:
                self._reader.stop()

    def close(self) -> None:
        """Stop reading, and wait until the thread and the copies it ordered have ended."""
        self._reader.stop()
        self._reader.finish()


class Slab(Generic[Block]):
    """A piece of memory with room for any one of some blocks, which all lie in it, each from its beginning."""

    def __init__(self, blocks: Mapping[int, Block], device: torch.device | str = "cpu", pinned: bool = False) -> None:
        self.blocks = blocks
        size = max(map(_slab_bytes, blocks.values()))
        self.memory = torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)
        _lay_out(blocks, self.memory)
        self._held: int | None = None

    def holds(self, index: int) -> bool:
        """Whether the block in this place was the last one to be read, and was read whole."""
        return self._held == index

    def read(self, index: int, name: str, stored: StoredTensors) -> None:
        """Read the block in this place, which is stored under `name`."""
        self._held = None
        read_module(self.blocks[index], stored, name)
        self._held = index


class Slot(Generic[Block]):
    """Where a block lies while it computes; a CPU's."""

    def __init__(self, slab: Slab[Block]) -> None:
        self._slab = slab
        self._index = -1

    def fill(self, index: int, name: str, stored: StoredTensors) -> None:
        """Have the block in this place here, which is stored under `name`; called by the reader thread."""
        if not self._slab.holds(index):
            self._slab.read(index, name, stored)
        self._index = index

    def lend(self) -> Block:
        """The block that was filled in last, for work that is queued from now on."""
        return self._slab.blocks[self._index]

    def release(self) -> None:
        """What has been queued so far is the last work that uses the block."""

    def finish(self) -> None:
        """Wait until nothing is on its way here any more."""


class GpuLink:
    """The copies from the host to a GPU, in a stream of their own, and the order of events between it and others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def event(self) -> torch.cuda.Event:
        """One that has not been recorded yet, for which nothing waits."""
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy(self, source: Tensor, target: Tensor, after: torch.cuda.Event, done: torch.cuda.Event) -> None:
        """Queue a copy that begins after one event and ends with another."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            done.record(self._stream)

    def wait(self, event: torch.cuda.Event) -> None:
        """Have the work that the calling thread queues from now on come after the event."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def mark(self, event: torch.cuda.Event) -> None:
        """Let the event be the end of the work that the calling thread has queued so far."""
        event.record(torch.cuda.current_stream(self._device))


class GpuSlot(Slot[Block]):
    """A slot of a GPU's memory, filled from slabs of the host's. sources: of every block, by its place."""

    def __init__(self, slab: Slab[Block], sources: Mapping[int, Slab[Block]], link: GpuLink) -> None:
        super().__init__(slab)
        self._sources, self._link = sources, link
        self._used, self._copied = link.event(), link.event()
        link.mark(self._used)  # work that was queued before may use the same memory, which was freed a moment ago

    def fill(self, index: int, name: str, stored: StoredTensors) -> None:
        source = self._sources[index]
        if not source.holds(index):
            self._copied.synchronize()  # the reader thread waits: the slab may still be on its way to the GPU
            source.read(index, name, stored)
        size = _slab_bytes(source.blocks[index])
        self._link.copy(source.memory[:size], self._slab.memory[:size], self._used, self._copied)
        self._index = index

    def lend(self) -> Block:
        self._link.wait(self._copied)
        return super().lend()

    def release(self) -> None:
        self._link.mark(self._used)

    def finish(self) -> None:
        self._copied.synchronize()


class _Reader(Generic[Block]):
    """The thread that fills slots with blocks, again and again in the same order; it runs while there is a pass."""

    def __init__(
        self,
        slots: Sequence[Slot[Block]],
        order: Sequence[tuple[int, str]],
        component: Component,
        states: Mapping[Path, FileState],
    ) -> None:
        self._slots, self._order, self._component, self._states = slots, order, component, states
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._free: SimpleQueue[Slot[Block] | None] = SimpleQueue()
        self._filled: SimpleQueue[Slot[Block] | BaseException] = SimpleQueue()

    def next(self) -> Slot[Block]:
        """The slot with the next block, as soon as it has been read."""
        if self._thread is None:
            self._start()
        filled = self._filled.get()
        if isinstance(filled, Slot):
            return filled
        self.stop()
        if isinstance(filled, HeadraceError):
            raise filled
        raise HeadraceError(f"{self._component.source} could not be read on: {filled}.") from filled

    def finish(self) -> None:
        """Wait until nothing is on its way into a slot any more."""
        for slot in self._slots:
            slot.finish()

    def _start(self) -> None:
        # New queues, so that what an interrupted pass left in the old ones is forgotten.
        self._free, self._filled = SimpleQueue(), SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="headrace-reader", daemon=True)
        self._thread.start()

    def recycle(self, slot: Slot[Block]) -> None:
        """Have the slot filled again."""
        self._free.put(slot)

    def stop(self) -> None:
        """End the thread, once it has read the tensor it is at."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            self._free.put(None)
            thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        free, filled = self._free, self._filled
        try:
            with StoredTensors(self._component, PassingFile) as stored:
                for index, name in itertools.cycle(self._order):
                    slot = free.get()
                    if slot is None or self._stopping.is_set():
                        return
                    slot.fill(index, name, stored)
                    check_unchanged(self._states)
                    filled.put(slot)
        except BaseException as error:  # whatever it was, the thread that computes must hear of it
            filled.put(error)


def module_bytes(module: nn.Module) -> int:
    """What the parameters and buffers take."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _chosen(blocks: Sequence[Block], places: Sequence[int]) -> dict[int, Block]:
    return {index: blocks[index] for index in places}


def _lay_out(blocks: Mapping[int, nn.Module], slab: Tensor) -> None:
    """Put the tensors of every block into the slab, each block's from its beginning."""
    for block in blocks.values():
        block.eval()
        start = 0
        for part in block.modules():
            for name, parameter in part.named_parameters(recurse=False):
                view = _view(slab, start, parameter)
                setattr(part, name, nn.Parameter(view, requires_grad=False))
                start += _padded(parameter)
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, _view(slab, start, buffer))
                start += _padded(buffer)


def _view(slab: Tensor, start: int, tensor: Tensor) -> Tensor:
    return slab[start : start + tensor.numel() * tensor.itemsize].view(tensor.dtype).view(tensor.shape)


def _slab_bytes(block: nn.Module) -> int:
    return sum(_padded(tensor) for tensor in (*block.parameters(), *block.buffers()))


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.itemsize // ALIGNMENT) * ALIGNMENT
