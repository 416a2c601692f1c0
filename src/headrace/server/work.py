"""What a job is asked for: one picture, resolved to numbers, the same in every dialect."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Work:
    """One picture to make. References, image and mask are names in the store of inputs (see `files`).

    output_format: PNG, JPEG or WEBP. safety_tolerance: 0 (strict) to 5. steps, guidance: the model's where None.
    outpaint: (left, top, right, bottom) in pixels. strength: of an edit, 0 to 1.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float | None = None
    references: tuple[str, ...] = ()
    output_format: str = "JPEG"
    safety_tolerance: int = 2
    image: str | None = None
    mask: str | None = None
    outpaint: tuple[int, int, int, int] | None = None
    strength: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        values: dict[str, Any] = json.loads(text)
        values["references"] = tuple(values["references"])
        if values["outpaint"] is not None:
            values["outpaint"] = tuple(values["outpaint"])
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all pictures it was given."""
        return (*self.references, *(name for name in (self.image, self.mask) if name is not None))

    @property
    def batch_key(self) -> tuple[int, int, int, float | None] | None:
        """Jobs of one key can run together, bit for bit as they would alone; None runs alone."""
        return None if self.inputs else (self.width, self.height, self.steps, self.guidance)

    @property
    def units(self) -> float:
        """How much there is to compute, relatively: steps times tokens (of 16x16 pixels; references as of 1 MP)."""
        return self.steps * (512 + self.width * self.height / 256 + 4096 * len(self.references))
