"""The recipe: everything that determines a picture, validated once, and carried inside the file.

Nothing here needs torch, so a request that cannot be is refused before anything is loaded.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
import secrets
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from headrace.errors import RequestError

MAX_AREA = 2048 * 2048
SIZE_STEP = 16
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_STRENGTH = 100.0
MAX_FEATHER = 128
DEFAULT_FEATHER = 4
MAX_SEED = 2**64 - 1
MAX_PROMPT_CHARACTERS = 100_000
MAX_COUNT = 10_000
FITS = ("crop", "pad", "stretch")
REFERENCE_SIZES = ("auto", "full")


@dataclass(frozen=True)
class ReferenceRecord:
    """One reference as it was used: the hash of its pixels at the size the model saw."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class LoraRecord:
    """One LoRA as it was used: its file's name without ending, the SHA-256 of that file, and its strength."""

    name: str
    sha256: str
    strength: float


@dataclass(frozen=True)
class EditRecord:
    """What became of a source picture: hashes of its pixels and of the mask's, at the size at which they were used.

    mask_sha256: empty where there was no mask. left, top, right, bottom: pixels made around the source. strength: 0 to
    1. feather: in pixels.
    """

    source_sha256: str
    source_width: int
    source_height: int
    mask_sha256: str
    left: int
    top: int
    right: int
    bottom: int
    strength: float
    feather: int


