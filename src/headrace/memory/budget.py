"""How much memory a run may have, as it is found when the run begins."""

from __future__ import annotations

from typing import Protocol

import torch

from headrace.errors import RequestError
from headrace.memory.plan import CONTEXT_BYTES, Budget, free_budget
from headrace.memory.process import available_bytes, resident_bytes, return_freed_memory, trim
from headrace.memory.sizes import MAX_BYTES

ROUNDING = 10**7


class Fitted(Protocol):
    """A plan: what it needs, and whether a budget has that. work: what it is for, to begin a sentence with."""

    @property
    def work(self) -> str: ...
    @property
    def fits(self) -> bool: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def minimum_bytes(self) -> int: ...
    @property
    def host_bytes(self) -> int: ...


def check_budget(memory: int | None, host_memory: int | None, device: torch.device) -> None:
    """Raises RequestError for an amount that means nothing on this device."""
    if memory is not None and device.type not in ("cpu", "cuda"):
        raise RequestError(f"The device {device} takes no memory budget; leave --memory out or choose cpu.")
    if host_memory is not None and device.type != "cuda":
        raise RequestError(
            f"--host-memory is what a GPU's weights may wait in, and the device is {device}, which has no other "
            "memory: give --memory alone."
        )


def measured_budget(memory: int | None, device: torch.device, held: int, host_memory: int | None = None) -> Budget:
    """The named budget, or what is free less a margin, and what this process takes already.

    memory: in bytes; on a CPU it is the resident set of this process, on a GPU the device memory it takes.
    held: of that, what the run itself would otherwise load. host_memory: to be pinned beside a GPU (default: half of
    what is free).
    """
    if device.type == "cuda":
        host = available_bytes() // 2 if host_memory is None else host_memory
        process = CONTEXT_BYTES + torch.cuda.memory_reserved(device) - held
        free, _ = torch.cuda.mem_get_info(device)
        return Budget(process + held + int(0.9 * free) if memory is None else memory, process, host)
    if device.type != "cpu":
        return Budget(MAX_BYTES, 0)
    if memory is not None:
        return_freed_memory()
        trim()
    process = max(0, resident_bytes() - held)
    return Budget(free_budget(process + held) if memory is None else memory, process)


def check_fits(plan: Fitted) -> None:
    """Raises RequestError, naming the smallest budget that works, where this one does not."""
    if plan.fits:
        return
    if plan.minimum_bytes > plan.memory_bytes:
        raise RequestError(
            f"{plan.work} needs more than {plan.memory_bytes / 1e9:.3g}GB of memory; the smallest budget that works is "
            f"{_rounded_up(plan.minimum_bytes)}."
        )
    raise RequestError(
        f"{plan.work} passes through the host's memory on its way to the GPU and needs "
        f"{_rounded_up(plan.host_bytes)} of it: give more with --host-memory, or more of the GPU's with --memory."
    )


def _rounded_up(amount: int) -> str:
    return f"{-(-amount // ROUNDING) * ROUNDING / 1e6:.0f}MB"
