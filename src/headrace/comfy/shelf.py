"""Workflows that are ready to run: Headrace's own, and those in ComfyUI's package of templates if it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.errors import RequestError
from headrace.pictures import read_file

OWN = Path(__file__).parent / "templates"
# Holds the workflows of the package `comfyui-workflow-templates`.
PACKAGE = "comfyui_workflow_templates_json"
MAX_BYTES = 16 * 2**20
# Every local workflow for FLUX.2 has one of these nodes, and no other workflow does.
_MARKS = (b'"Flux2Scheduler"', b'"EmptyFlux2LatentImage"')


@dataclass(frozen=True)
class Template:
    """One workflow file. source: "headrace", or the package it is from."""

    name: str
    description: str
    source: str
    file: Path


def templates() -> list[Template]:
    """All templates by name, Headrace's own first. A package that is damaged counts as not installed."""
    own = [Template(file.stem, _own_description(file), "headrace", file) for file in sorted(OWN.glob("*.json"))]
    return own + sorted(_installed(), key=lambda template: template.name)


def find_template(name: str) -> Template:
    """Raises RequestError where there is none of that name."""
    known = templates()
    for template in known:
        if template.name == name:
            return template
    raise RequestError(f"There is no template {name[:80]!r}; choose {', '.join(template.name for template in known)}.")


def read_template(template: Template) -> bytes:
    """The workflow as its file has it."""
    return read_file(template.file, "template", MAX_BYTES)


def _own_description(file: Path) -> str:
    description = _json(file).get("extra", {}).get("description", "")
    return str(description)


def _installed() -> Iterator[Template]:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent / "templates"
    titles = dict(_titles(folder / "index.json"))
    for file in folder.glob("*.json"):
        if titles.get(file.stem) and any(mark in read_file(file, "template", MAX_BYTES) for mark in _MARKS):
            yield Template(file.stem, titles[file.stem], PACKAGE, file)


def _titles(index: Path) -> Iterator[tuple[str, str]]:
    """Name and title of every template that needs no service."""
    categories = _json(index) if index.is_file() else []
    for category in categories if isinstance(categories, list) else ():
        for entry in category.get("templates", ()):
            if entry.get("openSource") is not False:
                yield str(entry.get("name")), str(entry.get("title") or entry.get("name"))


def _json(file: Path) -> Any:
    return json.loads(read_file(file, "template", MAX_BYTES))
