"""Weights that a file stores in fewer bits than bf16: found layer by layer, by what the file says of them.

Several dialects name their tensors alike and mean different things by them. What tells them apart is a note beside the
layer or in the header (ComfyUI, Black Forest Labs, torchao, bitsandbytes), the folder's config.json (ModelOpt) or the
file's own types (GGUF). Where nothing does, the file is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headrace.checkpoints.headers import FLOAT_DTYPES, Shape, TensorEntry
from headrace.checkpoints.layouts import Assembly, Rows
from headrace.checkpoints.weights import Weights, read_json
from headrace.errors import RequestError
from headrace.quant.formats import (
    BYTES,
    GGUF_BLOCKS,
    INT8,
    MXFP8_BLOCK,
    NVFP4_BLOCK,
    Format,
    Fp8,
    Gguf,
    Int8,
    Mxfp8,
    Nf4,
    Nvfp4,
    Split,
    rotation_size,
)

FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
# What can stand for a layer's weights, and what a plain value is never stored in.
CODE_DTYPES = frozenset({*FP8_DTYPES, "I8", "U8", *GGUF_BLOCKS})
SCALE = "weight_scale"
NF4_STATE = "weight.quant_state.bitsandbytes__nf4"
# Everything that belongs to one layer, after its name.
OWN = re.compile(
    r"(?P<layer>.+)\.(?P<part>weight|weight_scale|weight_scale_2|input_scale|pre_quant_scale|comfy_quant"
    r"|_weight_qdata|_weight_scale|_weight_zero_point"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w{1,8}))"
)
# An empty tensor by which older files of ComfyUI's say that they are scaled.
MARKER = "scaled_fp8"
# Where a header describes its quantised layers, as Black Forest Labs and ComfyUI write it, and our name for INT8.
METADATA = "_quantization_metadata"
ROTATED_INT8 = "int8_hadamard"
MAX_NOTE_BYTES = 2**16
REGULAR_SIZES = (4, 16, 64, 256)
# quantization_config.quant_method of those who pack the low half of a byte first and keep scales row by row.
MODELOPT_METHODS = ("modelopt", "bfl")


@dataclass(frozen=True)
class Matrix:
    """A linear layer's weights as they are stored.

    shape: of the values. parts: the tensors, by the names the format gives them; a scale that is absent is 1.
    """

    form: Format
    shape: Shape
    parts: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Piece:
    """Rows of a layer of ours that are in one format, None for plain values, and where they are stored."""

    form: Format | None
    rows: tuple[Rows, ...]

    @property
    def count(self) -> int:
        return sum(part.count for part in self.rows)


@dataclass(frozen=True)
class Quantised:
    """What was found among the tensors of a network. owned: names of all tensors that matrices are made of.

    matrices: by the name a weight has where it is stored as plain values. notes: what a user should know of them.
    """

    matrices: Mapping[str, Matrix]
    owned: frozenset[str]
    notes: tuple[str, ...]


def find_quantised(weights: Weights, prefix: str, stored: Mapping[str, TensorEntry]) -> Quantised:
    """The quantised layers among the tensors of a network.

    prefix: what the names have before them in the file, and in its header's description.
    Raises RequestError where the tensors of a layer do not fit together, or nothing tells what they stand for.
    """
    layers: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in stored.items():
        match = OWN.fullmatch(name)
        if match is not None:
            layers.setdefault(match["layer"], {})[match["part"]] = entry
    notes = _Notes(weights, prefix)
    found = {f"{layer}.weight": _matrix(notes, layer, own) for layer, own in layers.items()}
    matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
    owned = {
        f"{name.removesuffix('.weight')}.{part}" for name in matrices for part in layers[name.removesuffix(".weight")]
    }
    unscaled = sum(isinstance(matrix.form, Fp8) and SCALE not in matrix.parts for matrix in matrices.values())
    sentences = (
        f"{weights.source} holds {unscaled} layers cast to fp8 without a scale, which loses more than scaled fp8 does.",
    )
    return Quantised(matrices, frozenset(owned | ({MARKER} & stored.keys())), sentences if unscaled else ())


def pieces(assembly: Assembly, matrices: Mapping[str, Matrix]) -> tuple[Piece, ...] | None:
    """What a weight of ours is made of, neighbours that can lie in memory as one joined; None if rows are cut apart."""
    result: list[Piece] = []
    for part in assembly.parts:
        matrix = matrices.get(part.tensor)
        if matrix is None:
            form, together, joins = None, 1, True
        else:
            form, together = matrix.form, matrix.form.together(matrix.shape[1])
            joins = not any(stored.whole for stored in form.parts())
            if part.first % together or (
                (part.first + part.count) % together and part.first + part.count < matrix.shape[0]
            ):
                return None
        last = result[-1] if result else None
        if last is not None and last.form == form and joins and last.count % together == 0:
            result[-1] = Piece(form, (*last.rows, part))
        else:
            result.append(Piece(form, (part,)))
    return tuple(result)


def layer_formats(plan: Mapping[str, Assembly], matrices: Mapping[str, Matrix]) -> dict[str, Format]:
    """The formats in which our linear layers can be kept as they are stored."""
    formats: dict[str, Format] = {}
    for name, assembly in plan.items():
        if not name.endswith(".weight") or name == "embed_tokens.weight":
            continue
        if not any(part.tensor in matrices for part in assembly.parts):
            continue
        made = pieces(assembly, matrices)
        if made is None:
            continue
        only = made[0].form if len(made) == 1 else None
        pieces_of = Split(tuple((piece.count, piece.form) for piece in made))
        formats[name.removesuffix(".weight")] = pieces_of if only is None else only
    return formats


def scale_name(weight: str) -> str:
    """`a.weight` -> `a.weight_scale`."""
    return f"{weight.removesuffix('.weight')}.{SCALE}"


def note_of(form: Format, width: int) -> dict[str, object]:
    """How a header, or a tensor beside a layer, describes the format of its weights. width: of their rows."""
    match form:
        case Int8(rotation="sylvester"):
            return {"format": ROTATED_INT8, "rotation": rotation_size(width, form)}
        case Int8(rotation="regular", size=size):
            return {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": size}
        case Int8():
            return {"format": "int8_tensorwise"}
        case Fp8(codes="F8_E5M2"):
            return {"format": "float8_e5m2"}
        case Nvfp4():
            return {"format": "nvfp4"}
        case Mxfp8():
            return {"format": "mxfp8"}
    return {"format": "float8_e4m3fn"}


def header_notes(notes: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """What a header has to say where layers are described in it, by their names."""
    return {METADATA: json.dumps({"format_version": "1.0", "layers": notes})} if notes else {}


class _Notes:
    """What is said of layers beside their tensors."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.source, self._weights, self._prefix = weights.source, weights, prefix

    def of(self, layer: str, own: Mapping[str, TensorEntry]) -> Mapping[str, Any] | None:
        """ComfyUI's or our own description of a layer."""
        if "comfy_quant" in own:
            return self.read(own["comfy_quant"])
        note = self._described.get(self._prefix + layer)
        return note if isinstance(note, dict) else None

    def read(self, entry: TensorEntry) -> Mapping[str, Any]:
        """A JSON object that is stored as a tensor of bytes."""
        if entry.dtype not in ("U8", "I8") or entry.size > MAX_NOTE_BYTES:
            raise RequestError(f"{self.source} is damaged: a note of how a layer is stored is not text.")
        try:
            with entry.file.open("rb") as file:
                file.seek(entry.offset)
                note = json.loads(file.read(entry.size))
        except OSError as error:
            raise RequestError(f"{entry.file} cannot be read: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.source} is damaged: a note of how a layer is stored is not JSON.") from error
        if not isinstance(note, dict):
            raise RequestError(f"{self.source} is damaged: a note of how a layer is stored is not a JSON object.")
        return note

    def torchao(self, layer: str) -> Mapping[str, Any]:
        """torchao's description of a layer in the header."""
        try:
            note = json.loads(self._weights.metadata.get(f"{self._prefix}{layer}.weight", "null"))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.source} is damaged: its header says nothing legible of {layer}.") from error
        return note if isinstance(note, dict) else {}

    @cached_property
    def is_modelopt(self) -> bool:
        """Whether the folder's configuration says that ModelOpt, or diffusers in its dialect, packed the weights."""
        folder = self.source if self.source.is_dir() else self.source.parent
        for name, key in (("config.json", "quantization_config"), ("hf_quant_config.json", "producer")):
            if not (folder / name).is_file():
                continue
            settings = read_json(folder / name).get(key)
            if isinstance(settings, dict) and {settings.get("quant_method"), settings.get("name")} & {
                *MODELOPT_METHODS
            }:
                return True
        return False

    @cached_property
    def _described(self) -> Mapping[str, object]:
        described: dict[str, object] = {}
        for header in self._weights.headers:  # every shard describes its own layers
            try:
                layers = json.loads(header.get(METADATA, "{}")).get("layers", {})
            except (ValueError, AttributeError, RecursionError) as error:
                raise RequestError(f"{self.source} is damaged: {METADATA} in its header is not valid JSON.") from error
            described |= layers if isinstance(layers, dict) else {}
        return described


