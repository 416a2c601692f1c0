"""What a picture file says of where it came from, what its pixels say, and whether that can be believed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.errors import RequestError
from headrace.pictures import MAX_FILE_BYTES, open_bounded, open_picture, read_file
from headrace.provenance.certificates import MAX_PEM_BYTES, local_authority
from headrace.provenance.credentials import MEDIA_TYPES, WATERMARK_ALGORITHM, Signature, read_signature
from headrace.provenance.dwt_dct import carries_bfl_watermark
from headrace.provenance.fingerprint import fingerprint, to_iscc
from headrace.provenance.marking import recipe_identifier
from headrace.provenance.metadata import recipe_of, source_type_of
from headrace.provenance.register import Match, Register
from headrace.provenance.watermark import Watermark, read_watermark
from headrace.recipe import Recipe


@dataclass(frozen=True)
class Verdict:
    """All that is known of a picture file.

    source_type: IPTC's, as the metadata state it; anybody can write that. signature: None where there is none. recipe:
    as the file has it; recipe_problem: why it cannot be read. watermark: None where none is found, or watermark_problem
    says why none can be. watermark_names_recipe: whether its identifier is the one that `mark` derives from this
    recipe; None where there is no recipe or no watermark. bfl_watermark: the fixed one of Black Forest Labs' command
    line. fingerprint: ISCC, of the pixels as they are. matches: of the register, None where none was asked.
    """

    path: str
    width: int
    height: int
    source_type: str | None
    signature: Signature | None
    signature_problem: str
    recipe: Recipe | None
    recipe_problem: str
    watermark: Watermark | None
    watermark_problem: str
    watermark_names_recipe: bool | None
    bfl_watermark: bool
    fingerprint: str
    matches: tuple[Match, ...] | None

    @property
    def broken(self) -> bool:
        """Whether the file says of itself what is not so: its signature is broken, or marks disagree."""
        return (self.signature is not None and self.signature.state == "broken") or bool(self.disagreements)

    @property
    def disagreements(self) -> tuple[str, ...]:
        """Sentences about marks of one file that contradict each other."""
        said = []
        declared = dict(self.signature.bindings if self.signature else ())
        mark = declared.get(WATERMARK_ALGORITHM)
        if self.watermark is not None and mark is not None and mark != f"{self.watermark.identifier:04x}":
            said.append(f"The signature declares watermark {mark}, the pixels carry {self.watermark.identifier:04x}.")
        return tuple(said)

    def as_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        values = asdict(self) | {"broken": self.broken, "disagreements": list(self.disagreements)}
        if self.watermark is not None:
            values["watermark"]["identifier"] = f"{self.watermark.identifier:04x}"
        if self.matches is not None:
            values["matches"] = [_match(match) for match in self.matches]
        return dict(json.loads(json.dumps(values)))


def verify(
    path: str | os.PathLike[str],
    register: Register | str | os.PathLike[str] | None = None,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> Verdict:
    """What a picture file of any kind says of itself, and what its pixels say.

    register: of what was given out, or its file: asked for the picture by its looks and watermark. trust: PEM files
    with certificates of those who may vouch for a signer, beside this machine's own.

    Raises RequestError where the file is no picture, or the register is none. What cannot be looked into because the
    extra `provenance` is not installed is said in the verdict.
    """
    name = f"picture {path}"
    data = read_file(Path(path), "picture", MAX_FILE_BYTES)
    opened = open_bounded(data, name)
    image = open_picture(path, kind="picture")
    recipe, recipe_problem = None, ""
    try:
        recipe = recipe_of(opened, name)
    except RequestError as error:
        recipe_problem = str(error)
    signature, signature_problem = None, ""
    try:
        if opened.format in MEDIA_TYPES:
            signature = read_signature(data, opened.format, _authorities(trust))
    except RequestError as error:
        signature_problem = str(error)
    watermark, watermark_problem = None, ""
    try:
        watermark = read_watermark(image)
    except RequestError as error:
        watermark_problem = str(error)
    looks = fingerprint(image)
    if register is not None and not isinstance(register, Register):
        register = Register(register, create=False)
    return Verdict(
        str(path),
        *opened.size,
        source_type=source_type_of(opened),
        signature=signature,
        signature_problem=signature_problem,
        recipe=recipe,
        recipe_problem=recipe_problem,
        watermark=watermark,
        watermark_problem=watermark_problem,
        watermark_names_recipe=(
            watermark.identifier == recipe_identifier(recipe) if watermark is not None and recipe is not None else None
        ),
        bfl_watermark=carries_bfl_watermark(image),
        fingerprint=to_iscc(looks),
        matches=None
        if register is None
        else tuple(register.find(looks, None if watermark is None else watermark.identifier)),
    )


def _authorities(trust: Iterable[str | os.PathLike[str]]) -> str:
    own = local_authority()
    given = [read_file(Path(path), "certificate file", MAX_PEM_BYTES).decode(errors="replace") for path in trust]
    return "\n".join([*given, *([] if own is None else [own])])


def _match(match: Match) -> dict[str, Any]:
    entry = match.entry
    return {
        "name": entry.name,
        "made_at": entry.made_at,
        "fingerprint": to_iscc(entry.fingerprint),
        "watermark": None if entry.identifier is None else f"{entry.identifier:04x}",
        "recipe": None if entry.recipe is None else entry.recipe.as_dict(),
        "distance": match.distance,
        "same_watermark": match.same_mark,
    }
