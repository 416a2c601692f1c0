"""What loading costs in every stored format: the file's bytes, those that stay, the peak, and the time.

The files have random weights in a published transformer's shapes, with fewer blocks, and are read right after they were
written, so that the time is that of copying and not of the disk.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from headrace.checkpoints import build_network
from headrace.checkpoints.components import transformer_component
from headrace.checkpoints.gguf import BLOCK_TYPES, DEFAULT_ALIGNMENT, MAGIC, PLAIN_TYPES, STRING
from headrace.checkpoints.headers import Shape
from headrace.checkpoints.load import fill_module
from headrace.checkpoints.quantised import NF4_STATE
from headrace.checkpoints.shapes import transformer_shapes
from headrace.checkpoints.weights import read_weights
from headrace.checkpoints.write import TensorFile
from headrace.errors import HeadraceError
from headrace.memory.process import peak_bytes, resident_bytes, return_freed_memory
from headrace.nn.config import TransformerConfig
from headrace.nn.transformer import Transformer
from headrace.quant.formats import (
    FP8_TENSOR,
    GGUF_BLOCKS,
    Format,
    Fp8,
    Gguf,
    Int8,
    Mxfp8,
    Nf4,
    Nvfp4,
    block_linears,
)

DRAWN_BYTES = 2**22
# Random bytes without the bits that make an exponent of ones, so that no code is infinite or no number.
FINITE = 0x77

FORMATS: Mapping[str, Format | None] = {
    "bf16": None,
    "fp8 (e4m3)": FP8_TENSOR,
    "fp8 (e5m2)": Fp8("tensor", "F8_E5M2"),
    "int8, rotated": Int8("row", "regular"),
    "int8": Int8("row", None),
    "mxfp8": Mxfp8(),
    "nvfp4": Nvfp4(),
    "nvfp4 (ModelOpt)": Nvfp4("modelopt"),
    "nf4": Nf4(),
    **{kind: Gguf(kind) for kind in ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q3_K", "Q2_K")},
}


@dataclass(frozen=True)
class Loaded:
    """Bytes of the weights in memory, of what the process took in addition while it loaded them, and the seconds."""

    weights: int
    peak: int
    seconds: float


@dataclass(frozen=True)
class FormatRow:
    """One format. file: its bytes."""

    name: str
    file: int
    weights: int
    peak: int
    seconds: float


def compare_formats(config: TransformerConfig, doubles: int, singles: int, folder: Path) -> Iterator[FormatRow]:
    """Write, load and delete a transformer with so many blocks in every format of `FORMATS`.

    folder: where the files are written, one at a time. Raises HeadraceError where a file cannot be written or loaded.
    """
    shapes = transformer_shapes(replace(config, depth=doubles, depth_single_blocks=singles))
    for name, form in FORMATS.items():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            file = Path(work) / ("model.gguf" if isinstance(form, Gguf) else "model.safetensors")
            try:
                write_weights(file, shapes, form)
                loaded = _in_a_process_of_its_own(file)
                yield FormatRow(name, file.stat().st_size, **asdict(loaded))
            except OSError as error:
                raise HeadraceError(f"{file} cannot be written: {error.strerror or error}.") from error


def write_weights(file: Path, shapes: Mapping[str, Shape], form: Format | None) -> None:
    """A transformer's random weights in bf16, the linear layers of its blocks in this format where there is one."""
    coded = {f"{layer}.weight" for layer in block_linears(shapes)} if form is not None else set()
    if isinstance(form, Gguf):
        _write_gguf(file, shapes, coded, form)
        return
    entries: dict[str, tuple[str, Shape]] = {}
    notes: dict[str, bytes] = {}
    for name, shape in shapes.items():
        if name not in coded or form is None:
            entries[name] = "BF16", shape
            continue
        layer = name.removesuffix(".weight")
        for part in form.parts():
            count = part.count(*shape)
            own = (shape[0], count // shape[0]) if part.name == "weight" else (count,)
            entries[f"{layer}.{part.name}"] = part.dtype, own
        note_name, note = _note(form, shape)
        if note:
            notes[f"{layer}.{note_name}"] = json.dumps(note).encode()
    if isinstance(form, Nvfp4) and form.dialect == "modelopt":
        settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
        file.with_name("hf_quant_config.json").write_text(json.dumps(settings))
    drawn = _drawn()
    entries |= {name: ("U8", (len(note),)) for name, note in notes.items()}
    with TensorFile(file, entries, {}) as written:
        for name, (dtype, shape) in entries.items():
            if name in notes:
                written.write(name, 0, torch.tensor(list(notes[name]), dtype=torch.uint8))
                continue
            count = math.prod(shape)
            if dtype == "F32":
                written.write(name, 0, torch.full((count,), 1e-3))
                continue
            size = count * (2 if dtype == "BF16" else 1)
            for start in range(0, size, DRAWN_BYTES):
                # TensorFile counts in values, which are bytes here.
                written.write(name, start, drawn[: min(DRAWN_BYTES, size - start)])


def _note(form: Format, shape: Shape) -> tuple[str, dict[str, object]]:
    """What stands beside a layer to say how it is stored, and under which name."""
    match form:
        case Int8(rotation="regular", size=size):
            return "comfy_quant", {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": size}
        case Int8():
            return "comfy_quant", {"format": "int8_tensorwise"}
        case Mxfp8():
            return "comfy_quant", {"format": "mxfp8"}
        case Nvfp4(dialect="comfy"):
            return "comfy_quant", {"format": "nvfp4"}
        case Nf4(block=block):
            return NF4_STATE, {"quant_type": "nf4", "blocksize": block, "shape": list(shape)}
    return "", {}


def _write_gguf(file: Path, shapes: Mapping[str, Shape], coded: set[str], form: Gguf) -> None:
    numbers = {name: number for number, name in BLOCK_TYPES.items()}
    plain = {name: number for number, (name, _) in PLAIN_TYPES.items()}["BF16"]
    weights, block = GGUF_BLOCKS[form.type]
    described, sizes, end = b"", [], 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        size = count // weights * block if name in coded else 2 * count
        kind = numbers[form.type] if name in coded else plain
        described += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, end)
        sizes.append(size)
        end += -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
    fields = _text("general.architecture") + struct.pack("<I", STRING) + _text("flux")
    header = MAGIC + struct.pack("<IQQ", 3, len(shapes), 1) + fields + described
    drawn = _drawn().numpy()
    with file.open("wb") as target:
        target.write(header + bytes(-len(header) % DEFAULT_ALIGNMENT))
        for size in sizes:
            for start in range(0, size, DRAWN_BYTES):
                target.write(drawn[: min(DRAWN_BYTES, size - start)].data)
            target.write(bytes(-size % DEFAULT_ALIGNMENT))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _drawn() -> Tensor:
    drawn = torch.randint(0, 256, (DRAWN_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return drawn & FINITE


def _in_a_process_of_its_own(file: Path) -> Loaded:
    code = "import sys; from headrace.bench.formats import print_loaded; print_loaded(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HeadraceError(f"{file} could not be loaded: {(done.stderr.strip().splitlines() or ['killed'])[-1]}.")
    return Loaded(**json.loads(done.stdout))


def print_loaded(file: str) -> None:
    """Load a transformer as it is stored, in a process that does nothing else, and print what that took as JSON."""
    import time

    return_freed_memory()
    before, start = resident_bytes(), time.perf_counter()
    component, config = transformer_component(read_weights(Path(file)))
    network = build_network(lambda: Transformer(config), component, torch.bfloat16, "stored")
    fill_module(network, component, "cpu")
    seconds = time.perf_counter() - start
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    loaded = Loaded(weights, peak_bytes() - before, seconds)
    sys.stdout.write(json.dumps(asdict(loaded)))
