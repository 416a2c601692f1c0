"""Which device computes, and in what precision."""

from __future__ import annotations

import torch

from headrace.errors import RequestError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `mps`, or with `auto` the first of cuda, mps and cpu there is. Raises RequestError."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    kind = name.split(":")[0]
    if kind not in present:
        raise RequestError(f"There is no device {name!r}; choose auto, {', '.join(present)}.")
    if not present[kind]:
        raise RequestError(f"This machine, or this build of torch, has no {kind} device; choose auto or cpu.")
    return torch.device(name)


def choose_precision(name: str, stored: str, device: torch.device) -> str:
    """`fp32` or `bf16` as asked; with `auto` what the files hold, or fp32 where the device multiplies bf16 slowly.

    stored: the precision of the transformer's file. It never depends on free memory. Raises RequestError.
    """
    if name == "auto":
        return "fp32" if stored == "fp32" or not multiplies_bf16(device) else "bf16"
    if name not in PRECISIONS:
        raise RequestError(f"There is no precision {name!r}; choose auto, {', '.join(PRECISIONS)}.")
    return name


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are at least as fast as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
