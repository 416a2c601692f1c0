"""A checkpoint of random weights in the shapes and files of a published model, so that full-size runs need no download.

The files are those of diffusers' layout, in shards; the text encoder is written up to the last layer that is used. The
tokenizer is a working one whose tokens are the 256 bytes and the template's special tokens.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from headrace.catalog import PublishedModel, Template
from headrace.checkpoints.components import BATCH_COUNT
from headrace.checkpoints.export import autoencoder_settings, transformer_settings
from headrace.checkpoints.headers import DTYPE_BITS, Shape
from headrace.checkpoints.layouts import AUTOENCODER_RULES, TRANSFORMER_RULES, to_diffusers
from headrace.checkpoints.load import TORCH_DTYPES
from headrace.checkpoints.quantised import header_notes, note_of, scale_name
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.checkpoints.write import TensorFile
from headrace.errors import RequestError
from headrace.nn.config import LanguageModelConfig
from headrace.quant.formats import FP8, INT8, Format, block_linears

SHARD_BYTES = 5 * 10**9
NETWORKS = ("transformer", "vae", "text_encoder")
DRAWN = 2**22

STORED = {"fp32": "F32", "bf16": "BF16", "fp8": "F8_E4M3", "int8": "I8"}
FORMATS: Mapping[str, Format] = {"F8_E4M3": FP8, "I8": INT8}
LARGEST = {"F8_E4M3": 448.0, "I8": 127.0}
# Of codes for values of deviation 1, of which the largest in a row is about 4.
CODE_SCALES = {dtype: 4 / largest for dtype, largest in LARGEST.items()}

SPECIAL_TOKENS: Mapping[Template, tuple[str, ...]] = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "mistral": ("<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
}


@dataclass(frozen=True)
class _Stored:
    """A tensor to be written: all values the same, or drawn with this standard deviation."""

    dtype: str
    shape: Shape
    constant: float | None = None
    deviation: float = 1.0

    @property
    def size(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_checkpoint(
    published: PublishedModel,
    folder: Path,
    precision: str,
    shard_bytes: int = SHARD_BYTES,
    networks: Collection[str] = NETWORKS,
) -> int:
    """Write the checkpoint into a new folder, a few MiB at a time, and return its bytes.

    precision: "fp32" or "bf16", or "fp8" or "int8" for the linear layers of the blocks. shard_bytes: the most a file
    holds, where no single tensor is larger. networks: those to write, by the names of their folders.
    Raises RequestError for another precision, a folder that has something in it, or a disk without the room.
    """
    if precision not in STORED:
        raise RequestError(f"There is no precision {precision!r}; choose {', '.join(STORED)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is not an empty folder; name one that does not exist yet.")
    parts = {name: tensors for name, tensors in _tensors(published, precision).items() if name in networks}
    total = sum(tensor.size for tensors in parts.values() for tensor in tensors.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < total:
            raise RequestError(f"{folder} has {free / 1e9:.3g} GB free, and the checkpoint takes {total / 1e9:.3g} GB.")
        _write_settings(published, folder, networks)
        drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0))
        for part, tensors in parts.items():
            stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            _write_shards(folder / part, stem, tensors, drawn, shard_bytes)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return total


def _tensors(published: PublishedModel, precision: str) -> dict[str, dict[str, _Stored]]:
    """The tensors of every part, by the names they are stored under."""
    layers = max(published.text_encoder.settings.layers)
    config = published.text_encoder.config
    transformer, autoencoder = transformer_shapes(published.transformer), autoencoder_shapes(published.autoencoder)
    text = language_model_shapes(config, layers=layers, norm=layers == config.num_layers)
    coded = {f"{layer}.weight" for layer in block_linears(transformer)}
    their_transformer = {
        name: (assembly.shape, assembly.parts[0].tensor in coded)
        for name, assembly in to_diffusers(TRANSFORMER_RULES, transformer).items()
    }
    coded_text = {f"{layer}.weight" for layer in block_linears(text)}
    levels = len(published.autoencoder.channels)
    their_autoencoder = {
        name: (assembly.shape, False)
        for name, assembly in to_diffusers(AUTOENCODER_RULES, autoencoder, levels).items()
        if name != BATCH_COUNT
    }
    their_text = {f"model.{name}": (shape, name in coded_text) for name, shape in text.items()}
    plain = STORED[precision] if precision in ("fp32", "bf16") else STORED["bf16"]
    parts = {"transformer": their_transformer, "vae": their_autoencoder, "text_encoder": their_text}
    return {
        part: dict(
            entry
            for name, (shape, in_codes) in tensors.items()
            for entry in _stored(name, shape, STORED[precision] if in_codes else plain)
        )
        for part, tensors in parts.items()
    }


def _stored(name: str, shape: Shape, dtype: str) -> Iterator[tuple[str, _Stored]]:
    if len(shape) < 2:
        yield name, _Stored(dtype, shape, constant=1.0)
        return
    deviation = math.prod(shape[1:]) ** -0.5
    if dtype not in CODE_SCALES:
        yield name, _Stored(dtype, shape, deviation=deviation)
        return
    yield name, _Stored(dtype, shape, deviation=1 / CODE_SCALES[dtype])
    yield scale_name(name), _Stored("F32", shape[:1], constant=deviation * CODE_SCALES[dtype])


def _write_shards(folder: Path, stem: str, tensors: Mapping[str, _Stored], drawn: Tensor, shard_bytes: int) -> None:
    shards: list[dict[str, _Stored]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.size
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        weight_map.update(dict.fromkeys(shard, file))
        coded = {name.removesuffix(".weight"): t for name, t in shard.items() if t.dtype in FORMATS}
        notes = header_notes({layer: note_of(FORMATS[t.dtype], t.shape[1]) for layer, t in coded.items()})
        with TensorFile(folder / file, {name: (t.dtype, t.shape) for name, t in shard.items()}, notes) as written:
            for name, tensor in shard.items():
                for first, values in _values(tensor, drawn):
                    written.write(name, first, values)
    if len(shards) > 1:
        total = sum(tensor.size for tensor in tensors.values())
        _save(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _values(tensor: _Stored, drawn: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The values a few MiB at a time, and the number of the first: the same draws again and again, scaled."""
    count, dtype = math.prod(tensor.shape), TORCH_DTYPES[tensor.dtype]
    if tensor.constant is not None:
        yield 0, torch.full((count,), tensor.constant, dtype=dtype)
        return
    largest = LARGEST.get(tensor.dtype, math.inf)
    values = (drawn[: min(count, DRAWN)] * tensor.deviation).clamp_(-largest, largest).to(dtype)
    for first in range(0, count, DRAWN):
        yield first, values[: min(DRAWN, count - first)]


