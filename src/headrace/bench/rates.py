"""What a machine's links and products reach: bytes a second from disk, in memory and to a GPU; operations a second."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from headrace.device import bits_of, dtype_of
from headrace.errors import HeadraceError
from headrace.memory.files import PassingFile
from headrace.nn.linear import Linear
from headrace.quant.linear import Fp8Linear, Int8Linear

FILE_BYTES = 256 * 2**20
PIECE_BYTES = 8 * 2**20
COPIED_BYTES = 256 * 2**20
# The width of klein-4b, and tokens enough for a device's full rate.
WIDTH = 3072
TOKENS = {"cpu": 512, "cuda": 4096, "mps": 4096}
REPEATS = 5
# Enough operations for a GPU to come out of its sleep.
WARM_UP = 2


def disk_rate(folder: Path, size: int = FILE_BYTES) -> float:
    """Bytes a second, reading a file in `folder` from its beginning to its end, as a streamed model is read.

    The file of `size` bytes is written for it, and deleted. The system's cache is told to forget it before; where the
    system knows no such request (only Linux does), the rate is that of the cache. Raises HeadraceError where the
    folder cannot be written to.
    """
    path = folder / f"headrace-rate-{os.getpid()}"
    buffer = memoryview(bytearray(os.urandom(PIECE_BYTES)))
    try:
        try:
            with path.open("xb") as file:
                for _ in range(0, size, PIECE_BYTES):
                    file.write(buffer)
                file.flush()
                os.fsync(file.fileno())
            return statistics.median(read_rate(path, buffer) for _ in range(3))
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise HeadraceError(f"{folder} cannot be written to or read: {error.strerror or error}.") from error


def forgets_cached_files() -> bool:
    """Whether the system can be told to forget what it has cached of a file."""
    return hasattr(os, "posix_fadvise")


def memory_rate() -> float:
    """Bytes a second, copying tensors within the host's memory; what is read and written counts once."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return COPIED_BYTES / _seconds(lambda: target.copy_(source), torch.device("cpu"))


def link_rates(device: torch.device) -> tuple[float, float]:
    """Bytes a second from pinned host memory to a GPU, and from there back."""
    host = torch.zeros(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.zeros_like(host, device=device)
    forth = COPIED_BYTES / _seconds(lambda: there.copy_(host, non_blocking=True), device)
    return forth, COPIED_BYTES / _seconds(lambda: host.copy_(there, non_blocking=True), device)


@torch.inference_mode()
def product_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a linear layer in klein-4b's width as Headrace runs it, activations quantised included."""
    dtype, bits = dtype_of(precision, device), bits_of(precision)
    x = torch.randn(1, TOKENS[device.type], WIDTH).to(device, dtype)
    weight = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
    layer: Linear | Fp8Linear | Int8Linear
    if bits is None:
        layer = Linear(WIDTH, WIDTH)
        layer.weight.copy_(weight)
        layer.to(device, dtype)
    else:
        layer = (Fp8Linear if bits == "fp8" else Int8Linear)(WIDTH, WIDTH)
        layer.encode(0, weight)
        layer.to(device)
    return 2 * x.shape[1] * WIDTH**2 / _seconds(lambda: layer(x), device)


def read_rate(path: Path, buffer: memoryview) -> float:
    """Bytes a second, reading a file once from its beginning to its end, after the system was told to forget it."""
    size = path.stat().st_size
    with PassingFile(path) as file:
        if forgets_cached_files():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        done = 0
        while count := file.readinto(buffer):
            done += count
        seconds = time.perf_counter() - begin
    if done != size:
        raise HeadraceError(f"{path} became shorter while it was read.")
    return size / seconds


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one `work`, whatever it queues on the device included: the median of some after a warm-up."""
    for _ in range(WARM_UP):
        work()
    taken = []
    for _ in range(REPEATS):
        _wait_for(device)
        begin = time.perf_counter()
        work()
        _wait_for(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
