"""One network as it is stored: where each of its tensors comes from, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.checkpoints import configs
from headrace.checkpoints.headers import FLOAT_DTYPES, Shape, TensorEntry
from headrace.checkpoints.layouts import (
    AUTOENCODER_RULES,
    TRANSFORMER_RULES,
    Assembly,
    Rule,
    as_stored,
    from_diffusers,
    our_name,
    spelled_as_ours,
    to_diffusers,
)
from headrace.checkpoints.recognise import BESIDE_LANGUAGE_MODEL, Found, Kind, own_names, recognise
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.checkpoints.weights import Weights
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig

# A count that batch norm keeps while it learns; nothing reads it.
BATCH_COUNT = "bn.num_batches_tracked"
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Component:
    """How each tensor of a network is made of what is stored.

    tensors: what is stored, by its name without prefix. plan: our names -> rows of those tensors.
    strangers: names in the same files that belong to no network, so that they were not read.
    """

    source: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]
    plan: Mapping[str, Assembly]
    strangers: tuple[str, ...]


def transformer_component(
    weights: Weights, config: TransformerConfig | None = None
) -> tuple[Component, TransformerConfig]:
    """Finds the transformer among `weights`; its configuration is worked out from the tensors where none is given."""
    found, stored = find_network(weights, "transformer")
    if config is None:
        shapes = _our_shapes(TRANSFORMER_RULES, found, stored, 0)
        config = configs.infer_transformer_config(weights.source, shapes)
    shapes = transformer_shapes(config)
    return _planned(weights, found, stored, TRANSFORMER_RULES, shapes, 0), config


def autoencoder_component(
    weights: Weights, config: AutoencoderConfig | None = None
) -> tuple[Component, AutoencoderConfig]:
    """Finds the autoencoder among `weights`; its configuration is worked out from the tensors where none is given."""
    found, stored = find_network(weights, "autoencoder")
    if config is None:
        levels = configs.count_numbered(stored, "decoder.up_blocks.")
        shapes = _our_shapes(AUTOENCODER_RULES, found, stored, levels)
        config = configs.infer_autoencoder_config(weights.source, shapes)
    shapes = {name: shape for name, shape in autoencoder_shapes(config).items() if name != BATCH_COUNT}
    stored = {name: entry for name, entry in stored.items() if name != BATCH_COUNT}
    return _planned(weights, found, stored, AUTOENCODER_RULES, shapes, len(config.channels)), config


def language_model_component(weights: Weights, config: LanguageModelConfig, layers: int) -> Component:
    """Finds the first `layers` layers of a language model among `weights`; the final norm too, if those are all."""
    found, stored = find_network(weights, "text encoder")
    shapes = language_model_shapes(config, layers=layers, norm=layers == config.num_layers)
    used = {name: entry for name, entry in stored.items() if name in shapes or not _is_above(name, layers)}
    return _checked(weights, found, used, shapes, as_stored(shapes))


def find_network(weights: Weights, kind: Kind) -> tuple[Found, dict[str, TensorEntry]]:
    """The one network of this kind among the weights, and its tensors by their names without prefix.

    Raises RequestError when there is none, or several, or when its values are not plain floating-point numbers.
    """
    everything = recognise(weights.tensors)
    fitting = [found for found in everything if found.kind == kind]
    if not fitting:
        _refuse_absent(weights, weights.absent)
        raise RequestError(f"{weights.source} holds no FLUX.2 {kind}: it is {describe(weights)}.")
    if len(fitting) > 1:
        raise RequestError(f"{weights.source} holds several networks that could be the {kind}.")
    found = fitting[0]
    stored: dict[str, TensorEntry] = {}
    for name, full_name in own_names(found, weights.tensors, everything).items():
        ours = spelled_as_ours(name) if found.layout == "bfl" else name
        if ours in stored:
            raise RequestError(f"{weights.source} holds {ours} twice, in two spellings.")
        if kind != "text encoder" or not BESIDE_LANGUAGE_MODEL.fullmatch(name):
            stored[ours] = weights.tensors[full_name]
    quantised = sorted(
        {entry.dtype for name, entry in stored.items() if entry.dtype not in FLOAT_DTYPES and name != BATCH_COUNT}
    )
    if quantised:
        raise RequestError(
            f"{weights.source} stores its {kind} in {', '.join(quantised)}, which cannot be read yet: "
            "use the same weights in bf16, fp16 or fp32."
        )
    return found, stored


def describe(weights: Weights) -> str:
    """What a file seems to be, for a sentence about a file that is not what was asked for."""
    kinds = sorted({found.kind for found in recognise(weights.tensors)})
    if kinds:
        return " and ".join(f"{'an' if kind == 'autoencoder' else 'a'} {kind}" for kind in kinds)
    return "a LoRA" if is_lora(weights.tensors) else "none of FLUX.2's files"


def is_lora(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a low-rank adapter, of whatever dialect."""
    return any(re.search(r"[._](lora_(A|B|up|down)|lokr_w\d|hada_w\d)\b", name) for name in names)


