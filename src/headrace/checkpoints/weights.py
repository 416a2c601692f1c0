"""The tensors of one component, found in a file, a folder, or the shards an index names. Nothing is loaded here.

Files are safetensors or GGUF, which their first bytes tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headrace.checkpoints.gguf import is_gguf, read_gguf_header
from headrace.checkpoints.headers import PICKLE_SUFFIXES, TensorEntry, read_header
from headrace.errors import RequestError

INDEX_SUFFIX = ".safetensors.index.json"
MAX_JSON_BYTES = 64 * 2**20
MAX_SHARDS = 1000


@dataclass(frozen=True)
class Weights:
    """Every tensor of some files. `absent`: names an index puts into a shard that is not there, and that shard.

    headers: what each of the files says of itself.
    """

    source: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]
    headers: tuple[Mapping[str, str], ...]
    absent: Mapping[str, Path]

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves; of what several say differently, the last one's."""
        return {name: text for header in self.headers for name, text in header.items()}


def expanded(path: str | Path) -> Path:
    """The path with ~ replaced. Raises RequestError where there is no such user, or the text is empty."""
    if path == "":  # which would otherwise be the current directory
        raise RequestError("A model or one of its parts was named by an empty text; name a file or folder.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{path} names the home of a user who is not known.") from error


def read_weights(path: Path) -> Weights:
    """Reads the headers of the safetensors or GGUF file, or of those in the folder, at `path`.

    Raises RequestError when there are none, when it is not clear which is meant, or when one is damaged.
    """
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file():
            return _of_index(path) if path.name.endswith(INDEX_SUFFIX) else _of_files(path, (path,), {})
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error
    raise RequestError(f"{path} is neither a file nor a folder.")


def _of_folder(path: Path) -> Weights:
    index = _one_of(path, INDEX_SUFFIX)
    if index is not None:
        return _of_index(index)
    for suffix in (".safetensors", ".gguf"):
        file = _one_of(path, suffix)
        if file is not None:
            return _of_files(path, (file,), {})
    if any(entry.suffix.lower() in PICKLE_SUFFIXES for entry in path.iterdir()):
        raise RequestError(
            f"{path} holds its weights as pickles, which can run any code when opened: use the .safetensors version."
        )
    raise RequestError(f"{path} holds no .safetensors file, and no .gguf.")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a configuration file. Raises RequestError when it is not one."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise RequestError(f"{path} is larger than any configuration: {path.stat().st_size} bytes.")
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing.") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid JSON.") from error
    if not isinstance(document, dict):
        raise RequestError(f"{path} is not a JSON object.")
    return document


def _one_of(folder: Path, suffix: str) -> Path | None:
    """The published name where it is there, else the only file with this ending."""
    for stem in ("diffusion_pytorch_model", "model"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    found = sorted(entry for entry in folder.iterdir() if entry.name.endswith(suffix) and entry.is_file())
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found[:4])
        raise RequestError(f"{folder} holds several files that could be meant ({names}): name the file itself.")
    return found[0] if found else None


def _of_index(index: Path) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RequestError(f"{index} is not an index of shards: it has no weight_map.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise RequestError(f"{index} names a shard that is not a .safetensors file beside it: {shard[:80]!r}.")
    if len(shards) > MAX_SHARDS:
        raise RequestError(f"{index} names {len(shards)} shards, more than any published model.")
    present = tuple(index.parent / shard for shard in shards if (index.parent / shard).is_file())
    there = {file.name for file in present}
    absent = {name: index.parent / shard for name, shard in weight_map.items() if shard not in there}
    return _of_files(index.parent, present, absent)


def _of_files(source: Path, files: tuple[Path, ...], absent: Mapping[str, Path]) -> Weights:
    tensors: dict[str, TensorEntry] = {}
    headers: list[Mapping[str, str]] = []
    for file in files:
        header = read_gguf_header(file) if is_gguf(file) else read_header(file)
        for name, entry in header.tensors.items():
            if name in tensors:
                raise RequestError(f"{file} and {tensors[name].file.name} both hold {name!r}.")
            tensors[name] = entry
        headers.append(header.metadata)
    return Weights(source, files, tensors, tuple(headers), absent)
