"""What the links and products of this machine reach, beside what `headrace plan` reckons with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from headrace.bench.rates import disk_rate, forgets_cached_files, link_rates, memory_rate, product_rate
from headrace.doctor.finding import Finding, Subject, measured
from headrace.doctor.precisions import label, not_offered
from headrace.memory.rates import CPU_RATES, GPU_RATES


def disk_findings(folder: Path) -> Iterator[Finding]:
    """Reading from the disk that `folder` is on."""
    remark = f"the plan takes {CPU_RATES.disk / 1e9:g} GB/s" if forgets_cached_files() else "from the system's cache"
    yield measured(Subject("reading from disk"), disk_rate(folder), "bytes/s", remark)


def memory_findings() -> Iterator[Finding]:
    """Copying in the host's memory."""
    yield measured(Subject("copying in memory", "cpu"), memory_rate(), "bytes/s")


def gpu_links(device: torch.device) -> Iterator[Finding]:
    """Between pinned host memory and a CUDA device."""
    remark = f"the plan takes {(GPU_RATES.link or 0) / 1e9:g} GB/s"
    to_device, from_device = link_rates(device)
    yield measured(Subject("from pinned memory", str(device)), to_device, "bytes/s", remark)
    yield measured(Subject("to pinned memory", str(device)), from_device, "bytes/s")


def product_findings(precision: str, device: torch.device) -> Iterator[Finding]:
    """Products of matrices, as the transformer's linear layers run them."""
    if not_offered(precision, device) is None:
        rates = CPU_RATES if device.type == "cpu" else GPU_RATES
        remark = f"the plan takes {rates.products[precision] / 1e12:g} TFLOP/s"
        subject = Subject("products", str(device), label(precision, device))
        yield measured(subject, product_rate(device, precision), "FLOP/s", remark)
