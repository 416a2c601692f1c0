"""How much memory a run may have, as it is found when the run begins."""

from __future__ import annotations

import torch

from headrace.errors import RequestError
from headrace.memory.plan import CONTEXT_BYTES, Budget, Plan, free_budget
from headrace.memory.process import resident_bytes, return_freed_memory
from headrace.memory.sizes import MAX_BYTES

ROUNDING = 10**7


def measured_budget(memory: int | None, device: torch.device, held: int) -> Budget:
    """The named budget, or what is free less a margin, and what this process takes already.

    memory: in bytes; on a CPU it is the resident set of this process, on a GPU the device memory it takes.
    held: of that, what the run itself would otherwise load.
    Raises RequestError for a budget on a device whose memory cannot be told apart from the process's.
    """
    if device.type == "cuda":
        process = CONTEXT_BYTES + torch.cuda.memory_reserved(device) - held
        free, _ = torch.cuda.mem_get_info(device)
        return Budget(process + held + int(0.9 * free) if memory is None else memory, process, host=0)
    if device.type != "cpu":
        if memory is not None:
            raise RequestError(f"The device {device} takes no memory budget; leave --memory out or choose cpu.")
        return Budget(MAX_BYTES, 0)
    if memory is not None:
        return_freed_memory()
    process = max(0, resident_bytes() - held)
    return Budget(free_budget(process + held) if memory is None else memory, process)


def check_fits(plan: Plan) -> None:
    """Raises RequestError, naming the smallest budget that works, where this one does not."""
    if not plan.fits:
        least = -(-plan.minimum_bytes // ROUNDING) * ROUNDING
        raise RequestError(
            f"{plan.model} in {plan.precision} at {plan.width}x{plan.height} needs more than "
            f"{plan.memory_bytes / 1e9:.3g}GB of memory; the smallest budget that works is {least / 1e6:.0f}MB."
        )
