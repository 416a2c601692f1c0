"""How a linear layer's weights are stored in fewer bits than bf16, and which layers are. Without torch.

A format says which tensors a matrix of N rows (output channels) and K columns is made of, and how many bytes those
take; `headrace.quant.decode` says what values they stand for. The tensors lie in memory as they lie in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Bits = Literal["fp8", "int8", "stored"]
EIGHT_BITS: tuple[Bits, ...] = ("fp8", "int8")

ROTATION_LIMIT = 256
# Rows and blocks of the tiles in which cuBLAS wants the scales of small blocks (cuBLAS documentation, "1D block
# scaling": 128 rows by 4 scales).
TILE_ROWS, TILE_BLOCKS = 128, 4
NVFP4_BLOCK = 16
MXFP8_BLOCK = 32

# The linear layers of the blocks: 95 to 97 % of the published transformers. Modulation, embedders and the final layer
# are 3 to 5 % and would cost 7 dB, so they stay as they are (benchmarks/quality.md).
BLOCK_LINEAR = re.compile(r"(?P<layer>(?:double_blocks|single_blocks|layers)\.\d+\..+)\.weight")

BYTES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F32": 4}

# Weights and bytes of the blocks of ggml's types, which lie along the rows (ggml-common.h of llama.cpp).
GGUF_BLOCKS: Mapping[str, tuple[int, int]] = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


@dataclass(frozen=True)
class Part:
    """One of the tensors that a matrix is stored in, as a run of values.

    name: what it is called after the layer's name. dtype: as in a safetensors header. count: (N, K) -> its values.
    whole: whether it belongs to the matrix as one; else rows a to b own its values from count(a, K) to count(b, K).
    """

    name: str
    dtype: str
    count: Callable[[int, int], int]
    whole: bool = False


class Format(Protocol):
    """How a matrix is stored.

    precision: what a person calls it: "fp8", "nvfp4", "q4_k" …
    """

    @property
    def precision(self) -> str: ...

    def parts(self) -> tuple[Part, ...]:
        """The tensors it is stored in."""
        ...

    def together(self, width: int) -> int:
        """How many rows of this width can only be cut apart as one."""
        ...


def _weights(rows: int, width: int) -> int:
    return rows * width


def _pairs(rows: int, width: int) -> int:
    return rows * width // 2


def _rows(rows: int, width: int) -> int:
    return rows


def _one(rows: int, width: int) -> int:
    return 1


def _columns(rows: int, width: int) -> int:
    return width


def _nvfp4_blocks(rows: int, width: int) -> int:
    return rows * width // NVFP4_BLOCK


def _nvfp4_tiles(rows: int, width: int) -> int:
    return _tiles(rows, width // NVFP4_BLOCK)


def _mxfp8_tiles(rows: int, width: int) -> int:
    return _tiles(rows, width // MXFP8_BLOCK)


def _tiles(rows: int, blocks: int) -> int:
    return -(-rows // TILE_ROWS) * TILE_ROWS * tiled_blocks(blocks)


def tiled_blocks(blocks: int) -> int:
    """How many scales a row has in tiles, where it needs so many."""
    return -(-blocks // TILE_BLOCKS) * TILE_BLOCKS


def _scale(scales: Literal["row", "tensor"]) -> Part:
    return Part("weight_scale", "F32", _one, whole=True) if scales == "tensor" else Part("weight_scale", "F32", _rows)


@dataclass(frozen=True)
class Fp8:
    """Eight bits a weight and a float32 scale for each row, or one for the whole tensor.

    codes: e4m3 without infinities, or e5m2 (Micikevicius et al. 2022, arXiv:2209.05433).
    """

    scales: Literal["row", "tensor"] = "row"
    codes: Literal["F8_E4M3", "F8_E5M2"] = "F8_E4M3"

    @property
    def precision(self) -> str:
        return "fp8"

    def parts(self) -> tuple[Part, ...]:
        return Part("weight", self.codes, _weights), _scale(self.scales)

    def together(self, width: int) -> int:
        return 1


@dataclass(frozen=True)
class Int8:
    """Whole numbers from -127 to 127 and a float32 scale for each row, or one for the whole tensor.

    rotation: of the weights along their rows, by which Hadamard matrices (`headrace.quant.codecs.rotate`); None for
    none. size: of the matrices, at most.
    """

    scales: Literal["row", "tensor"] = "row"
    rotation: Literal["sylvester", "regular"] | None = "sylvester"
    size: int = ROTATION_LIMIT

    @property
    def precision(self) -> str:
        return "int8"

    def parts(self) -> tuple[Part, ...]:
        return Part("weight", "I8", _weights), _scale(self.scales)

    def together(self, width: int) -> int:
        return 1


@dataclass(frozen=True)
class Nvfp4:
    """Packed e2m1, an e4m3 scale for every 16 weights of a row, and a float32 scale for the whole tensor.

    dialect: "comfy" (ComfyUI, Black Forest Labs) has the first weight of a pair in the high half of its byte, and the
    scales in tiles; "modelopt" (NVIDIA's ModelOpt, diffusers) has it in the low half, and the scales row by row.
    smoothed: whether there are factors for the columns of the input, which are the weights' as well.
    """

    dialect: Literal["comfy", "modelopt"] = "comfy"
    smoothed: bool = False

    @property
    def precision(self) -> str:
        return "nvfp4"

    def parts(self) -> tuple[Part, ...]:
        blocks = _nvfp4_tiles if self.dialect == "comfy" else _nvfp4_blocks
        parts = (
            Part("weight", "U8", _pairs),
            Part("weight_scale", "F8_E4M3", blocks),
            Part("weight_scale_2", "F32", _one, whole=True),
        )
        return (*parts, Part("pre_quant_scale", "F32", _columns, whole=True)) if self.smoothed else parts

    def together(self, width: int) -> int:
        return TILE_ROWS if self.dialect == "comfy" else 1


@dataclass(frozen=True)
class Mxfp8:
    """e4m3 with an exponent (e8m0) for every 32 weights of a row, in tiles (OCP Microscaling Formats 1.0)."""

    @property
    def precision(self) -> str:
        return "mxfp8"

    def parts(self) -> tuple[Part, ...]:
        return Part("weight", "F8_E4M3", _weights), Part("weight_scale", "U8", _mxfp8_tiles)

    def together(self, width: int) -> int:
        return TILE_ROWS


@dataclass(frozen=True)
class Nf4:
    """bitsandbytes' four bits: codes of 16 values, the first of a pair in the high half, in blocks of `block` weights.

    Blocks run on from row to row. Each has its largest magnitude, a float32; or, with `nested`, a code of 256 values
    with a float32 for every `nested` of them, to which `offset` is added (Dettmers et al. 2023, arXiv:2305.14314).
    """

    block: int = 64
    nested: int | None = None
    offset: float = 0.0

    @property
    def precision(self) -> str:
        return "nf4"

    def parts(self) -> tuple[Part, ...]:
        weight, levels = (
            Part("weight", "U8", _pairs),
            Part("weight.quant_map", "F32", lambda rows, width: 16, whole=True),
        )
        if self.nested is None:
            return weight, Part("weight.absmax", "F32", self._groups_of(self.block)), levels
        return (
            weight,
            Part("weight.absmax", "U8", self._groups_of(self.block)),
            levels,
            Part("weight.nested_absmax", "F32", self._groups_of(self.block * self.nested)),
            Part("weight.nested_quant_map", "F32", lambda rows, width: 256, whole=True),
        )

    def together(self, width: int) -> int:
        group = self.block * (self.nested or 1)
        return group // math.gcd(width, group)

    @staticmethod
    def _groups_of(size: int) -> Callable[[int, int], int]:
        return lambda rows, width: -(-rows * width // size)


@dataclass(frozen=True)
class Gguf:
    """ggml's blocks; type: one of `GGUF_BLOCKS`."""

    type: str

    @property
    def precision(self) -> str:
        return self.type.lower()

    def parts(self) -> tuple[Part, ...]:
        weights, size = GGUF_BLOCKS[self.type]
        return (Part("weight", "U8", lambda rows, width: rows * (width // weights) * size),)

    def together(self, width: int) -> int:
        return 1


@dataclass(frozen=True)
class Split:
    """A matrix whose rows are stored in several pieces: (how many, their format), the latter None for plain values."""

    pieces: tuple[tuple[int, Format | None], ...]

    @property
    def precision(self) -> str:
        names = {"bf16" if form is None else form.precision for _, form in self.pieces}
        return names.pop() if len(names) == 1 else "mixed"

    def parts(self) -> tuple[Part, ...]:
        return ()

    def together(self, width: int) -> int:
        return 1


FP8 = Fp8()
FP8_TENSOR = Fp8("tensor")
INT8 = Int8()
# What layers are encoded in where eight bits are asked for and the file has others.
ENCODED: Mapping[Bits, Format] = {"fp8": FP8, "int8": INT8}


def format_bytes(form: Format | None, shape: tuple[int, ...], value_bytes: int) -> int:
    """What a tensor takes. shape: of its values; value_bytes: of those that are stored as such."""
    if form is None:
        return math.prod(shape) * value_bytes
    rows, width = shape
    if isinstance(form, Split):
        return sum(format_bytes(piece, (count, width), value_bytes) for count, piece in form.pieces)
    return sum(part.count(rows, width) * BYTES[part.dtype] for part in form.parts())


def block_linears(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The layers among tensors of these names (ours) and shapes that are kept in eight bits where eight are wanted."""
    matches = (BLOCK_LINEAR.fullmatch(name) for name, shape in shapes.items() if len(shape) == 2)
    return [match["layer"] for match in matches if match is not None]


def choose_formats(bits: Bits | None, linears: Iterable[str], stored: Mapping[str, Format]) -> dict[str, Format]:
    """Layer -> its format, for those that are not to be kept as plain values (None: every layer is).

    linears: the layers that may be in eight bits. stored: what the file holds; where it has any of them in the bits
    that are wanted, its maker's choice of layers stands; with "stored" it stands whatever it is.
    """
    if bits is None:
        return {}
    if bits == "stored":
        return dict(stored)
    layers = tuple(linears)
    as_stored = {layer: stored[layer] for layer in layers if layer in stored and stored[layer].precision == bits}
    return as_stored or dict.fromkeys(layers, ENCODED[bits])


def rotation_size(width: int, form: Int8 = INT8) -> int:
    """The order of the Hadamard matrices that rotate rows of `width`: the largest power of two dividing it, up to 256.

    256 holds the error of a few outlier channels nearly as well as larger ones and costs 3 % of a product.
    """
    return 1 if form.rotation is None else math.gcd(width, form.size)
