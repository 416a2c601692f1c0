"""Rewrites a model in another precision or layout, a few MiB at a time.

In every file the blocks come first, in the order they run, so that a block is one stretch of the file.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from headrace.checkpoints.lora_choice import ChosenLora, LoraChoice, choose_loras
from headrace.checkpoints.merge import MergedTensors, merged_layers
from headrace.checkpoints.open import find_source
from headrace.checkpoints.quantised import (
    REGULAR_SIZES,
    SCALE,
    find_quantised,
    header_notes,
    layer_formats,
    note_of,
)
from headrace.checkpoints.recognise import recognise
from headrace.checkpoints.shapes import autoencoder_shapes, transformer_shapes
from headrace.checkpoints.weights import read_weights
from headrace.checkpoints.write import TensorFile
from headrace.errors import HeadraceError, RequestError
from headrace.nn.config import TransformerConfig
from headrace.quant.encode import encode, is_encoded, tensor_scale
from headrace.quant.formats import (
    FP8,
    FP8_TENSOR,
    INT8,
    NVFP4_BLOCK,
    TILE_ROWS,
    Format,
    Fp8,
    Int8,
    Mxfp8,
    Nvfp4,
    Part,
    Split,
    block_linears,
    choose_formats,
)

OutputLayout = Literal["bfl", "diffusers", "comfy"]
Precision = Literal["fp32", "bf16", "fp8", "int8", "nvfp4", "stored"]
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
        assert self.form is not None
        return note_of(self.form, self.assembly.shape[1])

    def entries(self, noted: bool) -> dict[str, tuple[str, Shape]]:
        """Dtype and shape of what is written: the tensor, or the parts of its format and ComfyUI's note."""
        shape = self.assembly.shape
        if self.form is None:
            return {self.name: (self.dtype, shape)}
        entries = {f"{self.layer}.{part.name}": (part.dtype, _part_shape(part, shape)) for part in self.form.parts()}
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
        width = self.assembly.shape[1]
        same = self._stored_form(stored) == self.form
        scale = None if same else tensor_scale(self.form, self._largest(stored))
        for start, part in self._chunks(self.form.together(width)):
            values = stored.stored_parts(part, self.form) if same else self._encoded(stored, part, scale)
            for kind in self.form.parts():
                first = 0 if kind.whole or not start else kind.count(start, width)
                yield f"{self.layer}.{kind.name}", first, values[kind.name]

    def _plain(self, stored: StoredTensors) -> Iterator[tuple[str, int, Tensor]]:
        if self.dtype == "I64":
            yield self.name, 0, torch.zeros(1, dtype=torch.int64)
            return
        row = math.prod(self.assembly.shape[1:])
        for start, part in self._chunks(1):
            values = stored.decoded(part.tensor, part.first, part.count)
            yield self.name, start * row, values.to(TORCH_DTYPES[self.dtype])

    def _chunks(self, together: int) -> Iterator[tuple[int, Rows]]:
        """Runs of rows of one of our tensors, each a few MiB in float32, and the first row they are here."""
        step = max(1, CHUNK_BYTES // (4 * math.prod(self.assembly.shape[1:])) // together) * together
        start = 0
        for part in self.assembly.parts:
            for first in range(part.first, part.first + part.count, step):
                count = min(step, part.first + part.count - first)
                yield start, Rows(part.tensor, first, count)
                start += count

    def _largest(self, stored: StoredTensors) -> Tensor:
        """The largest magnitude there is; not looked for where each row has its own scale."""
        assert self.form is not None
        if not any(part.whole for part in self.form.parts()):
            return torch.zeros(())
        parts = (stored.decoded(rows.tensor, rows.first, rows.count) for _, rows in self._chunks(1))
        return torch.stack([values.abs().amax() for values in parts]).amax()

    def _encoded(self, stored: StoredTensors, part: Rows, scale: Tensor | None) -> dict[str, Tensor]:
        """The parts of some rows; codes of e4m3 keep theirs where one scale for all becomes one for each row."""
        assert self.form is not None
        if self.form == FP8 and stored.component.formats.get(part.tensor.removesuffix(".weight")) == FP8_TENSOR:
            values = stored.stored_parts(part, FP8_TENSOR)
            return {**values, SCALE: values[SCALE].expand(part.count)}
        return encode(self.form, stored.decoded(part.tensor, part.first, part.count), scale)

    def _stored_form(self, stored: StoredTensors) -> Format | None:
        """The format in which all rows are stored, where they can be copied."""
        formats = {stored.component.formats.get(part.tensor.removesuffix(".weight")) for part in self.assembly.parts}
        whole = len(self.assembly.parts) == 1 and self.assembly.parts[0].first == 0
        form = formats.pop() if len(formats) == 1 else None
        if form is None or isinstance(form, Split):
            return None
        return form if whole or not any(part.whole for part in form.parts()) else None


def _part_shape(part: Part, shape: Shape) -> Shape:
    rows, width = shape
    count = part.count(rows, width)
    if part.whole or count == rows:
        return () if count == 1 else (count,)
    if count % rows == 0 and part.name == "weight":
        return rows, count // rows
    tall = -(-rows // TILE_ROWS) * TILE_ROWS
    return (tall, count // tall) if count % tall == 0 else (rows, count // rows)


@dataclass(frozen=True)
class _File:
    """A file to be written. path: within the folder where the output is made. config: the transformer's.

    noted: whether quantised layers have their format in a tensor beside them, as ComfyUI wants it. loras: to be added.
    """

    path: Path
    component: Component
    tensors: tuple[_Tensor, ...]
    config: TransformerConfig | None = None
    noted: bool = False
    loras: tuple[ChosenLora, ...] = ()

    def opened(self) -> StoredTensors:
        """Where its values are read."""
        return MergedTensors(self.component, self.loras) if self.loras else StoredTensors(self.component)

    def planned(self, folder: Path) -> TensorFile:
        entries = {name: entry for tensor in self.tensors for name, entry in tensor.entries(self.noted).items()}
        layers = {tensor.layer: tensor.note for tensor in self.tensors if tensor.form is not None}
        return TensorFile(folder / self.path, entries, {"format": "pt", **header_notes(layers)})

    def pieces(self, stored: StoredTensors) -> Iterator[tuple[str, int, Tensor]]:
        for tensor in self.tensors:
            yield from tensor.pieces(stored, self.noted)


def convert(
    model: str | Path,
    output: Path,
    precision: Precision,
    layout: OutputLayout,
    on_progress: Callable[[int, int], object] | None = None,
    loras: Sequence[LoraChoice] = (),
    say: Callable[[str], object] = lambda report: None,
) -> None:
    """Writes a model in another precision or layout; afterwards it is there whole, or nothing of it is.

    model: what `open_checkpoint` takes, or a transformer alone. With "diffusers" the output is a folder: of the whole
    pipeline, or of the transformer where it came alone. With "bfl" and "comfy" it is a file with the transformer.
    "fp8", "int8" and "nvfp4" are the linear layers of the blocks, "stored" leaves every linear layer in the format it
    is in; all else is then bf16. The autoencoder is never quantised.
    on_progress: called after every piece with the bytes written so far and those there will be. loras: as
    `choose_loras` takes them, added in float32 to the weights that are written; say: called with what of each is
    applied and what is not.
    Raises RequestError for what cannot be converted or does not fit on the disk, HeadraceError when writing fails.
    """
    _check(output, precision, layout)
    source = find_source(model)
    files = _files(source, output.name, precision, layout, loras)
    for chosen in files[0].loras:
        say(chosen.report())
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
                with target, file.opened() as stored:
                    for name, first, values in file.pieces(stored):
                        target.write(name, first, values)
                        written += values.nbytes
                        if on_progress is not None:
                            on_progress(written, total)
            (Path(work) / output.name).rename(output)
    except OSError as error:
        raise HeadraceError(f"{output} could not be written: {error.strerror or error}.") from error


def _check(output: Path, precision: str, layout: OutputLayout) -> None:
    if (output.suffix == ".safetensors") == (layout == "diffusers"):
        wanted = "a folder" if layout == "diffusers" else "a .safetensors file"
        raise RequestError(f"The layout {layout} is {wanted}, which {output} is not by its name.")
    if output.exists():
        raise RequestError(f"{output} is there already: name another output.")
    if not output.parent.is_dir():
        raise RequestError(f"The folder {output.parent} does not exist; make it first.")


def _written(
    source: Path,
    precision: Precision,
    layout: OutputLayout,
    shapes: Mapping[str, Shape],
    stored: Mapping[str, Format],
    prefix: str = "",
) -> dict[str, Format]:
    """Layer -> the format it is written in. shapes, stored: of our layers. prefix: before their names.

    Raises RequestError where the layout has no way to say it.
    """
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    linears = [prefix + layer for layer in block_linears(own)]
    if precision == "fp32" or precision == "bf16":
        return {}
    chosen: dict[str, Format]
    if precision == "nvfp4":
        chosen = {layer: form for layer, form in stored.items() if form == Nvfp4()}
        chosen = chosen or {layer: Nvfp4() for layer in linears if shapes[f"{layer}.weight"][1] % NVFP4_BLOCK == 0}
    else:
        chosen = choose_formats(precision, linears, stored)
    written = {
        layer: _writable(form, shapes[f"{layer}.weight"][1], precision, layout) for layer, form in chosen.items()
    }
    for layer, form in written.items():
        if form is None:
            raise RequestError(
                f"{source} holds {layer} in {chosen[layer].precision}, for which the layout {layout} has no place: "
                "choose another --precision."
            )
    return {layer: form for layer, form in written.items() if form is not None}


def _writable(form: Format, width: int, precision: Precision, layout: OutputLayout) -> Format | None:
    """What a layer is written in that is to be in this format; None where the layout has no way to say it."""
    if isinstance(form, Fp8) and form.codes == "F8_E4M3" and precision == "fp8":
        # A layer's parts each have rows of their own in diffusers' layout, so that one scale becomes one for each row.
        return {"comfy": FP8_TENSOR, "diffusers": FP8}.get(layout, form)
    if form == INT8 and layout == "comfy":
        return Int8("row", "regular", max(size for size in REGULAR_SIZES if width % size == 0))
    if layout == "diffusers" and any(part.whole for part in form.parts()):
        return None
    if isinstance(form, Nvfp4):
        return form if form == Nvfp4() and layout != "diffusers" else None
    if isinstance(form, Fp8 | Int8 | Mxfp8):
        return form if layout != "diffusers" or isinstance(form, Fp8 | Int8) else None
    return None


def _files(
    source: Path, name: str, precision: Precision, layout: OutputLayout, choices: Sequence[LoraChoice]
) -> list[_File]:
    """The files to be written, the transformer's first. name: the output's."""
    dtype = "F32" if precision == "fp32" else "BF16"
    whole = (source / "model_index.json").is_file()
    component, config = transformer_component(read_weights(source / "transformer" if whole else source))
    shapes = transformer_shapes(config)
    formats = _written(source, precision, layout, shapes, component.formats)
    loras = choose_loras(choices, config, source.stem)
    component = _merging(component, formats, loras)
    if layout != "diffusers":
        tensors = _tensors(as_stored(shapes), dtype, formats)
        return [_File(Path(name), component, tensors, config, layout == "comfy", loras)]
    tensors = _tensors(to_diffusers(TRANSFORMER_RULES, shapes), dtype, formats)
    if not whole:
        return [_File(Path(name, WEIGHTS), component, tensors, config, loras=loras)]
    files = [_File(Path(name, "transformer", WEIGHTS), component, tensors, config, loras=loras)]
    component, autoencoder = autoencoder_component(read_weights(source / "vae"))
    plan = to_diffusers(AUTOENCODER_RULES, autoencoder_shapes(autoencoder), len(autoencoder.channels))
    files.append(_File(Path(name, "vae", WEIGHTS), component, _tensors(plan, dtype, {})))
    component, prefix = _text_encoder(source / "text_encoder")
    shapes = {name: plan.shape for name, plan in component.plan.items()}
    formats = _written(source, precision, layout, shapes, component.formats, prefix)
    tensors = _tensors(as_stored(shapes), dtype, formats, prefix)
    files.append(_File(Path(name, "text_encoder", "model.safetensors"), component, tensors))
    return files


def _merging(component: Component, written: Mapping[str, Format], loras: Sequence[ChosenLora]) -> Component:
    """A transformer whose layers that LoRAs change are decoded and written anew, not copied.

    Raises RequestError where one of them is to be written in a format that can only be copied.
    """
    changed = merged_layers(loras)
    for layer in sorted(changed & written.keys()):
        if not is_encoded(written[layer]):
            raise RequestError(
                f"{component.source} holds {layer} in a kind of {written[layer].precision} that is only copied, but a "
                "LoRA changes it: choose another --precision."
            )
    kept = {layer: form for layer, form in component.formats.items() if layer not in changed}
    return replace(component, formats=kept)


def _text_encoder(folder: Path) -> tuple[Component, str]:
    """Everything a text encoder's files hold, under the names it has there, and the language model's prefix."""
    weights = read_weights(folder)
    prefix = next((found.prefix for found in recognise(weights.tensors) if found.kind == "text encoder"), None)
    quantised = find_quantised(weights, "", weights.tensors)
    plain = {name: entry for name, entry in weights.tensors.items() if name not in quantised.owned}
    if prefix is None or weights.absent or {entry.dtype for entry in plain.values()} - set(TORCH_DTYPES):
        raise RequestError(f"{folder} is not a whole text encoder in formats that are read.")
    shapes = {name: entry.shape for name, entry in plain.items()}
    shapes |= {name: matrix.shape for name, matrix in quantised.matrices.items()}
    plan = as_stored(shapes)
    formats = layer_formats(plan, quantised.matrices)
    return Component(folder, weights.files, plain, quantised.matrices, plan, formats, ()), prefix


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
