"""From what a user names as LoRAs to files that are known to fit the model. Without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from headrace.checkpoints import hub
from headrace.checkpoints.digest import file_sha256
from headrace.checkpoints.headers import PICKLE_SUFFIXES
from headrace.checkpoints.lora import ADAPTER_CONFIG, Lora, Patch, describe_kinds, read_lora, summary
from headrace.checkpoints.shapes import transformer_shapes
from headrace.checkpoints.weights import expanded
from headrace.errors import RequestError
from headrace.nn.config import TransformerConfig
from headrace.recipe import LoraRecord, check_strength

LoraChoice = str | PathLike[str] | tuple[str | PathLike[str], float]

MAX_LORAS = 32
# owner/name, with or without a file in that repository.
HUB_PLACE = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/(.{1,300}\.safetensors))?", re.ASCII)
# What diffusers and PEFT call the LoRA in a folder.
USUAL_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA that fits a model. patches: those that are applied; unused: what the other tensors are, by name."""

    lora: Lora
    record: LoraRecord
    patches: tuple[Patch, ...]
    unused: Mapping[str, str]

    def report(self) -> str:
        """What is applied and what is not, in a sentence."""
        layers = len({patch.target.layer for patch in self.patches})
        text = (
            f"{self.lora.source.name} at {self.record.strength:g}: {describe_kinds(self.patches)}, for {layers} layers"
        )
        return f"{text}; not applied: {summary(self.unused)}." if self.unused else f"{text}; everything is applied."


def choose_loras(choices: Iterable[LoraChoice], config: TransformerConfig, model: str) -> tuple[ChosenLora, ...]:
    """Opens LoRAs for a transformer of this configuration, in the order given; one of strength 0 is left out.

    choices: each a file, a folder with one, a hub id, or a file in a repository of the hub (owner/name/FILE), as
    "PLACE:STRENGTH" or in a pair with its strength (by default 1). model: what sentences call the model.
    Raises RequestError for a file that is no LoRA of FLUX.2, is damaged, is made for another size or would do nothing.
    """
    choices = [choices] if isinstance(choices, str | PathLike) else list(choices)
    if len(choices) > MAX_LORAS:
        raise RequestError(f"{len(choices)} LoRAs were given; at most {MAX_LORAS} can be used at once.")
    places = [split_strength(choice) for choice in choices]
    fitted = [_fitted(read_lora(find_lora(place)), strength, config, model) for place, strength in places]
    return tuple(chosen for chosen in fitted if chosen.record.strength)


def split_strength(choice: LoraChoice) -> tuple[str | PathLike[str], float]:
    """A place and its strength: `"style.safetensors:0.8"` -> ("style.safetensors", 0.8). Raises RequestError."""
    if isinstance(choice, tuple):
        place, strength = choice
        return place, check_strength(strength)
    match = re.fullmatch(r"(.+):([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|[-+]?inf|nan)", str(choice), re.DOTALL)
    if match is None or not isinstance(choice, str) or expanded(choice).exists():
        return choice, 1.0
    try:
        return match[1], check_strength(float(match[2]))
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"The LoRA strength {match[2]!r} is not a number.") from error


def find_lora(place: str | PathLike[str]) -> Path:
    """The file that a path, a folder or a place on the hub means, fetched where it is there.

    Raises RequestError where there is none, or several could be meant.
    """
    path = expanded(Path(place) if isinstance(place, PathLike) else place)
    try:
        if path.is_dir():
            return path / _usual(str(place), [entry.name for entry in path.iterdir()])
        if path.exists():
            return path
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error
    match = HUB_PLACE.fullmatch(place) if isinstance(place, str) else None
    if match is None or Path(match[1]).suffix in {".safetensors", *PICKLE_SUFFIXES} or ".." in path.parts:
        raise RequestError(f"{str(place)!r} is neither a LoRA's file, nor a folder with one, nor a hub id.")
    hub_id, file = match[1], match[2]
    names = USUAL_FILES if file is None else (file,)
    return hub.fetch_file(hub_id, names, lambda there: file or _usual(hub_id, there), beside=(ADAPTER_CONFIG,))


def _usual(source: str, names: Iterable[str]) -> str:
    """Which of the files is the LoRA: one of a usual name, or the only one. Raises RequestError."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    known = [name for name in USUAL_FILES if name in files] or files
    if not files:
        raise RequestError(f"{source} holds no .safetensors file.")
    if len(known) > 1:
        shown = ", ".join(known[:3]) + (", …" if len(known) > 3 else "")
        raise RequestError(f"{source} holds several LoRAs that could be meant ({shown}): name one as {source}/FILE.")
    return known[0]


def _fitted(lora: Lora, strength: float, config: TransformerConfig, model: str) -> ChosenLora:
    misfits = lora.misfits(transformer_shapes(config))
    # Only dev embeds its guidance, so a LoRA may have that layer to spare; any other misfit means another size.
    spare = [
        patch for patch, _ in misfits if patch.target.layer.startswith("guidance_in.") and not config.guidance_embed
    ]
    if len(misfits) > len(spare) or len(spare) == len(lora.patches):
        patch, reason = next((misfit for misfit in misfits if misfit[0] not in spare), misfits[0])
        models = [name for name in lora.fitting_models() if name != model]
        hint = f"it fits {', '.join(models)}" if models else "use one that was made for a model of this size"
        raise RequestError(f"{lora.source} was not made for {model}: its {patch.name[:200]} {reason}; {hint}.")
    unused = dict(lora.unused)
    for patch in spare:
        unused |= dict.fromkeys(patch.names.values(), "of a layer that this model does not have")
    patches = tuple(patch for patch in lora.patches if patch not in spare)
    record = LoraRecord(lora.source.stem, file_sha256(lora.source), strength)
    return ChosenLora(lora, record, patches, unused)
