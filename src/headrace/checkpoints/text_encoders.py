"""The text encoder's files: Hugging Face's folder, one file of ComfyUI's, or a GGUF file, each with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from headrace import catalog
from headrace.catalog import TextSettings
from headrace.checkpoints import configs
from headrace.checkpoints.components import find_network
from headrace.checkpoints.gguf import is_gguf, read_gguf
from headrace.checkpoints.headers import Shape
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
    config = weights.files[0].with_name("config.json")
    return text_encoder_in_file(path, weights, config if config.is_file() else None, beside)


def text_encoder_in_file(
    path: Path, weights: Weights, config_file: Path | None = None, beside: Path | None = None
) -> TextEncoderFiles:
    """As `find_text_encoder`, of one file, whose shapes tell what it is where there is no configuration.

    A folder with the name of the file, beside it, may have its configuration and its tokenizer, which is else in the
    file or in the file's folder.
    """
    file = weights.files[0]
    folder = file.with_suffix("")
    own = folder / "tokenizer.json"
    config_file = folder / "config.json" if (folder / "config.json").is_file() else config_file
    places = (own, file.with_name("tokenizer.json"), file.with_name("tokenizer") / "tokenizer.json", *_in(beside))
    if is_gguf(file):
        config, kind = gguf_config(file)
        tokenizer = next((place for place in places if place.is_file()), file)
        return TextEncoderFiles(path, weights, config, _settings(kind), tokenizer)
    if config_file is not None:
        config, kind = configs.read_language_model_config(config_file)
        text = _settings(kind)
    else:
        config = infer_language_model_config(path, find_network(weights, "text encoder").shapes)
        text = catalog.QWEN if config.qk_norm else catalog.MISTRAL
    if TEKKEN in weights.tensors and not own.is_file():
        return TextEncoderFiles(path, weights, config, text, weights.tensors[TEKKEN].file)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RequestError(
            f"{path} comes without its tokenizer: put the tokenizer.json of the model it is from into {folder}."
        )
    return TextEncoderFiles(path, weights, config, text, found)


def infer_language_model_config(source: Path, stored: Mapping[str, Shape]) -> LanguageModelConfig:
    """Works out a text encoder's configuration from the shapes of its tensors, by Hugging Face's names without prefix.

    With the embedding of a published one it is that. Of others Mistral's head dimension, and what no tensor shows, are
    the published model's; without a final norm the file was cut off above the layers that FLUX.2 reads, so that there
    is at least one layer more in the model.
    Raises RequestError where the shapes are no Mistral's and no Qwen3's.
    """

    def size(name: str, axis: int) -> int:
        shape = stored.get(name, ())
        if len(shape) <= axis or not shape[axis]:
            raise RequestError(f"{source} is no text encoder of FLUX.2: it has no {name} of the right shape.")
        return shape[axis]

    vocabulary, hidden = (size("embed_tokens.weight", axis) for axis in (0, 1))
    for encoder in catalog.TEXT_ENCODERS:
        if (vocabulary, hidden) == (encoder.config.vocab_size, encoder.config.hidden_size):
            return encoder.config
    layers = configs.count_numbered(stored, "layers.")
    if not 0 < layers <= configs.MAX_BLOCKS:
        raise RequestError(f"{source} is no text encoder of FLUX.2: it has {layers} layers.")
    qk_norm = "layers.0.self_attn.q_norm.weight" in stored
    like = (catalog.QWEN3_4B if qk_norm else catalog.MISTRAL_SMALL).config
    head_dim = size("layers.0.self_attn.q_norm.weight", 0) if qk_norm else like.head_dim
    queries, keys = size("layers.0.self_attn.q_proj.weight", 0), size("layers.0.self_attn.k_proj.weight", 0)
    if queries % head_dim or keys % head_dim or queries % keys:
        raise RequestError(
            f"{source} is none of the published text encoders, and its attention has {queries} rows for {keys}, which "
            f"does not tell its heads: put its config.json into {source.with_suffix('')}."
        )
    return replace(
        like,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=size("layers.0.mlp.gate_proj.weight", 0),
        num_layers=layers if "norm.weight" in stored else layers + 1,
        num_heads=queries // head_dim,
        num_kv_heads=keys // head_dim,
        head_dim=head_dim,
        tie_word_embeddings="lm_head.weight" not in stored,
    )


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