def _matrix(notes: _Notes, layer: str, own: Mapping[str, TensorEntry]) -> Matrix | None:
    """The layer's weights where they are stored in one of the formats; None where they are plain values."""
    if any(part.startswith("weight.quant_state") for part in own):
        return _bitsandbytes(notes, layer, own)
    if "_weight_qdata" in own:
        return _torchao(notes, layer, own)
    weight = own.get("weight")
    if weight is None:
        return None
    if weight.dtype in GGUF_BLOCKS:
        return Matrix(Gguf(weight.dtype), weight.shape, {"weight": weight})
    note = notes.of(layer, own)
    if note is None and weight.dtype not in CODE_DTYPES:
        return None
    if weight.dtype in FP8_DTYPES and len(weight.shape) != 2:
        if SCALE in own:
            raise RequestError(f"{notes.source} scales {layer}, which is not the weight of a linear layer.")
        return None
    form = _form(notes, layer, own, note)
    columns = 2 * weight.shape[1] if isinstance(form, Nvfp4) else weight.shape[1]
    parts = {part.name: own[part.name] for part in form.parts() if part.name in own}
    return _checked(notes.source, layer, Matrix(form, (weight.shape[0], columns), parts))


def _form(notes: _Notes, layer: str, own: Mapping[str, TensorEntry], note: Mapping[str, Any] | None) -> Format:
    weight, scale = own["weight"], own.get(SCALE)
    if len(weight.shape) != 2:
        raise RequestError(f"{notes.source} stores {layer} in {weight.dtype}, which only linear layers can be.")
    name = None if note is None else note.get("format")
    wanted = {
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "nvfp4": "U8",
        "mxfp8": "F8_E4M3",
        "int8_tensorwise": "I8",
        ROTATED_INT8: "I8",
    }
    if note is not None:
        if not isinstance(name, str) or name not in wanted:
            raise RequestError(
                f"{notes.source} stores {layer} as {str(name)[:40]!r}, which is not read: use the same weights in "
                "bf16, fp8, nvfp4 or as GGUF."
            )
        if weight.dtype != wanted[name]:
            raise RequestError(f"{notes.source} is damaged: it calls {layer} {name} but stores {weight.dtype}.")
    smoothed = "pre_quant_scale" in own
    if smoothed and name != "nvfp4" and not (weight.dtype == "U8" and notes.is_modelopt):
        raise RequestError(f"{notes.source} smooths the inputs of {layer}, which is read of nvfp4 only.")
    if name == "nvfp4":
        return Nvfp4("comfy", smoothed)
    if name == "mxfp8":
        return Mxfp8()
    if weight.dtype in ("F8_E4M3", "F8_E5M2"):
        by_row = scale is not None and scale.elements != 1
        return Fp8("row" if by_row else "tensor", "F8_E4M3" if weight.dtype == "F8_E4M3" else "F8_E5M2")
    if weight.dtype == "I8" and note is not None:
        return _int8(notes.source, layer, own, note)
    if notes.is_modelopt and scale is not None:
        if weight.dtype == "U8" and "weight_scale_2" in own:
            return Nvfp4("modelopt", smoothed)
        if weight.dtype == "I8":
            return Int8("tensor" if scale.elements == 1 else "row", None)
    raise RequestError(
        f"{notes.source} stores {layer} in {weight.dtype}, and nothing says how: neither a comfy_quant tensor, nor "
        f"{METADATA} in its header, nor quantization_config in a config.json beside it; use a file that says it."
    )


