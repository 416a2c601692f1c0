"""Where a picture came from: written into its file last, and read back."""

from __future__ import annotations

from headrace.provenance.metadata import encode_with_recipe, read_recipe, save_picture

__all__ = ["encode_with_recipe", "read_recipe", "save_picture"]
