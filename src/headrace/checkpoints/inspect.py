"""What a file or folder is, from its headers and configurations alone: without torch, and without refusing anything
that can be described."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace import catalog
from headrace.checkpoints import configs
from headrace.checkpoints.components import (
    Demand,
    StoredNetwork,
    autoencoder_config,
    autoencoder_demand,
    language_model_demand,
    network_tensors,
    strangers,
    transformer_config,
    transformer_demand,
)
from headrace.checkpoints.headers import Shape, TensorEntry
from headrace.checkpoints.lora import Lora, describe_kinds, is_lora, read_lora, summary
from headrace.checkpoints.quantised import Quantised, find_quantised
from headrace.checkpoints.recognise import Found, recognise
from headrace.checkpoints.scheduler import check_scheduler
from headrace.checkpoints.shapes import STATISTICS
from headrace.checkpoints.text_encoders import gguf_config
from headrace.checkpoints.weights import Weights, expanded, read_weights
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig

Config = TransformerConfig | AutoencoderConfig | LanguageModelConfig


@dataclass(frozen=True)
class Network:
    """One network in a file. models: the catalogue's models it has the shapes of.

    config: None where the tensors do not allow to work it out. tensors: name -> dtype and shape, as stored.
    formats: the layers that are stored in fewer bits, and in which format. missing: names a whole network would have.
    unused: names it would not have. problems: sentences, for what cannot be read.
    """

    kind: str
    source: str
    layout: str
    prefix: str
    models: tuple[str, ...]
    config: Mapping[str, Any] | None
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    tensors: Mapping[str, tuple[str, Shape]]
    formats: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class LoraContent:
    """What a LoRA file holds. kinds: in words, with ranks. layers: ours that it adds to.

    layout, prefix: whose names it has for them, and what stands before these. models: the catalogue's that it fits.
    unused: tensors that cannot be applied, in words.
    """

    kinds: str
    layout: str
    prefix: str
    layers: tuple[str, ...]
    models: tuple[str, ...]
    unused: str


@dataclass(frozen=True)
class Inspection:
    """What was found at `path`.

    kind: "pipeline" for a folder in diffusers' layout, else the networks in the file, "LoRA", or "unknown".
    lora: what a LoRA for FLUX.2 holds.
    tensors: how many there are; dtypes: how many of each. unused: tensors of no known network. problems: sentences.
    """

    path: str
    kind: str
    networks: tuple[Network, ...]
    tensors: int
    bytes: int
    dtypes: Mapping[str, int]
    metadata: Mapping[str, str]
    unused: tuple[str, ...]
    problems: tuple[str, ...]
    lora: LoraContent | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def inspect(path: str | Path) -> Inspection:
    """Describes a safetensors file, or a folder of a network or of a whole pipeline.

    Raises RequestError where there is nothing to read, or a file is damaged or a pickle.
    """
    place = expanded(path)
    try:
        return _inspect(place)
    except OSError as error:
        raise RequestError(f"{error.filename or place} cannot be read: {error.strerror or error}.") from error


def _inspect(place: Path) -> Inspection:
    if (place / "model_index.json").is_file():
        return _inspect_pipeline(place)
    weights = read_weights(place)
    networks = tuple(_network(weights, found) for found in recognise(weights.tensors))
    if networks:
        kind = " and ".join(network.kind for network in networks)
    else:
        kind = "LoRA" if is_lora(weights.tensors) else "unknown"
    lora, problems = None, _absent(weights)
    if kind == "LoRA":
        try:
            lora = _lora(read_lora(weights.files[0]))
        except RequestError as error:
            problems = (*problems, str(error))
    return Inspection(
        path=str(place),
        kind=kind,
        networks=networks,
        tensors=len(weights.tensors),
        bytes=sum(entry.size for entry in weights.tensors.values()),
        dtypes=_dtypes(weights.tensors),
        metadata=weights.metadata,
        unused=strangers(weights) if networks else (),
        problems=problems,
        lora=lora,
    )


def _inspect_pipeline(folder: Path) -> Inspection:
    index = configs.read_fields(folder / "model_index.json")
    networks: list[Network] = []
    problems: list[str] = []
    unused: list[str] = []
    dtypes: Counter[str] = Counter()
    size = 0
    for part in ("transformer", "vae", "text_encoder"):
        try:
            inside = inspect(folder / part)
        except RequestError as error:
            problems.append(str(error))
            continue
        networks.extend(inside.networks)
        problems.extend(inside.problems)
        unused.extend(inside.unused)
        dtypes.update(inside.dtypes)
        size += inside.bytes
        if not inside.networks:
            problems.append(f"{folder / part} is not a network of FLUX.2.")
    try:
        check_scheduler(folder, index)
    except RequestError as error:
        problems.append(str(error))
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        problems.append(f"{folder / 'tokenizer' / 'tokenizer.json'} is missing.")
    about = {name: str(index.values[name]) for name in ("_class_name", "is_distilled") if name in index.values}
    return Inspection(
        path=str(folder),
        kind="pipeline",
        networks=tuple(networks),
        tensors=dtypes.total(),
        bytes=size,
        dtypes=dict(dtypes),
        metadata=about,
        unused=tuple(unused),
        problems=tuple(problems),
    )


def _lora(lora: Lora) -> LoraContent:
    return LoraContent(
        kinds=describe_kinds(lora.patches),
        layout=lora.layout,
        prefix=lora.prefix,
        layers=tuple(dict.fromkeys(patch.target.layer for patch in lora.patches)),
        models=lora.fitting_models(),
        unused=summary(lora.unused),
    )


def _network(weights: Weights, found: Found) -> Network:
    tensors = network_tensors(weights, found)
    problems: tuple[str, ...] = ()
    try:
        quantised = find_quantised(weights, found.prefix, tensors)
    except RequestError as error:
        quantised, problems = Quantised({}, frozenset(), ()), (str(error),)
    stored = StoredNetwork(found, tensors, quantised)
    shapes = stored.shapes
    config: Config | None = None
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    try:
        config, demand = _config_and_demand(weights, stored)
    except RequestError:
        # Without its configuration a network can still be described, but not what it lacks.
        pass
    else:
        missing = tuple(found.prefix + name for name in demand.shapes if name not in shapes)
        unused = tuple(found.prefix + name for name in shapes if name not in demand.shapes)
    return Network(
        kind=found.kind,
        source=str(weights.source),
        layout=found.layout,
        prefix=found.prefix,
        models=_models(config, shapes),
        config=None if config is None else asdict(config),
        parameters=sum(math.prod(shape) for name, shape in shapes.items() if name not in STATISTICS),
        bytes=sum(entry.size for entry in tensors.values()),
        dtypes=_dtypes(tensors),
        tensors={found.prefix + name: (entry.dtype, entry.shape) for name, entry in tensors.items()},
        formats={
            found.prefix + name.removesuffix(".weight"): matrix.form.precision
            for name, matrix in quantised.matrices.items()
        },
        missing=missing,
        unused=unused,
        problems=(*problems, *quantised.notes),
    )


def _config_and_demand(weights: Weights, stored: StoredNetwork) -> tuple[Config, Demand]:
    found = stored.found
    if found.kind == "transformer":
        transformer = transformer_config(weights, stored)
        return transformer, transformer_demand(found, transformer)
    if found.kind == "autoencoder":
        autoencoder = autoencoder_config(weights, stored)
        return autoencoder, autoencoder_demand(found, autoencoder)
    if found.layout == "llama.cpp":
        language_model, _ = gguf_config(weights.files[0])
    else:
        folder = weights.source if weights.source.is_dir() else weights.source.parent
        language_model, _ = configs.read_language_model_config(folder / "config.json")
    # Text encoders are often stored without the layers above the last one used, and then without the final norm.
    layers = min(configs.count_numbered(stored.tensors, "layers."), language_model.num_layers)
    return language_model, language_model_demand(language_model, layers)


def _models(config: Config | None, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    if isinstance(config, TransformerConfig):
        return tuple(entry.name for entry in catalog.PUBLISHED if entry.transformer == config)
    if isinstance(config, AutoencoderConfig):
        return tuple(name for name, known in catalog.AUTOENCODERS.items() if known == config)
    # A text encoder's file may come without a configuration, but no two published ones share an embedding's shape.
    embedding = shapes.get("embed_tokens.weight")
    return tuple(
        encoder.name
        for encoder in catalog.TEXT_ENCODERS
        if embedding is not None and embedding == (encoder.config.vocab_size, encoder.config.hidden_size)
    )


def _dtypes(tensors: Mapping[str, TensorEntry]) -> dict[str, int]:
    return dict(Counter(entry.dtype for entry in tensors.values()))


def _absent(weights: Weights) -> tuple[str, ...]:
    shards = sorted({shard.name for shard in weights.absent.values()})
    return (f"{weights.source} lacks {', '.join(shards)}, which its index names.",) if shards else ()
