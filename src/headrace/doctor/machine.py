"""What this machine has: facts to read a report by, and to send along with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from headrace import __version__
from headrace.device import multiplies_bf16
from headrace.doctor.finding import Finding, Subject, measured, told
from headrace.doctor.precisions import label
from headrace.memory.process import available_bytes

# Instructions that products in bf16 and int8 are made of; torch's names for them.
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "neon", "sve")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def devices() -> list[torch.device]:
    """All that torch can compute on, the CPU first."""
    found = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    return [*found, torch.device("mps")] if torch.backends.mps.is_available() else found


def machine_facts(folder: Path) -> Iterator[Finding]:
    """folder: where models are read from."""
    versions = f"headrace {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    yield told(Subject("software"), f"{versions}, {platform.platform()}")
    capabilities = torch.cpu.get_capabilities()
    has = [name for name in INSTRUCTIONS if capabilities.get(name)]
    name = capabilities.get("cpu_name") or platform.machine()
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    yield told(Subject("processor", "cpu"), f"{name}, {threads}, {', '.join(has) or 'no vector instructions'}")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield measured(Subject("memory", "cpu"), total, "bytes")
    yield measured(Subject("free memory", "cpu"), available_bytes(), "bytes", "within this process's limits")
    yield measured(Subject("free disk"), shutil.disk_usage(folder).free, "bytes", str(folder))


def gpu_facts(device: torch.device) -> Iterator[Finding]:
    """device: one of CUDA's (or of AMD's ROCm, which torch calls the same), or mps."""
    if device.type == "mps":
        yield told(Subject("processor", "mps"), f"{platform.processor() or platform.machine()}, Metal")
        return
    properties = torch.cuda.get_device_properties(device)
    toolkit = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
    driver = _driver_version()
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    abilities = [
        f"bf16 {'multiplied' if multiplies_bf16(device) else 'emulated'}",
        label("fp8", device),
    ]
    facts = [properties.name, toolkit, *([f"driver {driver}"] if driver else []), f"compute capability {capability}"]
    yield told(Subject("processor", str(device)), ", ".join((*facts, *abilities)))
    free, total = torch.cuda.mem_get_info(device)
    yield measured(Subject("memory", str(device)), total, "bytes")
    yield measured(Subject("free memory", str(device)), free, "bytes")


def _driver_version() -> str | None:
    """NVIDIA's, where its kernel module tells."""
    try:
        match = re.search(r"\d+\.\d+(?:\.\d+)?", NVIDIA_DRIVER.read_text(errors="replace"))
    except OSError:
        return None
    return match.group() if match else None
