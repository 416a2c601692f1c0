"""Pictures out."""

from __future__ import annotations

from torch import Tensor

from headrace.comfy.session import Function, Session

PREVIEW_PREFIX = "preview"


def save_image(session: Session, images: Tensor, filename_prefix: str) -> tuple[Tensor]:
    """Every picture as a PNG file."""
    session.save(images, filename_prefix)
    return (images,)


def preview_image(session: Session, images: Tensor) -> tuple[Tensor]:
    """As `save_image`: where nobody looks on, a preview is a file too."""
    session.save(images, PREVIEW_PREFIX)
    return (images,)


WITH_SESSION: dict[str, Function] = {"SaveImage": save_image, "PreviewImage": preview_image}
