"""What identifies a checkpoint's weights, for the recipe inside a picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from headrace.checkpoints.open import Checkpoint
from headrace.errors import RequestError

WHOLE_FILE_BYTES = 64 * 2**20
SAMPLES = 64
SAMPLE_BYTES = 2**20

_known: dict[tuple[Path, int, int], bytes] = {}
_known_whole: dict[tuple[Path, int, int], str] = {}


def digest(checkpoint: Checkpoint) -> str:
    """ "sha256:" and the hash of everything on disk that shapes a picture: weights, configurations, and the tokenizer
    with its own configuration, which names the pad token.

    A file up to 64 MiB counts with its whole content. A larger one counts with its size, its first MiB (where the
    header is) and 64 evenly spaced samples of 1 MiB, so that the largest model takes a second: another fine-tune
    gives another hash, but a file forged to collide would not be noticed. Names and places of files do not count.
    """
    total = hashlib.sha256()
    language_model = asdict(checkpoint.language_model_config)
    if not language_model["paired_rotation"]:
        del language_model["paired_rotation"]  # which older versions did not know: their pictures' hashes stay true
    shapes = {
        "transformer": asdict(checkpoint.transformer_config),
        "autoencoder": asdict(checkpoint.autoencoder_config),
        "language_model": language_model,
        "text": asdict(checkpoint.text),
        "variant": checkpoint.variant,
    }
    total.update(json.dumps(shapes, sort_keys=True).encode())
    for part in (checkpoint.transformer, checkpoint.autoencoder, checkpoint.language_model):
        for file in part.files:
            total.update(file_digest(file))
    total.update(file_digest(checkpoint.tokenizer_file))
    tokenizer_config = checkpoint.tokenizer_file.with_name("tokenizer_config.json")
    if tokenizer_config.is_file():
        total.update(file_digest(tokenizer_config))
    return f"sha256:{total.hexdigest()}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's whole content, in hexadecimal as `sha256sum` prints it; remembered until the file changes."""
    try:
        status = path.stat()
        key = (path.resolve(), status.st_size, status.st_mtime_ns)
        if key not in _known_whole:
            with path.open("rb") as file:
                _known_whole[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _known_whole[key]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's size and content, or of samples of a large one; remembered until the file changes."""
    try:
        status = path.stat()
        key = (path.resolve(), status.st_size, status.st_mtime_ns)
        if key not in _known:
            _known[key] = _hash(path, status.st_size)
        return _known[key]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error


def _hash(path: Path, size: int) -> bytes:
    result = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            while piece := file.read(SAMPLE_BYTES):
                result.update(piece)
        else:
            result.update(file.read(SAMPLE_BYTES))
            for index in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * (index + 1) // SAMPLES)
                result.update(file.read(SAMPLE_BYTES))
    return result.digest()
