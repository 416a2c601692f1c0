"""Pictures out of a graph: named as SaveImage names them, with the workflow inside as ComfyUI writes it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from headrace.comfy.folders import relative_name
from headrace.errors import RequestError
from headrace.pictures import encode_picture, reason, write_file
from headrace.provenance.metadata import generated_xmp

COMPRESSION = 4


@dataclass(frozen=True)
class Provenance:
    """What goes into every file. prompt: the graph in the API format; workflow: as ComfyUI's page saved it, if it did.

    model, model_hash: of what made the picture, LoRAs included; of several with commas between them.
    """

    prompt: Mapping[str, Any]
    workflow: Mapping[str, Any] | None
    model: str
    model_hash: str


def dated(prefix: str, now: datetime) -> str:
    """The prefix with the %date:yyyy-MM-dd% that ComfyUI's page replaces."""
    return re.sub("%date:([^%]+)%", lambda match: _formatted(match[1], now), prefix)


def _formatted(pattern: str, now: datetime) -> str:
    """d, M, h, m and s, doubled for two digits, yy and yyyy."""
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == "y":
            return {"yy": f"{now.year % 100:02}", "yyyy": str(now.year)}.get(text, text)
        return str(parts[text[0]]).zfill(len(text))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", part, pattern)


def save_place(prefix: str, output: Path, width: int, height: int, now: datetime) -> tuple[Path, str]:
    """Folder and beginning of the file names, from a prefix that may have sub-folders.

    %date:yyyy-MM-dd% and its like, %width%, %height%, %year%, %month%, %day%, %hour%, %minute% and %second% are
    replaced; %batch_num% is left. Raises RequestError where it would lead out of the output folder.
    """
    prefix = dated(prefix, now)
    values = {"width": str(width), "height": str(height), "year": str(now.year)}
    values |= {name: f"{getattr(now, name):02}" for name in ("month", "day", "hour", "minute", "second")}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    path = relative_name(os.path.normpath(prefix or "."))
    folder = output / path.parent
    if not folder.resolve().is_relative_to(output.resolve()):
        raise RequestError(f"The file names {prefix[:80]!r} of the workflow lead out of the output folder {output}.")
    return folder, path.name


def next_number(folder: Path, stem: str) -> int:
    """One more than the largest number that a file `stem_NUMBER_...` there has."""
    largest = 0
    try:
        names = os.listdir(folder)  # noqa: PTH208 (names are all that is needed)
    except FileNotFoundError:
        return 1
    for name in names:
        number = name[len(stem) + 1 :].split(".")[0].split("_")[0]
        if name.startswith(f"{stem}_") and re.fullmatch("[0-9]{1,9}", number):
            largest = max(largest, int(number))
    return largest + 1


def save_pictures(images: Tensor, prefix: str, output: Path, provenance: Provenance, now: datetime) -> list[Path]:
    """Writes every picture of (B, H, W, 3) in 0..1, cut off to 256 levels, and gives the paths."""
    folder, stem = save_place(prefix, output, images.shape[2], images.shape[1], now)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"The folder {folder} cannot be made ({reason(error)}).") from error
    first = next_number(folder, stem)
    text = _png_text(provenance)
    paths = []
    for index, image in enumerate(images):
        levels = (image * 255).clamp(0, 255).to(torch.uint8).numpy()
        path = folder / f"{stem.replace('%batch_num%', str(index))}_{first + index:05}_.png"
        write_file(
            path, encode_picture(Image.fromarray(levels), "PNG", {"pnginfo": text, "compress_level": COMPRESSION})
        )
        paths.append(path)
    return paths


def _png_text(provenance: Provenance) -> PngInfo:
    text = PngInfo()
    text.add_text("prompt", json.dumps(provenance.prompt))
    if provenance.workflow is not None:
        text.add_text("workflow", json.dumps(provenance.workflow))
    if provenance.model:
        text.add_itxt("XML:com.adobe.xmp", generated_xmp(provenance.model, provenance.model_hash))
    return text
