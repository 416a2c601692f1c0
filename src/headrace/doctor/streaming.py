"""A model read from disk block by block within the smallest budget, beside the same model held in memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.checkpoints import Checkpoint
from headrace.device import choose_precision, multiplies_bf16
from headrace.doctor.finding import Finding, Subject, judged, told
from headrace.memory.budget import measured_budget
from headrace.memory.plan import CONTEXT_BYTES, Plan, Work, describe_checkpoint, plan_work
from headrace.memory.process import peak_bytes, return_freed_memory, trim
from headrace.pipeline import Pipeline

WIDTH, HEIGHT, STEPS = 256, 256, 2
# What else the process may take while it runs, such as the report itself.
ALLOWANCE = 16 * 10**6
PEAK_RESET = Path("/proc/self/clear_refs")

REMEDY = "Do not use --memory on this device, and send this report to Headrace's authors."


def streaming_findings(open_model: Callable[[], Checkpoint], device: torch.device) -> Iterator[Finding]:
    """Whether the pictures are the same, the reader has ended, and the peak has kept the budget."""
    precision = choose_precision("auto", "bf16", device)
    subject = Subject("streaming", str(device), precision)
    if device.type == "mps":
        yield told(subject, "mps takes no memory budget: models are held in memory whole")
        return
    checkpoint = open_model()
    expected = _picture(checkpoint, device, precision, None)
    _release()
    plan = smallest_plan(checkpoint, device, precision)
    budget = plan.minimum_bytes + ALLOWANCE
    threads = set(threading.enumerate())
    tells_peak = _reset_peak(device)
    made = _picture(checkpoint, device, precision, budget)
    peak = _peak(device)
    differing = int((made != expected).sum())
    streamed = f"{plan.components['transformer'].streamed_bytes / 1e6:.0f} MB read in every step"
    yield judged(subject, differing, "values", 0, REMEDY, streamed)

    left = len(set(threading.enumerate()) - threads)
    yield judged(Subject("streaming, threads left", str(device), precision), left, "threads", 0, REMEDY)

    subject = Subject("streaming, peak memory", str(device), precision)
    if tells_peak:
        remedy = "Name a budget below what is free, by as much as this one was exceeded."
        yield judged(subject, peak, "bytes", budget, remedy)
    else:
        yield told(subject, "this system does not tell the peak of a part of a run")


def smallest_plan(checkpoint: Checkpoint, device: torch.device, precision: str) -> Plan:
    """The plan of the picture here and now, in the smallest budget that works."""
    model, work = describe_checkpoint(checkpoint), [Work(WIDTH, HEIGHT)]
    nothing = measured_budget(1, device, held=0)
    return plan_work(model, work, nothing, precision, multiplies_bf16=multiplies_bf16(device))


def _picture(checkpoint: Checkpoint, device: torch.device, precision: str, memory: int | None) -> np.ndarray[Any, Any]:
    pipeline = Pipeline(checkpoint, precision, str(device), memory=memory)
    return np.asarray(pipeline.generate("a self-test", size=(WIDTH, HEIGHT), steps=STEPS, seed=0).image)


def _release() -> None:
    gc.collect()
    return_freed_memory()
    trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reset_peak(device: torch.device) -> bool:
    """Have the peak counted from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        PEAK_RESET.write_text("5")  # proc(5): resets the peak resident set
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int:
    return CONTEXT_BYTES + torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes()
