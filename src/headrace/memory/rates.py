"""What a plan reckons that machines reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.quant.formats import Bits


@dataclass(frozen=True)
class Rates:
    """Operations a second in matrix products by precision, and bytes a second over the host link and from disk.

    conversion: bytes a second that become eight-bit weights of those stored otherwise.
    """

    products: Mapping[str, float]
    disk: float
    conversion: Mapping[Bits, float]
    link: float | None = None


# Constants, not measured where the plan is made: whole steps (benchmarks/steps.md) on two server cores with bf16
# instructions and their NVMe disk, and a GPU of the class of an RTX 4090 on PCIe 4.
CONVERSION: Mapping[Bits, float] = {"fp8": 0.08e9, "int8": 0.12e9}
CPU_RATES = Rates(
    {"fp32": 0.15e12, "bf16": 0.37e12, "fp8": 0.34e12, "int8": 0.52e12, "stored": 0.25e12},
    disk=2e9,
    conversion=CONVERSION,
)
GPU_RATES = Rates(
    {"fp32": 40e12, "bf16": 150e12, "fp8": 270e12, "int8": 270e12, "stored": 100e12},
    disk=2.8e9,
    conversion=CONVERSION,
    link=25e9,
)
