"""One network as it is stored: where each of its tensors comes from, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.checkpoints import configs
from headrace.checkpoints.headers import FLOAT_DTYPES, Shape, TensorEntry, squeezed
from headrace.checkpoints.layouts import (
    AUTOENCODER_RULES,
    TRANSFORMER_RULES,
    Assembly,
    Rule,
    as_stored,
    from_diffusers,
    from_llama_cpp,
    our_name,
    spelled_as_ours,
    to_diffusers,
)
from headrace.checkpoints.lora import is_lora
from headrace.checkpoints.quantised import (
    FP8_DTYPES,
    Matrix,
    Quantised,
    find_quantised,
    layer_formats,
)
from headrace.checkpoints.recognise import BESIDE_LANGUAGE_MODEL, Found, Kind, own_names, recognise
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes, vision_shapes
from headrace.checkpoints.weights import Weights
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig, VisionConfig
from headrace.quant.formats import Format

# A count that batch norm keeps while it learns; nothing reads it.
BATCH_COUNT = "bn.num_batches_tracked"
# What writes and sees stands under various prefixes beside the layers (transformers 4 and 5, ComfyUI's whole files).
BESIDE_LAYERS = re.compile(
    r"(?:text_encoders\.[A-Za-z0-9_-]+\.(?:transformer\.)?|text_encoder\.)?(?:model\.|language_model\.)?"
    r"(?P<name>(?P<part>lm_head|vision_tower|multi_modal_projector)\..+)"
)
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Component:
    """How each tensor of a network is made of what is stored.

    tensors: what is stored as plain values, by its name without prefix; matrices: what is stored otherwise, by the name
    it would have. plan: our names -> rows of those. formats: our linear layers that can be kept as they are stored.
    strangers: names in the same files that belong to no network, so that they were not read. notes: sentences on how
    weights are stored, for the user.
    """

    source: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]
    matrices: Mapping[str, Matrix]
    plan: Mapping[str, Assembly]
    formats: Mapping[str, Format]
    strangers: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredNetwork:
    """A network as it lies in files: all its tensors by their names without prefix, and which of them are codes."""

    found: Found
    tensors: Mapping[str, TensorEntry]
    quantised: Quantised

    @property
    def plain(self) -> dict[str, TensorEntry]:
        """What is stored as values, whatever their precision."""
        return {name: entry for name, entry in self.tensors.items() if name not in self.quantised.owned}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the values, in whatever way they are stored."""
        return {name: entry.shape for name, entry in self.plain.items()} | {
            name: matrix.shape for name, matrix in self.quantised.matrices.items()
        }


@dataclass(frozen=True)
class Demand:
    """The shapes of what has to be stored, by name, and how our tensors are made of it."""

    shapes: Mapping[str, Shape]
    plan: Mapping[str, Assembly]


def transformer_component(weights: Weights) -> tuple[Component, TransformerConfig]:
    """The transformer among `weights`. Raises RequestError unless it is there, whole and in a format that is read."""
    stored = find_network(weights, "transformer")
    config = transformer_config(weights, stored)
    return _checked(weights, stored, stored.shapes, transformer_demand(stored.found, config)), config


def autoencoder_component(weights: Weights) -> tuple[Component, AutoencoderConfig]:
    """The autoencoder among `weights`. Raises RequestError unless it is there, whole and in a format that is read."""
    stored = find_network(weights, "autoencoder")
    config = autoencoder_config(weights, stored)
    return _checked(weights, stored, stored.shapes, autoencoder_demand(stored.found, config)), config


def language_model_component(weights: Weights, config: LanguageModelConfig, layers: int) -> Component:
    """The first `layers` layers of a language model among `weights`, with the final norm if those are all.

    Raises RequestError unless they are there, whole and in a format that is read.
    """
    stored = find_network(weights, "text encoder")
    demand = language_model_demand(config, layers)
    shapes = {
        name: shape for name, shape in stored.shapes.items() if name in demand.shapes or not _is_above(name, layers)
    }
    return _checked(weights, stored, shapes, demand)


def writer_component(weights: Weights, config: LanguageModelConfig) -> Component:
    """A whole language model among `weights`: all its layers, the final norm and the head.

    Raises RequestError unless they are there, whole and in a format that is read.
    """
    reading = find_network(weights, "text encoder")
    tensors = {**reading.tensors, **beside(weights, reading.found, ("lm_head",))}
    stored = StoredNetwork(reading.found, tensors, find_quantised(weights, reading.found.prefix, tensors))
    shapes = language_model_shapes(config, norm=True, head=True)
    held = {name: shape for name, shape in stored.shapes.items() if name in shapes or not name.startswith("lm_head")}
    return _checked(weights, stored, held, Demand(shapes, as_stored(shapes)))


