"""Where a picture came from: written into its file last, and read back.

The names below are fetched from their modules when first used; metadata alone needs no more than Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from headrace.provenance.metadata import encode_with_recipe, read_recipe, save_picture

if TYPE_CHECKING:
    from headrace.provenance.certificates import Signer, local_signer, open_signer
    from headrace.provenance.credentials import Ingredient
    from headrace.provenance.marking import Marked, mark
    from headrace.provenance.register import Register
    from headrace.provenance.verdict import Verdict, verify

__all__ = [
    "Ingredient",
    "Marked",
    "Register",
    "Signer",
    "Verdict",
    "encode_with_recipe",
    "local_signer",
    "mark",
    "open_signer",
    "read_recipe",
    "save_picture",
    "verify",
]

_MODULE_OF = {
    "Ingredient": "credentials",
    "Marked": "marking",
    "Register": "register",
    "Signer": "certificates",
    "Verdict": "verdict",
    "local_signer": "certificates",
    "mark": "marking",
    "open_signer": "certificates",
    "verify": "verdict",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
