"""The 64 bits of a watermark: an identifier of 16 bits, spread over a code so that wrong bits can be told.

The code is the binary BCH code (63, 16) extended by a parity bit: any two of its words differ in at least 24 bits (S.
Lin, D. J. Costello, "Error Control Coding", appendix C). It has so few words that the nearest is found by comparing
with all of them, which corrects as much as any decoder can; that is why no library for such codes is used.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTIFIER_BITS = 16
WORD_BITS = 64
MAX_WRONG_BITS = 6
"""A word of random bits is so near to one of the code's with a chance of 3.0e-7 (`chance`)."""

_GENERATOR = 0o6331141367235453
# Added to every word, so that what is all zeros, all ones or a simple pattern is no word of the code.
_WHITENING = 0x9D3A6E5C1B87F024


def encode(identifier: int) -> NDArray[np.bool_]:
    """(64,) the word of an identifier from 0 to 65,535."""
    return np.unpackbits(_words()[identifier : identifier + 1].astype(">u8").view(np.uint8)).astype(np.bool_)


def decode(bits: NDArray[np.bool_]) -> tuple[int, int]:
    """(64,) -> the identifier whose word is nearest, and how many of the bits are wrong if it was that one."""
    word = np.packbits(bits).view(">u8").astype(np.uint64)
    wrong = np.bitwise_count(_words() ^ word)
    nearest = int(wrong.argmin())
    return nearest, int(wrong[nearest])


@cache
def _words() -> NDArray[np.unsignedinteger[Any]]:
    """(65536,) the word of each identifier."""
    words = np.arange(2**IDENTIFIER_BITS, dtype=np.uint64) << np.uint64(WORD_BITS - 1 - IDENTIFIER_BITS)
    remainders = words.copy()
    for bit in range(WORD_BITS - 2, WORD_BITS - 2 - IDENTIFIER_BITS, -1):
        leads = (remainders >> np.uint64(bit)) & np.uint64(1)
        remainders ^= leads * np.uint64(_GENERATOR << (bit + IDENTIFIER_BITS + 1 - WORD_BITS))
    words |= remainders
    parity = np.bitwise_count(words).astype(np.uint64) & np.uint64(1)
    return ((words << np.uint64(1)) | parity) ^ np.uint64(_WHITENING)
