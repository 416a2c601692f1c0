"""Layers that a file stores in eight bits, found tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.checkpoints.headers import FLOAT_DTYPES, TensorEntry
from headrace.checkpoints.layouts import Assembly, Rows
from headrace.errors import RequestError
from headrace.quant.formats import FP8, FP8_TENSOR, INT8, Format, rotation_size

CODE_DTYPES = frozenset({"F8_E4M3", "I8"})
# What stands beside a layer's weight: its scale; and what is not needed here, the scale of activations (they get their
# own, token by token) and ComfyUI's note of the format, which the tensors themselves tell.
SCALE = "weight_scale"
BESIDE_WEIGHT = frozenset({SCALE, "input_scale", "comfy_quant"})
# An empty tensor by which older files of ComfyUI's say that they are scaled.
MARKER = "scaled_fp8"
# Where a header describes its quantised layers, as Black Forest Labs and ComfyUI write it, and our name for INT8.
METADATA = "_quantization_metadata"
ROTATED_INT8 = "int8_hadamard"


@dataclass(frozen=True)
class Codes:
    """The format of a stored weight, and its scale; None for one that is stored without, which stands for 1."""

    format: Format
    scale: TensorEntry | None


def is_beside_weight(name: str, stored: Mapping[str, TensorEntry]) -> bool:
    """Whether a tensor belongs to a quantised weight among those stored, and is not one itself."""
    layer, _, own = name.rpartition(".")
    weight = stored.get(f"{layer}.weight")
    return name == MARKER or (own in BESIDE_WEIGHT and weight is not None and weight.dtype in CODE_DTYPES)


def find_codes(
    source: Path, prefix: str, stored: Mapping[str, TensorEntry], metadata: Mapping[str, str]
) -> dict[str, Codes]:
    """The quantised weights among the tensors of a network, by name.

    prefix: what the names have before them in the file, and in its header's description.
    Raises RequestError where a scale does not fit, or nothing says how whole numbers came about.
    """
    described = _described(source, metadata)
    return {
        name: _codes(source, name, stored, described.get(prefix + name.removesuffix(".weight")))
        for name, entry in stored.items()
        if entry.dtype in CODE_DTYPES and name != MARKER
    }


def with_scales(
    source: Path, plan: Mapping[str, Assembly], codes: Mapping[str, Codes]
) -> tuple[dict[str, Assembly], dict[str, Format]]:
    """The plan with the scales of quantised weights, and the formats of our layers.

    Raises RequestError where parts of one of our tensors are stored in different formats.
    """
    complete, formats = dict(plan), {}
    for name, assembly in plan.items():
        stored = {part.tensor: codes.get(part.tensor) for part in assembly.parts}
        first = stored[assembly.parts[0].tensor]
        if not any(stored.values()):
            continue
        one_scale = first is not None and first.format.scales == "tensor"
        if (
            first is None
            or any(other is None or other.format != first.format for other in stored.values())
            or (one_scale and len(stored) > 1)
        ):
            raise RequestError(
                f"{source} stores {', '.join(stored)} in different precisions or with a scale each, which are one "
                "layer of FLUX.2: use the same weights in bf16."
            )
        layer = name.removesuffix(".weight")
        formats[layer] = first.format
        if first.scale is None:
            continue
        if one_scale:
            complete[f"{layer}.{SCALE}"] = Assembly((), (Rows(scale_name(assembly.parts[0].tensor), 0, 1),))
        else:
            rows = tuple(replace(part, tensor=scale_name(part.tensor)) for part in assembly.parts)
            complete[f"{layer}.{SCALE}"] = Assembly(assembly.shape[:1], rows)
    return complete, formats


def scale_name(weight: str) -> str:
    """`a.weight` -> `a.weight_scale`."""
    return f"{weight.removesuffix('.weight')}.{SCALE}"


def _codes(source: Path, name: str, stored: Mapping[str, TensorEntry], described: object) -> Codes:
    entry, scale = stored[name], stored.get(scale_name(name))
    if len(entry.shape) != 2 or not name.endswith(".weight"):
        raise RequestError(f"{source} stores {name} in {entry.dtype}, which only the weights of linear layers can be.")
    if scale is not None and (scale.dtype not in FLOAT_DTYPES or scale.elements not in (1, entry.shape[0])):
        raise RequestError(
            f"{source} scales {name} by {scale.dtype} of shape {list(scale.shape)}, which is not read: "
            "use a file with one scale a tensor or a row, or the same weights in bf16."
        )
    if entry.dtype == "F8_E4M3":
        return Codes(FP8_TENSOR if scale is None or scale.elements == 1 else FP8, scale)
    wanted = {"format": ROTATED_INT8, "rotation": rotation_size(entry.shape[1])}
    if scale is None or scale.elements != entry.shape[0] or described != wanted:
        raise RequestError(
            f"{source} stores {name} in I8 of a kind that is not read: use a file that headrace convert wrote, "
            "or the same weights in bf16 or fp8."
        )
    return Codes(INT8, scale)


def _described(source: Path, metadata: Mapping[str, str]) -> Mapping[str, object]:
    """Layer -> what the header says of it."""
    try:
        layers = json.loads(metadata.get(METADATA, "{}")).get("layers", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise RequestError(f"{source} is damaged: {METADATA} in its header is not valid JSON.") from error
    return layers if isinstance(layers, dict) else {}
