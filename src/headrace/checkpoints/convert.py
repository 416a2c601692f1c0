"""Rewrites a model in another precision or layout, a few MiB at a time.

In every file the blocks come first, in the order they run, so that a block is one stretch of the file.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from headrace.checkpoints.components import BATCH_COUNT, Component, autoencoder_component, transformer_component
from headrace.checkpoints.export import transformer_settings
from headrace.checkpoints.headers import Shape
from headrace.checkpoints.layouts import (
    AUTOENCODER_RULES,
    TRANSFORMER_RULES,
    Assembly,
    Rows,
    as_stored,
    to_diffusers,
)
from headrace.checkpoints.load import TORCH_DTYPES, StoredTensors
from headrace.checkpoints.open import find_source
from headrace.checkpoints.quantised import (
    METADATA,
    ROTATED_INT8,
    SCALE,
    find_codes,
    is_beside_weight,
    scale_name,
    with_scales,
)
from headrace.checkpoints.recognise import recognise
from headrace.checkpoints.shapes import autoencoder_shapes, transformer_shapes
from headrace.checkpoints.weights import read_weights
from headrace.checkpoints.write import TensorFile
from headrace.errors import HeadraceError, RequestError
from headrace.nn.config import TransformerConfig
from headrace.quant.codecs import (
    encode_fp8,
    encode_int8,
    fp8_scales,
    int8_scales,
    rotate,
)
from headrace.quant.formats import (
    FP8_TENSOR,
    INT8,
    Format,
    block_linears,
    choose_formats,
    rotation_size,
)

OutputLayout = Literal["bfl", "diffusers", "comfy"]
Precision = Literal["fp32", "bf16", "fp8", "int8"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CHUNK_BYTES = 4 * 2**20
BLOCK = re.compile(r"(double_blocks|single_blocks|layers)\.(\d+)\.")

# What belongs to a pipeline beside its weights, and is copied as it is.
PARTS = ("scheduler", "tokenizer", "text_encoder", "transformer", "vae")
COPIED_SUFFIXES = frozenset({".json", ".txt", ".jinja", ".model", ".md"})
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written, made of rows of ours. form: None where it keeps `dtype`. block: where it runs."""

    name: str
    assembly: Assembly
    dtype: str
    form: Format | None
    block: tuple[str, int] | None

    @property
    def layer(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def note(self) -> dict[str, object]:
        """How the header, or a tensor beside this one, describes its format."""
        if self.form == INT8:
            return {"format": ROTATED_INT8, "rotation": rotation_size(self.assembly.shape[1])}
        return {"format": "float8_e4m3fn"}

    def entries(self, noted: bool) -> dict[str, tuple[str, Shape]]:
        """Dtype and shape of what is written: itself, and where it has eight bits its scales and ComfyUI's note."""
        shape = self.assembly.shape
        if self.form is None:
            return {self.name: (self.dtype, shape)}
        entries: dict[str, tuple[str, Shape]] = {
            self.name: ("I8" if self.form == INT8 else "F8_E4M3", shape),
            scale_name(self.name): ("F32", () if self.form == FP8_TENSOR else shape[:1]),
        }
        if noted:
            entries[f"{self.layer}.comfy_quant"] = "U8", (len(json.dumps(self.note)),)
        return entries

    def pieces(self, stored: StoredTensors, noted: bool) -> Iterator[tuple[str, int, Tensor]]:
        """What is written, a few rows at a time: the tensor's name, the first value of the piece, and its values."""
        if self.form is None:
            yield from self._plain(stored)
            return
        if noted:
            yield f"{self.layer}.comfy_quant", 0, torch.tensor(list(json.dumps(self.note).encode()), dtype=torch.uint8)
        one_scale = self._one_scale(stored) if self.form == FP8_TENSOR else None
        if one_scale is not None:
            yield scale_name(self.name), 0, one_scale
        width = self.assembly.shape[1]
        for start, part in self._chunks():
            codes, scales = self._encoded(stored, part, one_scale)
            yield self.name, start * width, codes
            if one_scale is None:
                yield scale_name(self.name), start, scales

    def _plain(self, stored: StoredTensors) -> Iterator[tuple[str, int, Tensor]]:
        if self.dtype == "I64":
            yield self.name, 0, torch.zeros(1, dtype=torch.int64)
            return
        row = math.prod(self.assembly.shape[1:])
        for start, part in self._chunks():
            values = stored.decoded(part.tensor, part.first, part.count)
            yield self.name, start * row, values.to(TORCH_DTYPES[self.dtype])

    def _chunks(self) -> Iterator[tuple[int, Rows]]:
        """Runs of rows of one of our tensors, each a few MiB in float32, and the first row they are here."""
        step = max(1, CHUNK_BYTES // (4 * math.prod(self.assembly.shape[1:])))
        start = 0
        for part in self.assembly.parts:
            for first in range(part.first, part.first + part.count, step):
                count = min(step, part.first + part.count - first)
                yield start, Rows(part.tensor, first, count)
                start += count

    def _one_scale(self, stored: StoredTensors) -> Tensor:
        """The scale of the whole tensor: as stored, or by the largest value there is."""
        (part,) = self.assembly.parts
        if self._stored_form(stored, part) == FP8_TENSOR:
            return stored.codes(part.tensor, 0, 1)[1]
        parts = (stored.decoded(rows.tensor, rows.first, rows.count) for _, rows in self._chunks())
        return fp8_scales(torch.stack([values.abs().amax() for values in parts]))

    def _encoded(self, stored: StoredTensors, part: Rows, one_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes of some rows, and a scale for each; the codes that are stored where they are in the same format."""
        form = self._stored_form(stored, part)
        if form == self.form or (form == FP8_TENSOR and self.form != INT8):
            codes, scales = stored.codes(part.tensor, part.first, part.count)
            return codes, scales.expand(part.count)
        values = stored.decoded(part.tensor, part.first, part.count)
        if self.form == INT8:
            rotated = rotate(values)
            return encode_int8(rotated, scales := int8_scales(rotated)), scales
        scales = fp8_scales(values) if one_scale is None else one_scale.expand(part.count)
        return encode_fp8(values, scales), scales

    @staticmethod
    def _stored_form(stored: StoredTensors, part: Rows) -> Format | None:
        return stored.component.formats.get(part.tensor.removesuffix(".weight"))


@dataclass(frozen=True)
class _File:
    """A file to be written. path: within the folder where the output is made. config: the transformer's.

    noted: whether quantised layers have their format in a tensor beside them, as ComfyUI wants it.
    """

    path: Path
    component: Component
    tensors: tuple[_Tensor, ...]
    config: TransformerConfig | None = None
    noted: bool = False

    def planned(self, folder: Path) -> TensorFile:
        entries = {name: entry for tensor in self.tensors for name, entry in tensor.entries(self.noted).items()}
        layers = {tensor.layer: tensor.note for tensor in self.tensors if tensor.form is not None}
        metadata = {"format": "pt"}
        if layers:
            metadata[METADATA] = json.dumps({"format_version": "1.0", "layers": layers})
        return TensorFile(folder / self.path, entries, metadata)

    def pieces(self, stored: StoredTensors) -> Iterator[tuple[str, int, Tensor]]:
        for tensor in self.tensors:
            yield from tensor.pieces(stored, self.noted)


def convert(
    model: str | Path,
    output: Path,
    precision: Precision,
    layout: OutputLayout,
    on_progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes a model in another precision or layout; afterwards it is there whole, or nothing of it is.

    model: what `open_checkpoint` takes, or a transformer alone. With "diffusers" the output is a folder: of the whole
    pipeline, or of the transformer where it came alone. With "bfl" and "comfy" it is a file with the transformer.
    "fp8" and "int8" are the linear layers of the blocks; all else is then bf16. The autoencoder never has eight bits.
    on_progress: called after every piece with the bytes written so far and those there will be.
    Raises RequestError for what cannot be converted or does not fit on the disk, HeadraceError when writing fails.
    """
    _check(output, precision, layout)
    source = find_source(model)
    files = _files(source, output.name, precision, layout)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
            targets = [file.planned(Path(work)) for file in files]
            total = sum(target.size for target in targets)
            free = shutil.disk_usage(work).free
            if total > free:
                raise RequestError(f"{output} needs {total} bytes, but only {free} are free there.")
            written = 0
            if layout == "diffusers":
                _write_beside(source, Path(work) / output.name, files[0])
            for file, target in zip(files, targets, strict=True):
                with target, StoredTensors(file.component) as stored:
                    for name, first, values in file.pieces(stored):
                        target.write(name, first, values)
                        written += values.nbytes
                        if on_progress is not None:
                            on_progress(written, total)
            (Path(work) / output.name).rename(output)
    except OSError as error:
        raise HeadraceError(f"{output} could not be written: {error.strerror or error}.") from error


def _check(output: Path, precision: str, layout: OutputLayout) -> None:
    if layout == "comfy" and precision == "int8":
        raise RequestError("ComfyUI has no format for rotated int8: choose fp8, or the layout bfl or diffusers.")
    if (output.suffix == ".safetensors") == (layout == "diffusers"):
        wanted = "a folder" if layout == "diffusers" else "a .safetensors file"
        raise RequestError(f"The layout {layout} is {wanted}, which {output} is not by its name.")
    if output.exists():
        raise RequestError(f"{output} is there already: name another output.")
    if not output.parent.is_dir():
        raise RequestError(f"The folder {output.parent} does not exist; make it first.")


def _files(source: Path, name: str, precision: Precision, layout: OutputLayout) -> list[_File]:
    """The files to be written, the transformer's first. name: the output's."""
    bits = None if precision == "fp32" or precision == "bf16" else precision
    dtype = "F32" if precision == "fp32" else "BF16"
    whole = (source / "model_index.json").is_file()
    component, config = transformer_component(read_weights(source / "transformer" if whole else source))
    shapes = transformer_shapes(config)
    formats = choose_formats(bits, block_linears(shapes), component.formats)
    if layout != "diffusers":
        formats = {layer: FP8_TENSOR if layout == "comfy" else form for layer, form in formats.items()}
        tensors = _tensors(as_stored(shapes), dtype, formats)
        return [_File(Path(name), component, tensors, config, noted=layout == "comfy")]
    # A layer's parts each have rows of their own, so a single scale for the whole becomes one for each row.
    formats = {layer: Format(form.bits) for layer, form in formats.items()}
    tensors = _tensors(to_diffusers(TRANSFORMER_RULES, shapes), dtype, formats)
    if not whole:
        return [_File(Path(name, WEIGHTS), component, tensors, config)]
    files = [_File(Path(name, "transformer", WEIGHTS), component, tensors, config)]
    component, autoencoder = autoencoder_component(read_weights(source / "vae"))
    plan = to_diffusers(AUTOENCODER_RULES, autoencoder_shapes(autoencoder), len(autoencoder.channels))
    files.append(_File(Path(name, "vae", WEIGHTS), component, _tensors(plan, dtype, {})))
    component, prefix = _text_encoder(source / "text_encoder")
    shapes = {name: plan.shape for name, plan in component.plan.items() if not name.endswith(f".{SCALE}")}
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    formats = choose_formats(bits, [prefix + layer for layer in block_linears(own)], component.formats)
    tensors = _tensors(as_stored(shapes), dtype, formats, prefix)
    files.append(_File(Path(name, "text_encoder", "model.safetensors"), component, tensors))
    return files


def _text_encoder(folder: Path) -> tuple[Component, str]:
    """Everything a text encoder's files hold, under the names it has there, and the language model's prefix."""
    weights = read_weights(folder)
    prefix = next((found.prefix for found in recognise(weights.tensors) if found.kind == "text encoder"), None)
    unread = {entry.dtype for name, entry in weights.tensors.items() if not is_beside_weight(name, weights.tensors)}
    unread -= set(TORCH_DTYPES)
    if prefix is None or weights.absent or unread:
        raise RequestError(f"{folder} is not a whole text encoder in formats that are read.")
    shapes = {
        name: entry.shape for name, entry in weights.tensors.items() if not is_beside_weight(name, weights.tensors)
    }
    codes = find_codes(folder, "", weights.tensors, weights.metadata)
    plan, formats = with_scales(folder, as_stored(shapes), codes)
    return Component(folder, weights.files, weights.tensors, plan, formats, ()), prefix


def _tensors(
    plan: Mapping[str, Assembly], dtype: str, formats: Mapping[str, Format], prefix: str = ""
) -> tuple[_Tensor, ...]:
    """The tensors of a plan over our names, blocks first and in the order they run."""

    def planned(name: str, assembly: Assembly) -> _Tensor:
        ours = assembly.parts[0].tensor
        match = BLOCK.match(ours.removeprefix(prefix))
        block = None if match is None else (match[1], int(match[2]))
        return _Tensor(
            name, assembly, "I64" if ours == BATCH_COUNT else dtype, formats.get(ours.removesuffix(".weight")), block
        )

    tensors = [planned(name, assembly) for name, assembly in plan.items()]
    return tuple(sorted(tensors, key=lambda tensor: (tensor.block is None, tensor.block or ())))


def _write_beside(source: Path, place: Path, transformer: _File) -> None:
    """What a folder in diffusers' layout holds beside weights."""
    place.mkdir()
    if not (source / "model_index.json").is_file():
        assert transformer.config is not None
        settings = json.dumps(transformer_settings(transformer.config), indent=2)
        (place / "config.json").write_text(settings + "\n", encoding="utf-8")
        return
    for folder in (".", *PARTS):
        if not (source / folder).is_dir():
            continue
        (place / folder).mkdir(exist_ok=True)
        for file in sorted((source / folder).iterdir()):
            if file.is_file() and file.suffix in COPIED_SUFFIXES and not file.name.endswith(INDEX_SUFFIX):
                shutil.copyfile(file, place / folder / file.name)
