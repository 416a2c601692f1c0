"""The text encoder's files: Hugging Face's folder, one file of ComfyUI's, or a GGUF file, each with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace import catalog
from headrace.catalog import TextSettings
from headrace.checkpoints import configs
from headrace.checkpoints.gguf import is_gguf, read_gguf
from headrace.checkpoints.recognise import recognise
from headrace.checkpoints.weights import Weights, read_weights
from headrace.errors import RequestError
from headrace.nn.config import LanguageModelConfig

# A tensor of bytes with Mistral's own description of its tokenizer, in ComfyUI's files.
TEKKEN = "tekken_model"

# llama.cpp's names of the language models that FLUX.2 has; files of Mistral's have its family's name as well.
GGUF_KINDS = {"qwen3": "qwen3", "llama": "mistral", "mistral3": "mistral"}


@dataclass(frozen=True)
class TextEncoderFiles:
    """A language model that has been found. source: what the user named. tokenizer: the file that holds it."""

    source: Path
    weights: Weights
    config: LanguageModelConfig
    text: TextSettings
    tokenizer: Path


def find_text_encoder(path: Path, beside: Path | None = None) -> TextEncoderFiles:
    """The text encoder at `path`.

    path: a folder with config.json, or a whole model's with such a folder in it; a safetensors or GGUF file.
    beside: a folder whose tokenizer is taken where there is no other.
    Raises RequestError where it is not one of FLUX.2's, or no tokenizer belongs to it.
    """
    if path.is_dir():
        folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
        if not (folder / "config.json").is_file():
            return _of_file(path, read_weights(folder), beside)
        config, kind = configs.read_language_model_config(folder / "config.json")
        places = (folder / "tokenizer.json", folder.parent / "tokenizer" / "tokenizer.json")
        tokenizer = _first(folder, (*places, *_in(beside)))
        return TextEncoderFiles(folder, read_weights(folder), config, _settings(kind), tokenizer)
    return _of_file(path, read_weights(path), beside)


def _of_file(path: Path, weights: Weights, beside: Path | None) -> TextEncoderFiles:
    file = weights.files[0]
    folder = file.parent
    if is_gguf(file):
        config, kind = gguf_config(file)
        places = (folder / "tokenizer.json", *_in(beside))
        tokenizer = next((place for place in places if place.is_file()), file)
        return TextEncoderFiles(path, weights, config, _settings(kind), tokenizer)
    if (folder / "config.json").is_file():
        config, kind = configs.read_language_model_config(folder / "config.json")
        text = _settings(kind)
    else:
        config, text = _published(path, weights)
    if TEKKEN in weights.tensors:
        return TextEncoderFiles(path, weights, config, text, weights.tensors[TEKKEN].file)
    places = (folder / "tokenizer.json", folder / "tokenizer" / "tokenizer.json", *_in(beside))
    return TextEncoderFiles(path, weights, config, text, _first(path, places))


def _published(path: Path, weights: Weights) -> tuple[LanguageModelConfig, TextSettings]:
    """The published text encoder that has an embedding of the shape in the file."""
    found = next((found for found in recognise(weights.tensors) if found.kind == "text encoder"), None)
    if found is None:
        raise RequestError(
            f"{path} holds no text encoder: name its file, or a folder with its config.json and tokenizer."
        )
    entry = weights.tensors.get(f"{found.prefix}embed_tokens.weight")
    for encoder in catalog.TEXT_ENCODERS:
        if entry is not None and entry.shape == (encoder.config.vocab_size, encoder.config.hidden_size):
            return encoder.config, encoder.settings
    known = ", ".join(encoder.name for encoder in catalog.TEXT_ENCODERS)
    raise RequestError(f"{path} is none of {known} by its shapes: put its config.json beside it.")


def gguf_config(file: Path) -> tuple[LanguageModelConfig, str]:
    """The language model that a GGUF file describes, and its kind, "mistral" or "qwen3".

    Raises RequestError where it is another.
    """
    read = read_gguf(file)
    family = read.fields.get("general.architecture")
    if not isinstance(family, str) or family not in GGUF_KINDS:
        raise RequestError(
            f"{file} holds a language model of the family {str(family)[:40]!r}; FLUX.2's text encoders are Mistral 3 "
            "(FLUX.2-dev) and Qwen3 (FLUX.2-klein)."
        )
    kind = GGUF_KINDS[family]
    own = {name.removeprefix(f"{family}."): value for name, value in read.fields.items()}
    if own.get("rope.scaling.type", "none") != "none":
        raise RequestError(f"{file} scales its rotary positions, which no text encoder of FLUX.2 does.")
    embedding = read.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise RequestError(f"{file} has no token embedding, so that it cannot be a text encoder.")
    fields = configs.Fields(file, own)
    heads, hidden = fields.whole("attention.head_count"), fields.whole("embedding_length")
    head_dim = fields.whole("attention.key_length", hidden // heads or 1)
    kv_heads = fields.whole("attention.head_count_kv", heads)
    if heads % kv_heads or head_dim % 2:
        raise RequestError(f"{file} has {heads} query heads for {kv_heads} key heads of {head_dim}.")
    config = LanguageModelConfig(
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        intermediate_size=fields.whole("feed_forward_length"),
        num_layers=fields.whole("block_count", at_most=configs.MAX_BLOCKS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=fields.number("rope.freq_base", configs.DEFAULT_ROPE_THETA),
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        qk_norm=kind == "qwen3",
        # Of the Llama family llama.cpp turns neighbouring channels together, and stores them so.
        paired_rotation=kind == "mistral",
        tie_word_embeddings="output.weight" not in read.tensors,
    )
    return config, kind


def _settings(kind: str) -> TextSettings:
    return catalog.MISTRAL if kind == "mistral" else catalog.QWEN


def _in(folder: Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    return folder / "tokenizer.json", folder / "tokenizer" / "tokenizer.json"


def _first(source: Path, places: tuple[Path, ...]) -> Path:
    for place in places:
        if place.is_file():
            return place
    raise RequestError(f"{source} has no tokenizer.json, neither beside it nor in {places[1].parent}.")