def _our_shapes(
    rules: tuple[Rule, ...], found: Found, stored: Mapping[str, TensorEntry], levels: int
) -> dict[str, Shape]:
    """The shapes our tensors would have, as far as the stored names are known."""
    if found.layout == "bfl":
        return {name: entry.shape for name, entry in stored.items()}
    shapes = {}
    for name, entry in stored.items():
        known = our_name(rules, name, levels)
        if known is not None and entry.shape:
            rule, ours = known
            shapes[ours] = (entry.shape[0] * len(rule.theirs), *entry.shape[1:])
    return shapes


def _planned(
    weights: Weights,
    found: Found,
    stored: Mapping[str, TensorEntry],
    rules: tuple[Rule, ...],
    shapes: Mapping[str, Shape],
    levels: int,
) -> Component:
    if found.layout == "bfl":
        return _checked(weights, found, stored, shapes, as_stored(shapes))
    required = {name: assembly.shape for name, assembly in to_diffusers(rules, shapes, levels).items()}
    return _checked(weights, found, stored, required, from_diffusers(rules, shapes, levels))


def _checked(
    weights: Weights,
    found: Found,
    stored: Mapping[str, TensorEntry],
    required: Mapping[str, Shape],
    plan: Mapping[str, Assembly],
) -> Component:
    """Raises RequestError unless what is stored is exactly what is required, in names and shapes."""
    missing = [found.prefix + name for name in required if name not in stored]
    if missing:
        _refuse_absent(weights, {name: weights.absent[name] for name in missing if name in weights.absent})
        raise RequestError(
            f"{weights.source} lacks {_counted(missing)} of its {found.kind}: it is incomplete, or not what its "
            "configuration says."
        )
    surplus = [found.prefix + name for name in stored if name not in required]
    if surplus:
        raise RequestError(
            f"{weights.source} holds {_counted(surplus)} that FLUX.2's {found.kind} does not have: "
            "it would make other pictures without them."
        )
    for name, shape in required.items():
        if _squeezed(stored[name].shape) != _squeezed(shape):
            raise RequestError(
                f"{weights.source} holds {found.prefix + name} with shape {list(stored[name].shape)} where its "
                f"configuration asks for {list(shape)}."
            )
    files = tuple(sorted({entry.file for entry in stored.values()}))
    return Component(weights.source, files, stored, plan, _strangers(weights))


def _refuse_absent(weights: Weights, absent: Mapping[str, Path]) -> None:
    shards = sorted({shard.name for shard in absent.values()})
    if shards:
        names = ", ".join(shards[:NAMES_SHOWN]) + (", …" if len(shards) > NAMES_SHOWN else "")
        raise RequestError(f"{weights.source} lacks {names}: it was not downloaded whole; download it again.")


def _is_above(name: str, layers: int) -> bool:
    """Whether a language model's tensor comes after the last layer used."""
    match = re.fullmatch(r"layers\.(\d{1,6})\..*", name)
    return name == "norm.weight" if match is None else int(match.group(1)) >= layers


def _strangers(weights: Weights) -> tuple[str, ...]:
    prefixes = tuple(found.prefix for found in recognise(weights.tensors))
    return tuple(
        name
        for name in weights.tensors
        if not name.startswith(prefixes) and not BESIDE_LANGUAGE_MODEL.fullmatch(name) and name != BATCH_COUNT
    )


def _squeezed(shape: Shape) -> Shape:
    """Without the last dimensions of size 1: a 1x1 convolution and a linear layer hold the same values."""
    length = len(shape)
    while length > 1 and shape[length - 1] == 1:
        length -= 1
    return shape[:length]


def _counted(names: Sequence[str]) -> str:
    """How many tensors, and the first few names."""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'} ({shown})"