def _int8(source: Path, layer: str, own: Mapping[str, TensorEntry], note: Mapping[str, Any]) -> Int8:
    width = own["weight"].shape[1]
    scale = own.get(SCALE)
    scales: Any = "tensor" if scale is not None and scale.elements == 1 else "row"
    if note["format"] == ROTATED_INT8:
        form = INT8
        known = scales == "row" and note.get("rotation") == rotation_size(width)
    elif note.get("convrot"):
        size = note.get("convrot_groupsize", 256)
        known = size in REGULAR_SIZES and width % size == 0
        form = Int8(scales, "regular", size if known else 256)
    else:
        form, known = Int8(scales, None), True
    if not known:
        raise RequestError(
            f"{source} stores {layer} in int8 of a rotation that is not known, so that it cannot be read."
        )
    return form


def _torchao(notes: _Notes, layer: str, own: Mapping[str, TensorEntry]) -> Matrix:
    weight, scale = own["_weight_qdata"], own.get("_weight_scale")
    note = notes.torchao(layer)
    kind = note.get("_type")
    if kind != "Float8Tensor" or scale is None or weight.dtype not in FP8_DTYPES or len(weight.shape) != 2:
        raise RequestError(
            f"{notes.source} stores {layer} as torchao's {str(kind)[:40]}, of which only Float8Tensor is read: use the "
            "same weights in bf16 or fp8."
        )
    form = Fp8("tensor" if scale.elements == 1 else "row", "F8_E4M3" if weight.dtype == "F8_E4M3" else "F8_E5M2")
    return _checked(notes.source, layer, Matrix(form, weight.shape, {"weight": weight, SCALE: scale}))


