"""Model folders from the Hugging Face hub: whole, resumed where a download broke off, and only the files needed."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import HeadraceError, RequestError


def page(hub_id: str) -> str:
    """Where a person reads about a repository and accepts its licence."""
    return f"https://huggingface.co/{hub_id}"


def fetch(hub_id: str) -> tuple[Path, bool]:
    raise NotImplementedError