@dataclass(frozen=True)
class Recipe:
    """What determines a picture. The same recipe on the same kind of device gives the same bits (DESIGN §3.1).

    text_precision: of the text encoder, where it is another than `precision`, else empty. loras: in the order in which
    they are added. edit: of a source picture; without one, both sides are multiples of a token's. fit: how source and
    references came to their sizes, and reference_size how large these could be.
    """

    model: str
    model_hash: str
    variant: str
    precision: str
    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    convention: str
    text_length: int
    version: str
    references: tuple[ReferenceRecord, ...] = ()
    compiled: bool = False
    text_precision: str = ""
    loras: tuple[LoraRecord, ...] = ()
    edit: EditRecord | None = None
    fit: str = "crop"
    reference_size: str = "auto"

    def as_dict(self) -> dict[str, Any]:
        """The recipe in plain JSON types."""
        return asdict(self) | {name: [asdict(record) for record in getattr(self, name)] for name in _RECORDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe from `as_dict`'s form. Raises RequestError where a field is missing, unknown or malformed."""
        kinds = {field.name: str(field.type) for field in fields(cls)}
        if strangers := set(values) - set(kinds):
            raise RequestError(f"The recipe has fields unknown to this version: {', '.join(sorted(strangers))}.")
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if missing := needed - set(values):
            raise RequestError(f"The recipe lacks {', '.join(sorted(missing))}, so the picture cannot be made again.")
        for name, value in values.items():
            if name not in (*_RECORDS, "edit") and not _is_a(value, kinds[name]):
                raise RequestError(f"The recipe's {name} is {value!r}, which is not of the kind {kinds[name]}.")
        records: dict[str, Any] = {name: _records(name, values.get(name, ())) for name in _RECORDS}
        if values.get("edit") is not None:
            records["edit"] = _record("edit", EditRecord, values["edit"])
        return cls(**{**values, **records})


# The fields that are lists of records, and what these are.
_RECORDS: Mapping[str, type[ReferenceRecord | LoraRecord]] = {"references": ReferenceRecord, "loras": LoraRecord}
_Record = TypeVar("_Record", bound=ReferenceRecord | LoraRecord | EditRecord)


def _is_a(value: object, kind: str) -> bool:
    """Whether a JSON value is of the kind; true and false are no numbers."""
    wanted = {"str": str, "int": int, "float": int | float, "bool": bool}[kind]
    return isinstance(value, wanted) and (kind == "bool" or not isinstance(value, bool))


def _records(name: str, values: object) -> tuple[ReferenceRecord | LoraRecord, ...]:
    if not isinstance(values, list | tuple):
        raise RequestError(f"The recipe's {name} are {values!r}, which is not a list.")
    return tuple(_record(name, _RECORDS[name], value) for value in values)


def _record(name: str, kind: type[_Record], value: object) -> _Record:
    kinds = {field.name: str(field.type) for field in fields(kind)}
    if (
        isinstance(value, Mapping)
        and set(value) == set(kinds)
        and all(_is_a(value[part], wanted) for part, wanted in kinds.items())
    ):
        return kind(**value)
    raise RequestError(f"The recipe has {value!r} as {name}, which is not a record of {', '.join(kinds)}.")


def parse_size(text: str) -> tuple[int, int]:
    """`"1024x768"` -> (1024, 768), checked as `check_size` does."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})\s*", text)  # noqa: RUF001 (people paste the real sign)
    if match is None:
        raise RequestError(f"The size {text!r} is not WIDTHxHEIGHT; write it like 1024x768.")
    return check_size(int(match[1]), int(match[2]))


def check_pair(size: object) -> tuple[int, int]:
    """(width, height) as two whole numbers. Raises RequestError."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise RequestError(f"The size {size!r} is not a pair of width and height; give two whole numbers.")
    return _whole(size[0], "width"), _whole(size[1], "height")


def check_size(width: int, height: int, multiple: int = SIZE_STEP) -> tuple[int, int]:
    """Sides that are multiples of `multiple`, up to 4 MP (2048x2048 pixels).

    Raises RequestError naming the two nearest sizes that work.
    """
    if width % multiple == 0 and height % multiple == 0 and min(width, height) > 0 and width * height <= MAX_AREA:
        return width, height
    reason = (
        "has more than 4 megapixels" if width * height > MAX_AREA else f"is not made of multiples of {multiple} pixels"
    )
    first, second = (f"{w}x{h}" for w, h in nearest_sizes(width, height, multiple))
    raise RequestError(f"The size {width}x{height} {reason}; the nearest that work are {first} and {second}.")


def nearest_sizes(width: int, height: int, multiple: int = SIZE_STEP) -> list[tuple[int, int]]:
    """The two permitted sizes nearest to (width, height), by the relative change of both sides and of their ratio."""
    width, height = max(width, 1), max(height, 1)
    shrink = min(1.0, math.sqrt(MAX_AREA / (width * height)))

    def around(side: float) -> list[int]:
        middle = min(round(side * shrink / multiple), MAX_AREA // multiple**2)
        return [multiple * (middle + offset) for offset in (-2, -1, 0, 1, 2) if middle + offset > 0]

    def change(size: tuple[int, int]) -> float:
        wider, higher = math.log(size[0] / (width * shrink)), math.log(size[1] / (height * shrink))
        return abs(wider) + abs(higher) + 2 * abs(wider - higher)

    fitting = [size for size in itertools.product(around(width), around(height)) if size[0] * size[1] <= MAX_AREA]
    return sorted(fitting, key=change)[:2]


def check_prompt(prompt: str) -> str:
    """A prompt with at least one visible character and at most 100,000. Raises RequestError."""
    if not isinstance(prompt, str):
        raise RequestError(f"The prompt {prompt!r} is not text.")
    if not prompt.strip():
        raise RequestError("The prompt is empty; say what the picture should show.")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise RequestError("The prompt holds half of a surrogate pair, which is no character; write it as UTF-8 text.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RequestError(f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read.")
    return prompt


def check_steps(steps: int) -> int:
    """1 to 1000 steps. Raises RequestError."""
    steps = _whole(steps, "number of steps")
    if not 1 <= steps <= MAX_STEPS:
        raise RequestError(f"{steps} steps cannot be taken; choose 1 to {MAX_STEPS}.")
    return steps


def check_guidance(guidance: float) -> float:
    """A finite number from 0 to 100. Raises RequestError."""
    guidance = _number(guidance, "guidance")
    if not (math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise RequestError(f"A guidance of {guidance} cannot be; choose a number from 0 to {MAX_GUIDANCE:g}.")
    return guidance


def check_strength(strength: float) -> float:
    """A LoRA's: a finite number from -100 to 100. Raises RequestError."""
    strength = _number(strength, "LoRA strength")
    if not (math.isfinite(strength) and abs(strength) <= MAX_STRENGTH):
        limit = f"{MAX_STRENGTH:g}"
        raise RequestError(f"A LoRA strength of {strength} cannot be; choose a number from -{limit} to {limit}.")
    return strength


def check_denoising_strength(strength: float) -> float:
    """Of a source: 0 (as it is) to 1 (made anew). Raises RequestError."""
    strength = _number(strength, "strength")
    if not 0 <= strength <= 1:
        raise RequestError(f"A strength of {strength} cannot be; choose a number from 0 to 1.")
    return strength


def taken_steps(steps: int, strength: float) -> int:
    """How many of the last of so many steps a source goes through: `steps * strength`, rounded up.

    As `Flux2KleinInpaintPipeline` has it, but for products that are whole and only their float is not.
    """
    return math.ceil(steps * strength - 1e-9)


def check_feather(feather: int) -> int:
    """0 to 128 pixels. Raises RequestError."""
    feather = _whole(feather, "feather")
    if not 0 <= feather <= MAX_FEATHER:
        raise RequestError(f"A feather of {feather} pixels cannot be; choose 0 to {MAX_FEATHER}.")
    return feather


def check_fit(fit: str) -> str:
    """One of `FITS`. Raises RequestError."""
    if fit not in FITS:
        raise RequestError(f"There is no fit {fit!r}; choose {', '.join(FITS)}.")
    return fit


def check_reference_size(reference_size: str, references: int) -> str:
    """auto, or full for a reference that is alone. Raises RequestError."""
    if reference_size not in REFERENCE_SIZES:
        raise RequestError(f"There is no reference size {reference_size!r}; choose {' or '.join(REFERENCE_SIZES)}.")
    if reference_size == "full" and references > 1:
        raise RequestError(f"Only one reference can have its full size, and there are {references}.")
    return reference_size


def parse_outpaint(text: str) -> tuple[int, int, int, int]:
    """`"64,0,64,0"` -> (64, 0, 64, 0), checked as `check_outpaint` does."""
    if not re.fullmatch(r"\s*[0-9]{1,6}(\s*,\s*[0-9]{1,6}){3}\s*", text):
        raise RequestError(f"The outpaint {text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels; write it like 64,0,64,0.")
    left, top, right, bottom = map(int, text.split(","))
    return check_outpaint((left, top, right, bottom))


def check_outpaint(outpaint: object) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in whole pixels, at least one of them more than 0. Raises RequestError."""
    if not isinstance(outpaint, tuple | list) or len(outpaint) != 4:
        raise RequestError(f"The outpaint {outpaint!r} is not four numbers of pixels: left, top, right, bottom.")
    left, top, right, bottom = (_whole(side, "outpaint") for side in outpaint)
    if min(left, top, right, bottom) < 0 or max(left, top, right, bottom) == 0:
        raise RequestError(
            f"The outpaint {left},{top},{right},{bottom} adds nothing; give pixels from 0, one of them more than 0."
        )
    return left, top, right, bottom


def check_seed(seed: int) -> int:
    """0 to 2**64 - 1. Raises RequestError."""
    seed = _whole(seed, "seed")
    if not 0 <= seed <= MAX_SEED:
        raise RequestError(f"The seed {seed} is out of range; choose a whole number from 0 to {MAX_SEED}.")
    return seed


def check_count(count: int) -> int:
    """1 to 10,000 pictures. Raises RequestError."""
    count = _whole(count, "number of pictures")
    if not 1 <= count <= MAX_COUNT:
        raise RequestError(f"{count} pictures cannot be made at once; choose 1 to {MAX_COUNT:,}.")
    return count


def check_reference_limit(limit: int) -> int:
    """How many references a prompt may have: none or more. Raises RequestError."""
    if _whole(limit, "limit of references") < 0:
        raise RequestError(f"A limit of {limit} references cannot be; choose 0 or more.")
    return limit


def _number(value: object, name: str) -> float:
    """A number of any real type, as a float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise RequestError(f"The {name} {value!r} is not a number.")
    return float(value)


def _whole(value: object, name: str) -> int:
    """A whole number of any integer type, as an int; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise RequestError(f"The {name} {value!r} is not a whole number.")
    return operator.index(value)


def draw_seed() -> int:
    """A fresh random seed of 32 bits, short enough to be typed again."""
    return secrets.randbits(32)