def _bitsandbytes(notes: _Notes, layer: str, own: Mapping[str, TensorEntry]) -> Matrix:
    if NF4_STATE not in own:
        raise RequestError(
            f"{notes.source} stores {layer} in a format of bitsandbytes' that is not nf4, which is not read: use the "
            "same weights in nf4 or bf16."
        )
    state = notes.read(own[NF4_STATE])
    shape, block = state.get("shape"), state.get("blocksize")
    nested = state.get("nested_blocksize") if "weight.nested_absmax" in own else None
    offset = state.get("nested_offset", 0.0)
    whole = [block, *([] if nested is None else [nested]), *(shape if isinstance(shape, list) else [None])]
    if (
        not all(type(number) is int and 0 < number < 2**31 for number in whole)
        or len(shape or ()) != 2
        or type(offset) not in (int, float)
        or state.get("quant_type", "nf4") != "nf4"
    ):
        raise RequestError(f"{notes.source} is damaged: the state of {layer} is not that of a matrix in nf4.")
    assert isinstance(shape, list)
    assert isinstance(block, int)
    form = Nf4(block, nested, float(offset) if nested is not None else 0.0)
    parts = {part.name: own[part.name] for part in form.parts() if part.name in own}
    return _checked(notes.source, layer, Matrix(form, (shape[0], shape[1]), parts))


def _checked(source: Path, layer: str, matrix: Matrix) -> Matrix:
    """Raises RequestError unless every part is there in a fitting dtype and size."""
    form, (rows, width) = matrix.form, matrix.shape
    unit = {Nvfp4: NVFP4_BLOCK, Mxfp8: MXFP8_BLOCK, Nf4: 2}.get(type(form), 1)
    for part in form.parts():
        entry = matrix.parts.get(part.name)
        if entry is None and isinstance(form, Fp8) and part.name == SCALE:
            continue
        values = entry is not None and entry.dtype in FLOAT_DTYPES and part.dtype == "F32"
        stored = 0 if entry is None else entry.elements if values else entry.size
        expected = part.count(rows, width) * (1 if values else BYTES[part.dtype])
        if entry is None or stored != expected or width % unit or (part.dtype == "F32" and not values):
            there = "no" if entry is None else f"{entry.dtype} of shape {list(entry.shape)} as"
            raise RequestError(
                f"{source} stores {layer} in {form.precision} with {there} {part.name}, which does not fit its weights "
                f"of {rows} x {width}: the file is damaged, or in a dialect that is not read."
            )
    return matrix