def vision_component(weights: Weights, config: VisionConfig) -> Component:
    """The vision tower and projector beside a language model. Raises RequestError as `writer_component`."""
    found = replace(find_network(weights, "text encoder").found, prefix="")
    tensors = beside(weights, found, ("vision_tower", "multi_modal_projector"))
    stored = StoredNetwork(found, tensors, find_quantised(weights, "", tensors))
    shapes = vision_shapes(config)
    return _checked(weights, stored, stored.shapes, Demand(shapes, as_stored(shapes)))


def beside(weights: Weights, found: Found, parts: tuple[str, ...]) -> dict[str, TensorEntry]:
    """The tensors of these parts that stand beside a language model's layers, by their names from the part's on."""
    result: dict[str, TensorEntry] = {}
    for name, entry in weights.tensors.items():
        match = BESIDE_LAYERS.fullmatch(from_llama_cpp(name) if found.layout == "llama.cpp" else name)
        if match is not None and match["part"] in parts:
            if match["name"] in result:
                raise RequestError(f"{weights.source} holds {match['name']} twice, in two spellings.")
            result[match["name"]] = entry
    return result


def transformer_config(weights: Weights, stored: StoredNetwork) -> TransformerConfig:
    """From the config.json that belongs to the weights, else worked out from their shapes."""
    file = _config_file(weights, stored.found)
    if file is not None:
        return configs.read_transformer_config(file)
    return configs.infer_transformer_config(weights.source, _our_shapes(TRANSFORMER_RULES, stored, 0))


def autoencoder_config(weights: Weights, stored: StoredNetwork) -> AutoencoderConfig:
    """From the config.json that belongs to the weights, else worked out from their shapes."""
    file = _config_file(weights, stored.found)
    if file is not None:
        return configs.read_autoencoder_config(file)
    levels = configs.count_numbered(stored.tensors, "decoder.up_blocks.")
    return configs.infer_autoencoder_config(weights.source, _our_shapes(AUTOENCODER_RULES, stored, levels))


def transformer_demand(found: Found, config: TransformerConfig) -> Demand:
    """What has to be stored for a transformer in the layout that was found."""
    return _demand(found, TRANSFORMER_RULES, transformer_shapes(config), 0)


def autoencoder_demand(found: Found, config: AutoencoderConfig) -> Demand:
    """What has to be stored for an autoencoder in the layout that was found."""
    shapes = {name: shape for name, shape in autoencoder_shapes(config).items() if name != BATCH_COUNT}
    return _demand(found, AUTOENCODER_RULES, shapes, len(config.channels))


def language_model_demand(config: LanguageModelConfig, layers: int) -> Demand:
    """What has to be stored for the first `layers` layers of a language model."""
    shapes = language_model_shapes(config, layers=layers, norm=layers == config.num_layers)
    return Demand(shapes, as_stored(shapes))


def find_network(weights: Weights, kind: Kind) -> StoredNetwork:
    """The one network of this kind among the weights.

    Raises RequestError when there is none, or several, or when its values are in a format that is not read.
    """
    everything = recognise(weights.tensors)
    fitting = [found for found in everything if found.kind == kind]
    if not fitting:
        _refuse_absent(weights, weights.absent)
        raise RequestError(f"{weights.source} holds no FLUX.2 {kind}: it is {describe(weights)}.")
    if len(fitting) > 1:
        raise RequestError(f"{weights.source} holds several networks that could be the {kind}.")
    found = fitting[0]
    tensors = network_tensors(weights, found)
    stored = StoredNetwork(found, tensors, find_quantised(weights, found.prefix, tensors))
    unread = sorted({entry.dtype for entry in stored.plain.values()} - FLOAT_DTYPES - FP8_DTYPES)
    if unread:
        raise RequestError(
            f"{weights.source} stores its {kind} in {', '.join(unread)}, which cannot be read: "
            "use the same weights in bf16, fp16, fp32 or fp8."
        )
    return stored


def network_tensors(weights: Weights, found: Found) -> dict[str, TensorEntry]:
    """The tensors of one network, by our spelling of their names without prefix."""
    stored: dict[str, TensorEntry] = {}
    for name, full_name in own_names(found, weights.tensors, recognise(weights.tensors)).items():
        ours = name if found.layout == "diffusers" else spelled_as_ours(name)
        if found.layout == "llama.cpp":
            ours = from_llama_cpp(name)
        if ours in stored:
            raise RequestError(f"{weights.source} holds {ours} twice, in two spellings.")
        if name != BATCH_COUNT and (found.kind != "text encoder" or not BESIDE_LANGUAGE_MODEL.fullmatch(ours)):
            stored[ours] = weights.tensors[full_name]
    return stored


