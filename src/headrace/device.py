"""Which device computes, and in what precision."""

from __future__ import annotations

import torch

from headrace.errors import RequestError
from headrace.quant.formats import EIGHT_BITS, Bits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Precisions in which weights are codes; "stored" is whatever the file has.
CODED: tuple[Bits, ...] = (*EIGHT_BITS, "stored")
PRECISIONS = (*DTYPES, *EIGHT_BITS)


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
    """One of `PRECISIONS` or "stored", as asked.

    With `auto` it is what the files hold, or fp32 where the device multiplies bf16 slowly.

    stored: the precision of the transformer's file. It never depends on free memory. Raises RequestError.
    """
    if name == "auto":
        if stored in CODED and device.type != "mps":
            return stored
        return "fp32" if stored == "fp32" or not multiplies_bf16(device) else "bf16"
    if name not in DTYPES and name not in CODED:
        raise RequestError(f"There is no precision {name!r}; choose auto, {', '.join((*DTYPES, *CODED))}.")
    if name in CODED and device.type == "mps":
        raise RequestError(f"The device mps cannot hold weights in {name}; choose auto, {', '.join(DTYPES)}.")
    return name


def choose_text_precision(name: str, stored: str, transformer: str, device: torch.device) -> str:
    """As `choose_precision`, for the text encoder: with `auto` codes only where its own file holds them.

    stored: the precision of the text encoder's file; transformer: the one chosen for the transformer.
    """
    if name != "auto" or stored in CODED:
        return choose_precision(name, stored, device)
    return next(known for known, dtype in DTYPES.items() if dtype == dtype_of(transformer, device))


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of activations, and of all weights but those that are codes."""
    if precision in DTYPES:
        return DTYPES[precision]
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def bits_of(precision: str) -> Bits | None:
    """The precision of linear layers, where their weights are codes."""
    return next((bits for bits in CODED if bits == precision), None)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are at least as fast as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
