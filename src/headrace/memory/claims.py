"""What the calls that run in this process at the same time may take, so that together they keep their budgets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar
from weakref import WeakSet

import torch

from headrace.memory.budget import Fitted, check_fits, measured_budget
from headrace.memory.plan import LIBRARY_BYTES, LIBRARY_KEPT_BYTES, Budget

AnyPlan = TypeVar("AnyPlan", bound=Fitted)
Made = TypeVar("Made")


class Holder(Protocol):
    """Whoever makes calls, and may keep weights between them."""

    device: torch.device
    memory: int | None
    host_memory: int | None

    @property
    def held_bytes(self) -> int:
        """Of the device's memory, in use or kept."""
        ...

    def release(self) -> None:
        """Let go of all of it."""
        ...


@dataclass(frozen=True, eq=False)
class _Claim:
    """added: what the call may take at most beside what its process had without it."""

    holder: Holder
    added: int


_lock = threading.Lock()
_holders: WeakSet[Holder] = WeakSet()
_running: list[_Claim] = []
# Of what the libraries take on first use, what earlier calls have left the process with.
_kept = 0


@contextmanager
def claimed(holder: Holder, make: Callable[[Budget], tuple[AnyPlan, Made]]) -> Iterator[tuple[AnyPlan, Made]]:
    """Plan a call for what is free now, and reserve what it may take until it ends.

    make: the plan within a budget, and what goes with it. A call counts as taken all that others which are running may
    still take, and keeps the smallest budget among theirs and its own. Where it would not fit beside what others keep
    between their calls, they let go of that.
    Raises RequestError, naming the smallest budget that works, where it does not fit even so.
    """
    with _lock:
        _holders.add(holder)
        budget = _budget(holder)
        plan, made = make(budget)
        if not plan.fits and _release_idle(holder):
            budget = _budget(holder)
            plan, made = make(budget)
        check_fits(plan)
        claim = _Claim(holder, plan.peak_bytes - budget.process)
        alone, before = not _running, _bare(holder, budget.process)
        _running.append(claim)
    try:
        yield plan, made
    finally:
        with _lock:
            _running.remove(claim)
            if alone and not _running:
                _keep(holder, before)


def _budget(holder: Holder) -> Budget:
    others = [claim for claim in _running if claim.holder.device == holder.device]
    budget = measured_budget(holder.memory, holder.device, holder.held_bytes, holder.host_memory)
    # What they hold already is among what the process was measured to have.
    to_come = sum(max(0, claim.added - claim.holder.held_bytes) for claim in others)
    named = [claim.holder.memory for claim in others if claim.holder.memory is not None]
    return replace(
        budget,
        memory=min([budget.memory, *named]),
        process=budget.process + to_come,
        libraries=LIBRARY_BYTES - _kept,
    )


def _keep(holder: Holder, before: int) -> None:
    """Count once what a call has left the process with, so that the same call fits into the same budget again."""
    global _kept
    if holder.device.type == "cpu" and holder.memory is not None:  # without a budget, freed memory may stay too
        after = measured_budget(holder.memory, holder.device, holder.held_bytes, holder.host_memory)
        grown = max(0, _bare(holder, after.process) - before)
        _kept = min(LIBRARY_KEPT_BYTES, _kept + grown)


def _bare(holder: Holder, process: int) -> int:
    """Of what a process has beside this one's networks, what is not anybody else's either."""
    others = (other for other in _holders if other is not holder and other.device == holder.device)
    return process - sum(other.held_bytes for other in others)


def _release_idle(holder: Holder) -> bool:
    """Whether anybody else had anything to let go of."""
    busy = {holder, *(claim.holder for claim in _running)}
    idle = [other for other in _holders if other not in busy and other.held_bytes]
    for other in idle:
        other.release()
    return bool(idle)
