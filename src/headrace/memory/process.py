"""The memory of this process and of this machine, as the operating system counts it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

# mallopt's parameters (malloc.h), and from what size on a block of memory comes from the system and goes back to it.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_BYTES = 2**20

CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """The resident set of this process; its peak so far where the system does not tell the present one."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The largest resident set this process has had."""
    try:
        # Not the resource usage, which counts the process that this one was started from.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes


def forget_peak() -> None:
    """Have `peak_bytes` count from now on, where the system can (Linux); elsewhere it goes on from what it was."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int:
    """What this process could take in addition: the machine's free memory, or what its control group leaves."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(available, _left_to_group(available))


def _left_to_group(otherwise: int) -> int:
    try:
        limit = int((CGROUP / "memory.max").read_text())
        return max(0, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return otherwise


def return_freed_memory() -> None:
    """Have glibc give freed tensors back to the system at once, so that the resident set is what is in use.

    By default it learns to keep blocks of up to 32 MB for later, which a budget would have to allow for.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
            library.mallopt(M_TRIM_THRESHOLD, MAPPED_BYTES)


def trim() -> None:
    """Give back what is free between small blocks."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
