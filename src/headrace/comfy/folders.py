"""Where ComfyUI keeps model files: folders by kind under `models/`, and those that `extra_model_paths.yaml` adds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from headrace.comfy.graph import Graph, ModelFile, Node
from headrace.comfy.specs import SPECS
from headrace.errors import RequestError
from headrace.pictures import read_file

EXTRA_PATHS = "extra_model_paths.yaml"
MAX_EXTRA_PATHS_BYTES = 2**20

# Kinds, each with all the names its folder has had.
KINDS: Mapping[str, tuple[str, ...]] = {
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "loras": ("loras",),
}


@dataclass(frozen=True)
class ModelFolders:
    """The folders that are searched for each kind of model file, in order."""

    places: Mapping[str, tuple[Path, ...]]

    def find(self, kind: str, name: str) -> Path | None:
        """The file of that name, which may be in a sub-folder ("klein/a.safetensors", or with backslashes)."""
        relative = relative_name(name)
        return next((file for place in self.places[kind] if (file := place / relative).is_file()), None)


def relative_name(name: str) -> PurePosixPath:
    """A file name of a workflow as a path below a folder. Raises RequestError where it would lead out of the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise RequestError(f"The file name {name[:80]!r} in the workflow does not stay inside its folder.")
    return path


def model_folders(models: Path) -> ModelFolders:
    """The folders below ComfyUI's own folder or its `models`, and those that its `extra_model_paths.yaml` names.

    Raises RequestError where `models` is no folder, or the file is not what ComfyUI would read.
    """
    if not models.is_dir():
        raise RequestError(f"{models} is not a folder; name ComfyUI's, or its models folder, with --models.")
    root = models / "models" if (models / "models").is_dir() else models
    places = {kind: [root / name for name in names] for kind, names in KINDS.items()}
    for file in (root / EXTRA_PATHS, root.parent / EXTRA_PATHS):
        if file.is_file():
            for kind, place, first in _extra_places(file):
                places[kind].insert(0 if first else len(places[kind]), place)
            break
    return ModelFolders({kind: tuple(found) for kind, found in places.items()})


def _extra_places(file: Path) -> Iterator[tuple[str, Path, bool]]:
    """Kind, folder, and whether it is searched first.

    A section has `base_path`, `is_default` and, for every kind, one folder a line, relative to the base; the base is
    relative to the file.
    """
    for section, fields in _read_yaml(file).items():
        if fields is None:
            continue
        if not isinstance(fields, dict):
            raise RequestError(f"{file} has a section {str(section)[:40]!r} that is not a list of folders by kind.")
        base = _path(fields.get("base_path")) or Path()
        for kind, names in KINDS.items():
            for name in names:
                for line in str(fields.get(name) or "").splitlines():
                    if (folder := _path(line.strip())) is not None:
                        yield kind, file.parent / base / folder, fields.get("is_default") is True


def _path(value: object) -> Path | None:
    return Path(os.path.expandvars(value)).expanduser() if isinstance(value, str) and value else None


def _read_yaml(file: Path) -> dict[Any, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        document = yaml.safe_load(read_file(file, "file", MAX_EXTRA_PATHS_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{file} is not valid YAML.") from error
    if not isinstance(document, dict):
        raise RequestError(f"{file} has no sections with folders.")
    return document


@dataclass(frozen=True)
class WantedFile:
    """A model file that a node names."""

    node: Node
    kind: str
    name: str


def wanted_files(graph: Graph) -> Iterator[WantedFile]:
    """The model files of a checked graph."""
    for node in graph.nodes.values():
        for entry in SPECS[node.class_type].inputs:
            name = node.inputs.get(entry.name)
            if entry.folder in KINDS and isinstance(name, str):
                yield WantedFile(node, str(entry.folder), name)


def check_files(graph: Graph, folders: ModelFolders) -> None:
    """Raises RequestError that names every model file which is not there, its folder and where the workflow gets it."""
    missing = {
        (wanted.kind, wanted.name): wanted
        for wanted in wanted_files(graph)
        if folders.find(wanted.kind, wanted.name) is None
    }
    if missing:
        described = "; ".join(_described(wanted, graph.files, folders) for wanted in missing.values())
        raise RequestError(f"The workflow needs {_number(len(missing))} not there: {described}.")


def _number(count: int) -> str:
    return "a model file that is" if count == 1 else f"{count} model files that are"


def _described(wanted: WantedFile, files: Iterable[ModelFile], folders: ModelFolders) -> str:
    source = next((file.url for file in files if file.name == wanted.name and file.folder in KINDS[wanted.kind]), None)
    said = f", from {source}" if source else ""
    return f"{wanted.name} in {folders.places[wanted.kind][0]}{said}"