def _write_settings(published: PublishedModel, folder: Path, networks: Collection[str]) -> None:
    config, settings = published.text_encoder.config, published.text_encoder.settings
    documents = {
        "transformer": transformer_settings(published.transformer),
        "vae": autoencoder_settings(published.autoencoder),
        "text_encoder": _language_model_settings(config, settings.template),
    }
    for network in networks:
        _save(folder / network / "config.json", documents[network])
    if "text_encoder" not in networks:
        return
    special = SPECIAL_TOKENS[settings.template]
    _tokenizer(special).save(str(_made(folder / "tokenizer" / "tokenizer.json")))
    _save(folder / "tokenizer" / "tokenizer_config.json", {"pad_token": special[0]})
    kind = "Flux2Pipeline" if published.variant == "dev" else "Flux2KleinPipeline"
    kind = "Flux2KleinKVPipeline" if published.variant == "klein-kv" else kind
    _save(folder / "model_index.json", {"_class_name": kind, "is_distilled": published.variant == "klein"})


def _language_model_settings(config: LanguageModelConfig, template: Template) -> dict[str, Any]:
    return {
        "model_type": "mistral" if template == "mistral" else "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.rms_norm_eps,
        "sliding_window": None,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _tokenizer(special: tuple[str, ...]) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*special, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def _save(file: Path, document: Mapping[str, Any]) -> None:
    _made(file).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
