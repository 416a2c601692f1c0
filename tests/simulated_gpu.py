"""torch.cuda's streams and events without a GPU: work that is queued runs as early, or as late, as the order allows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode


class SimulatedGpu:
    """eager: the stream whose work runs as soon as it may, "copy", "compute" or "neither"; other work when it must."""

    def __init__(self, patch: pytest.MonkeyPatch, eager: str) -> None:
        self.lock = threading.RLock()
        self.synchronised_by: set[str] = set()
        self.compute = _Stream(self, eager == "compute")
        original = torch.empty

        def empty(*size: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            there = device is not None and torch.device(device).type == "cuda"
            return original(*size, device="cpu" if there else device, **options)

        patch.setattr(torch, "empty", empty)
        patch.setattr(torch.cuda, "Stream", lambda device: _Stream(self, eager == "copy"))
        patch.setattr(torch.cuda, "Event", lambda: _Event(self))
        patch.setattr(torch.cuda, "current_stream", lambda device: self.compute)
        patch.setattr(torch.cuda, "stream", _copies_queued_on)


class _Stream:
    def __init__(self, gpu: SimulatedGpu, eager: bool) -> None:
        self.gpu, self.eager = gpu, eager
        self._queue: deque[Callable[[], None]] = deque()

    def queue(self, work: Callable[[], None]) -> None:
        with self.gpu.lock:
            self._queue.append(work)
            while self.eager and self._queue:
                self.run_next()

    def run_next(self) -> None:
        self._queue.popleft()()

    def wait_event(self, event: _Event) -> None:
        self.queue(event.recorded)


class _Event:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self.recorded: Callable[[], None] = lambda: None

    def record(self, stream: _Stream) -> None:
        reached: list[bool] = []

        def reach() -> None:
            while not reached:
                stream.run_next()

        with self._gpu.lock:
            self.recorded = reach
            stream.queue(lambda: reached.append(True))

    def synchronize(self) -> None:
        self._gpu.synchronised_by.add(threading.current_thread().name)
        with self._gpu.lock:
            self.recorded()


@contextmanager
def _copies_queued_on(stream: _Stream) -> Iterator[None]:
    class Queued(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not torch.Tensor.copy_:
                return func(*args, **(kwargs or {}))
            stream.queue(lambda: args[0].copy_(args[1]))
            return args[0]

    with Queued():
        yield
