"""Blocks of a network that are read from disk as they are needed, through a ring of slots allocated once.

A slot is a slab of memory with room for any one of the streamed blocks; each of these has a module whose tensors lie in
the slab. A reader thread fills the slots ahead of use, in the order the blocks run, and goes on with the first blocks
of the next pass while the last ones of this pass compute. Where a GPU computes, the thread reads into pinned memory and
has a stream of its own copy from there; events keep the order, and the computing thread waits for no copy.
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
    ) -> None:
        """Allocates all memory the stream will ever use, and reads the blocks that stay.

        make: all blocks, new at every call, on the meta device in their final dtypes. names: what they are called in
        the component's plan. resident: the places of those that stay. states: of the component's files.
        """
        self._count = len(names)
        blocks = make()
        self._resident = {index: blocks[index] for index in resident}
        for index, block in self._resident.items():
            fill_module(block, component, device, names[index])
        streamed = tuple(index for index in range(len(names)) if index not in self._resident)
        slots = [Slot(make, streamed, device) for _ in range(min(SLOTS, len(streamed)))]
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
        """Stop reading, and wait until the thread has ended."""
        self._reader.stop()


class Slot(Generic[Block]):
    """Memory for one block at a time."""

    def __init__(self, make: Callable[[], Sequence[Block]], places: Sequence[int], device: torch.device) -> None:
        blocks = make()
        self._blocks = {index: blocks[index] for index in places}
        size = max(map(_slab_bytes, self._blocks.values()))
        on_gpu = device.type == "cuda"
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._read_into = self._blocks
        self._on_gpu = _GpuCopy(self._host, device) if on_gpu else None
        if self._on_gpu is not None:
            blocks = make()
            self._read_into = {index: blocks[index] for index in places}
            _lay_out(self._read_into, self._host)
        _lay_out(self._blocks, self._host if self._on_gpu is None else self._on_gpu.slab)
        self._index = -1

    def fill(self, index: int, name: str, stored: StoredTensors) -> None:
        """Read the block in this place, which is stored under `name`; called by the reader thread."""
        if self._on_gpu is not None:
            self._on_gpu.wait_until_copied()
        read_module(self._read_into[index], stored, name)
        if self._on_gpu is not None:
            self._on_gpu.copy(self._host)
        self._index = index

    def lend(self) -> Block:
        """The block that was read last, for work that is queued from now on."""
        if self._on_gpu is not None:
            self._on_gpu.begin_use()
        return self._blocks[self._index]

    def release(self) -> None:
        """What has been queued so far is the last work that uses the block."""
        if self._on_gpu is not None:
            self._on_gpu.end_use()


class _GpuCopy:
    """A slab of device memory, and the copies into it, ordered by events with the work that reads it."""

    def __init__(self, host: Tensor, device: torch.device) -> None:
        self.slab = torch.empty(host.numel(), dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._used: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def wait_until_copied(self) -> None:
        """Make the calling thread wait until the host's slab may be overwritten."""
        self._copied.synchronize()

    def copy(self, host: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used)
            self.slab.copy_(host, non_blocking=True)
            self._copied.record(self._stream)

    def begin_use(self) -> None:
        torch.cuda.current_stream(self.slab.device).wait_event(self._copied)

    def end_use(self) -> None:
        self._used.record(torch.cuda.current_stream(self.slab.device))


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
