"""Bytes: how a person writes them, and what the networks take in each precision. Without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from headrace.checkpoints.headers import Shape
from headrace.errors import RequestError
from headrace.quant.formats import Format, format_bytes

FACTORS = {
    unit.lower(): base**power
    for base, units in ((1000, ("B", "kB", "MB", "GB", "TB")), (1024, ("B", "KiB", "MiB", "GiB", "TiB")))
    for power, unit in enumerate(units)
}
SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?) ?([a-z]+)", re.ASCII | re.IGNORECASE)
MAX_BYTES = 2**53

BLOCK = re.compile(r"((?:double_blocks|single_blocks|layers)\.\d+)\..+")


def parse_bytes(size: str | int) -> int:
    """`"12GB"` (10^9), `"12GiB"` (2^30), `"1.5GB"`, `"123456B"`, or a plain number of bytes from Python.

    Raises RequestError for anything else, for nothing at all, and for more than 2^53.
    """
    count = size if isinstance(size, int) else _count(size)
    if not 0 < count <= MAX_BYTES:
        raise RequestError(f"{size!r} is no amount of memory that a machine has; write it like 12GB or 12GiB.")
    return count


def _count(size: str) -> int:
    match = SIZE.fullmatch(size.strip())
    if match is None or match.group(2).lower() not in FACTORS:
        raise RequestError(f"{size[:40]!r} is not an amount of memory; write it like 12GB, 12GiB or 123456B.")
    return int(Fraction(match.group(1)) * FACTORS[match.group(2).lower()])


@dataclass(frozen=True)
class NetworkSizes:
    """Bytes of a network: of each block in the order they run, of the token embedding, and of everything else."""

    blocks: tuple[int, ...]
    embedding: int
    rest: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.embedding + self.rest


def network_sizes(shapes: Mapping[str, Shape], formats: Mapping[str, Format], value_bytes: int) -> NetworkSizes:
    """What a network with tensors of these names and shapes takes in memory.

    formats: its layers that are codes; everything else takes `value_bytes` a value.
    """
    blocks: dict[str, int] = {}
    embedding = rest = 0
    for name, shape in shapes.items():
        size = format_bytes(formats.get(name.removesuffix(".weight")), shape, value_bytes)
        match = BLOCK.fullmatch(name)
        if match is not None:
            blocks[match.group(1)] = blocks.get(match.group(1), 0) + size
        elif name == "embed_tokens.weight":
            embedding = size
        else:
            rest += size
    return NetworkSizes(tuple(blocks.values()), embedding, rest)