def describe(weights: Weights) -> str:
    """What a file seems to be, for a sentence about a file that is not what was asked for."""
    kinds = sorted({found.kind for found in recognise(weights.tensors)})
    if kinds:
        return " and ".join(f"{'an' if kind == 'autoencoder' else 'a'} {kind}" for kind in kinds)
    return "a LoRA" if is_lora(weights.tensors) else "none of FLUX.2's files"


def _our_shapes(rules: tuple[Rule, ...], stored: StoredNetwork, levels: int) -> dict[str, Shape]:
    """The shapes our tensors would have, as far as the stored names are known."""
    if stored.found.layout == "bfl":
        return stored.shapes
    shapes = {}
    for name, shape in stored.shapes.items():
        known = our_name(rules, name, levels)
        if known is not None and shape:
            rule, ours = known
            shapes[ours] = (shape[0] * len(rule.theirs), *shape[1:])
    return shapes


def _config_file(weights: Weights, found: Found) -> Path | None:
    """The configuration in a folder, or beside a file in diffusers' layout, which is only ever half of a pair."""
    folder = weights.source if weights.source.is_dir() else weights.source.parent
    if weights.source.is_dir() or found.layout == "diffusers":
        return folder / "config.json" if (folder / "config.json").is_file() else None
    return None


def _demand(found: Found, rules: tuple[Rule, ...], shapes: Mapping[str, Shape], levels: int) -> Demand:
    if found.layout == "bfl":
        return Demand(shapes, as_stored(shapes))
    stored = {name: assembly.shape for name, assembly in to_diffusers(rules, shapes, levels).items()}
    return Demand(stored, from_diffusers(rules, shapes, levels))


def _checked(weights: Weights, stored: StoredNetwork, shapes: Mapping[str, Shape], demand: Demand) -> Component:
    """Raises RequestError unless `shapes`, what is stored, is exactly what is demanded, in names and shapes."""
    required, found = demand.shapes, stored.found
    missing = [found.prefix + name for name in required if name not in shapes]
    if missing:
        _refuse_absent(weights, {name: weights.absent[name] for name in missing if name in weights.absent})
        raise RequestError(
            f"{weights.source} lacks {counted(missing)} of its {found.kind}: it is incomplete, or not what its "
            "configuration says."
        )
    surplus = [found.prefix + name for name in shapes if name not in required]
    if surplus:
        raise RequestError(
            f"{weights.source} holds {counted(surplus)} that FLUX.2's {found.kind} does not have: "
            "it would make other pictures without them."
        )
    for name, shape in required.items():
        if squeezed(shapes[name]) != squeezed(shape):
            raise RequestError(
                f"{weights.source} holds {found.prefix + name} with shape {list(shapes[name])} where its "
                f"configuration asks for {list(shape)}."
            )
    matrices = {name: matrix for name, matrix in stored.quantised.matrices.items() if name in required}
    tensors = {name: entry for name, entry in stored.plain.items() if name in required}
    entries = [*tensors.values(), *(entry for matrix in matrices.values() for entry in matrix.parts.values())]
    return Component(
        source=weights.source,
        files=tuple(sorted({entry.file for entry in entries})),
        tensors=tensors,
        matrices=matrices,
        plan=demand.plan,
        formats=layer_formats(demand.plan, matrices),
        strangers=strangers(weights),
        notes=stored.quantised.notes,
    )


def _refuse_absent(weights: Weights, absent: Mapping[str, Path]) -> None:
    shards = sorted({shard.name for shard in absent.values()})
    if shards:
        names = ", ".join(shards[:NAMES_SHOWN]) + (", …" if len(shards) > NAMES_SHOWN else "")
        raise RequestError(f"{weights.source} lacks {names}: it was not downloaded whole; download it again.")


def _is_above(name: str, layers: int) -> bool:
    """Whether a language model's tensor comes after the last layer used."""
    match = re.fullmatch(r"layers\.(\d{1,6})\..*", name)
    return name == "norm.weight" if match is None else int(match.group(1)) >= layers


def strangers(weights: Weights) -> tuple[str, ...]:
    prefixes = tuple(found.prefix for found in recognise(weights.tensors))
    return tuple(
        name for name in weights.tensors if not name.startswith(prefixes) and not BESIDE_LANGUAGE_MODEL.fullmatch(name)
    )


def counted(names: Sequence[str]) -> str:
    """How many tensors, and the first few names, for a sentence about them."""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'} ({shown})"
