"""What a checkpoint is used with: the published values, unless a headrace.json beside it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace import catalog
from headrace.catalog import PublishedModel
from headrace.checkpoints import configs, hub
from headrace.errors import RequestError
from headrace.recipe import MAX_AREA, MAX_GUIDANCE, MAX_STEPS, SIZE_STEP

FILE = "headrace.json"
NAMES = frozenset(
    {"name", "licence", "text_length", "text_layers", "steps", "guidance", "default_size", "reference_limit"}
)
MAX_TEXT_LENGTH = 4096
MAX_REFERENCES = 1000


@dataclass(frozen=True)
class Settings:
    """None stands for the value published for the checkpoint's variant or text encoder."""

    name: str
    licence: str | None
    text_length: int | None = None
    text_layers: tuple[int, ...] | None = None
    steps: int | None = None
    guidance: float | None = None
    default_size: tuple[int, int] = catalog.DEFAULT_SIZE
    reference_limit: int = catalog.REFERENCE_LIMIT
    notes: tuple[str, ...] = ()


def read_settings(folder: Path, name: str, published: PublishedModel | None) -> Settings:
    """The settings of a folder in diffusers' layout. Raises RequestError for a value that cannot be.

    name: what the model is called unless headrace.json names it.
    """
    settings = Settings(name, published.licence.name if published else hub.card_licence(folder))
    file = folder / FILE
    if not file.is_file():
        return settings
    fields = configs.read_fields(file)
    given = fields.values
    size = fields.whole_numbers("default_size", catalog.DEFAULT_SIZE)
    if len(size) != 2 or any(side % SIZE_STEP for side in size) or size[0] * size[1] > MAX_AREA:
        raise RequestError(
            f"{file} sets default_size to {list(size)}, which is not a width and a height, multiples of {SIZE_STEP} "
            f"with at most {MAX_AREA:,} pixels."
        )
    layers = fields.whole_numbers("text_layers", at_least=0) if "text_layers" in given else None
    surplus = ", ".join(sorted(set(given) - NAMES))
    return Settings(
        name=fields.text("name", name),
        licence=fields.text("licence") if "licence" in given else settings.licence,
        text_length=fields.whole("text_length", at_most=MAX_TEXT_LENGTH) if "text_length" in given else None,
        text_layers=layers,
        steps=fields.whole("steps", at_most=MAX_STEPS) if "steps" in given else None,
        guidance=fields.number("guidance", at_most=MAX_GUIDANCE) if "guidance" in given else None,
        default_size=(size[0], size[1]),
        reference_limit=fields.whole("reference_limit", catalog.REFERENCE_LIMIT, at_most=MAX_REFERENCES),
        notes=(f"{file} holds settings that are not known and were not used: {surplus}.",) if surplus else (),
    )
