"""Pipelines of one process: what each may take while others run, or keep what they have loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from headrace.errors import RequestError
from headrace.memory import claims
from headrace.memory.claims import claimed
from headrace.memory.plan import LIBRARY_KEPT_BYTES, Budget, Plan, Work, describe, plan_work

GB = 10**9
OTHERS = 300_000_000
MODEL = describe("klein-4b")


def plan_within(budget: Budget) -> tuple[Plan, None]:
    return plan_work(MODEL, [Work(512, 512)], budget, "bf16"), None


ALL = plan_within(Budget(100 * GB, OTHERS))[0].peak_bytes
LEAST = plan_within(Budget(100 * GB, OTHERS))[0].minimum_bytes


@dataclass(eq=False)
class Pipe:
    """A pipeline as far as its memory goes."""

    memory: int | None
    held_bytes: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host_memory: int | None = None
    left_bytes: int = 0
    """What its calls have left the process with."""

    def release(self) -> None:
        self.held_bytes = 0


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pipe]]:
    """`machine(memory, held)` is a pipeline on a machine with 20 GB, in a process that has 0.3 GB beside them all."""
    pipes: list[Pipe] = []

    def pipe(memory: int | None = None, held: int = 0) -> Pipe:
        pipes.append(Pipe(memory, held))
        claims._holders.add(pipes[-1])
        return pipes[-1]

    def measured(memory: int | None, device: torch.device, held: int, host_memory: int | None) -> Budget:
        resident = OTHERS + sum(pipe.held_bytes + pipe.left_bytes for pipe in pipes)
        return Budget(20 * GB if memory is None else memory, resident - held)

    monkeypatch.setattr(claims, "measured_budget", measured)
    monkeypatch.setattr(claims, "_kept", 0)
    yield pipe
    assert not claims._running


@contextmanager
def running(pipe: Pipe) -> Iterator[Plan]:
    with claimed(pipe, plan_within) as (plan, _):
        yield plan


def test_one_that_runs_may_take_what_it_was_promised(machine: Callable[..., Pipe]) -> None:
    first, second = machine(4 * GB), machine(8 * GB)
    with running(first) as mine:
        assert mine.peak_bytes <= 4 * GB
        for loaded in (0, GB, 3 * GB):
            first.held_bytes = loaded
            with pytest.raises(RequestError, match="smallest budget that works is") as refused, running(second):
                pass
            named = int(str(refused.value).split()[-1].removesuffix("MB.")) * 10**6
            assert named == pytest.approx(mine.peak_bytes - OTHERS + LEAST, abs=10**7), "counted once, loaded or not"
    first.held_bytes = 0
    with running(second) as alone:
        assert alone.peak_bytes > mine.peak_bytes


def test_two_that_run_keep_the_smaller_budget_together(machine: Callable[..., Pipe]) -> None:
    small = LEAST + GB // 2
    with running(machine(small)), pytest.raises(RequestError), running(machine(100 * GB)):
        pass
    with running(machine(100 * GB)), pytest.raises(RequestError), running(machine(small)):
        pass
    both = ALL + LEAST + GB
    with running(machine(both)) as first, running(machine(100 * GB)) as second:
        assert first.keeps_all
        assert not second.keeps_all
        assert second.peak_bytes <= both


def test_what_an_idle_one_keeps_makes_way(machine: Callable[..., Pipe]) -> None:
    idle, second = machine(None, held=15 * GB), machine(4 * GB)
    with running(second) as plan:
        assert idle.held_bytes == 0
        assert plan.peak_bytes <= 4 * GB
    idle.held_bytes = GB
    with running(machine(8 * GB)) as plan:
        assert idle.held_bytes == GB, "there is room beside it"
        assert plan.peak_bytes <= 8 * GB


def test_what_it_keeps_itself_is_not_counted_twice(machine: Callable[..., Pipe]) -> None:
    pipe = machine(ALL, held=ALL - 2 * GB)
    with running(pipe) as plan:
        assert plan.keeps_all
        assert pipe.held_bytes


def test_other_devices_do_not_matter(machine: Callable[..., Pipe]) -> None:
    gpu = machine(4 * GB)
    gpu.device = torch.device("cuda")
    with running(gpu), running(machine(LEAST)) as plan:
        assert plan.fits


@pytest.mark.parametrize("left", [0, 40_000_000, LIBRARY_KEPT_BYTES])
def test_what_a_call_leaves_behind_is_not_counted_again(machine: Callable[..., Pipe], left: int) -> None:
    pipe, idle = machine(LEAST), machine(None, held=15 * GB)
    for _ in range(3):
        with running(pipe) as plan:
            assert plan.minimum_bytes == LEAST
            pipe.left_bytes = left
        idle.held_bytes = GB  # which is no library
    pipe.left_bytes += LIBRARY_KEPT_BYTES  # between two calls: the caller's own
    with pytest.raises(RequestError), running(pipe):
        pass


def test_no_more_counts_as_libraries_than_they_leave(machine: Callable[..., Pipe]) -> None:
    pipe = machine(LEAST)
    with running(pipe):
        pipe.left_bytes = LIBRARY_KEPT_BYTES + 1
    with pytest.raises(RequestError), running(pipe):
        pass
