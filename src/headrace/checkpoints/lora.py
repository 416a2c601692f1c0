"""What a LoRA file holds, in whatever dialect. From headers alone: without torch.

In every dialect the tensors of one layer share a name and differ in their endings, which are the table `ENDINGS`; what
they are together is a `Kind`. The names are those of `headrace.checkpoints.lora_names`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace import catalog
from headrace.checkpoints.headers import FLOAT_DTYPES, Shape, TensorEntry, read_header, squeezed
from headrace.checkpoints.layouts import Layout
from headrace.checkpoints.lora_names import MAX_NAME, TEXT_ENCODER, Target, find_target
from headrace.checkpoints.shapes import transformer_shapes
from headrace.checkpoints.weights import read_json
from headrace.errors import RequestError

Kind = Literal["LoRA", "LoHa", "LoKr", "difference", "bias"]

# Of one pair of factors; of a LoHa, whose factors multiply, the product of both ranks.
MAX_RANK = 4096
# Factors are also stored as plain 8-bit floats.
DTYPES = FLOAT_DTYPES | {"F8_E4M3"}
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_METADATA = "lora_adapter_metadata"

# How the tensors of a layer end, and the part each plays. PEFT may write an adapter's name behind `lora_A`.
ENDINGS: Mapping[str, str] = {
    r"\.lora_A(?:\.(?!weight$|bias$)[\w-]{1,64})?(?:\.weight)?": "down",
    r"\.lora_B(?:\.(?!weight$|bias$)[\w-]{1,64})?(?:\.weight)?": "up",
    r"(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)down(?:\.weight)?": "down",
    r"(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)up(?:\.weight)?": "up",
    r"\.(?:dora_scale|lora_magnitude_vector(?:\.[\w-]{1,64}){0,2})": "magnitude",
    r"\.alpha": "alpha",
    r"\.diff": "difference",
    r"\.diff_b": "bias",
    **{rf"\.{role}": role for index in (1, 2) for role in (f"hada_w{index}_a", f"hada_w{index}_b")},
    **{rf"\.lokr_w{index}{half}": f"lokr_w{index}{half}" for index in (1, 2) for half in ("", "_a", "_b")},
}
ENDING = re.compile("|".join(f"({ending})$" for ending in ENDINGS))
# What is no part of the kinds below, but tells that a file is a LoRA.
UNREAD_ENDING = re.compile(r"[._](?:lora_mid|lokr_t[12]|hada_t[12]|set_weight|reshape_weight|lora_B\.bias)\b")

# What a layer has to have of each kind; the first that it has counts.
ROLES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("LoRA", ("down", "up")),
    ("LoHa", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    ("LoKr", ("lokr_w1", "lokr_w2")),
    ("LoKr", ("lokr_w1", "lokr_w2_a", "lokr_w2_b")),
    ("LoKr", ("lokr_w1_a", "lokr_w1_b", "lokr_w2")),
    ("LoKr", ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")),
    ("difference", ("difference",)),
    ("bias", ("bias",)),
)
# Pairs of factors whose inner dimensions meet.
PAIRS = (("up", "down"), *((f"{kind}_w{i}_a", f"{kind}_w{i}_b") for kind in ("hada", "lokr") for i in (1, 2)))
# The parts of a layer that a name may mean, as letters: two names must not share one.
LETTERS: Mapping[str | None, str] = {None: "qkvm", "q": "q", "k": "k", "v": "v", "qkv": "qkv", "mlp": "m"}


@dataclass(frozen=True)
class Alpha:
    """What a header says of scales: `value` over the rank, or over its square root (arXiv:2312.03732)."""

    value: float
    root: bool


@dataclass(frozen=True)
class Patch:
    """What a file adds to one of our layers, to a part of it, or to one of our norms.

    name: of the layer in the file. names, shapes: of its tensors by the part they play, shapes without dimensions of
    size 1 at the end. alpha: by the header, where no tensor tells it.
    """

    name: str
    target: Target
    kind: Kind
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    alpha: Alpha | None

    @property
    def rank(self) -> int | None:
        """By which an alpha is divided; None where it is not used."""
        for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if role in self.shapes:
                return self.shapes[role][0]
        return None

    @property
    def size(self) -> Shape:
        """Rows and columns of what it adds; of a bias or a norm, how many values."""
        if self.kind == "LoRA":
            return self.shapes["up"][0], self.shapes["down"][1]
        if self.kind == "LoHa":
            return self.shapes["hada_w1_a"][0], self.shapes["hada_w1_b"][1]
        if self.kind == "LoKr":
            (left_rows, left_columns), (right_rows, right_columns) = _factor(self, 1), _factor(self, 2)
            return left_rows * right_rows, left_columns * right_columns
        return self.shapes[self.kind]

    @property
    def values(self) -> int:
        """How many values stay in memory while it is used, at most."""
        # Of magnitudes a gain for the layer's rows, and of a LoKr one for its own, in float32: two values of bfloat16.
        gains = 4 * self.size[0] if "magnitude" in self.shapes else 0
        if self.kind == "LoHa":
            return sum(self.size) * self.shapes["hada_w1_b"][0] * self.shapes["hada_w2_b"][0] + gains
        if self.kind == "LoKr":
            right = (math.prod(shape) for role, shape in self.shapes.items() if role.startswith("lokr_w2"))
            return math.prod(_factor(self, 1)) + sum(right) + gains
        return sum(math.prod(shape) for role, shape in self.shapes.items() if role != "magnitude") + gains


@dataclass(frozen=True)
class Lora:
    """A LoRA as its file describes it.

    layout, prefix: whose names most of its layers have, and what stands before them. tensors: all in the file.
    unused: for tensors that cannot be applied to any FLUX.2, what they are, as the end of a sentence.
    """

    source: Path
    layout: Layout
    prefix: str
    patches: tuple[Patch, ...]
    tensors: Mapping[str, TensorEntry]
    unused: Mapping[str, str]

    def misfits(self, shapes: Mapping[str, Shape]) -> list[tuple[Patch, str]]:
        """The patches that do not fit a transformer with tensors of these shapes, and why, as the end of a sentence."""
        reasons = ((patch, _misfit(patch, shapes)) for patch in self.patches)
        return [(patch, reason) for patch, reason in reasons if reason is not None]

    def fitting_models(self) -> tuple[str, ...]:
        """The models of the catalogue that everything in it fits."""
        return tuple(
            entry.name for entry in catalog.PUBLISHED if not self.misfits(transformer_shapes(entry.transformer))
        )


def read_lora(path: Path) -> Lora:
    """Reads the header of a LoRA file.

    Raises RequestError where the file is damaged, is no LoRA, or holds nothing that could be applied to FLUX.2.
    """
    header = read_header(path)
    if not is_lora(header.tensors):
        raise RequestError(f"{path} is not a LoRA: none of its {len(header.tensors)} tensors has a LoRA's name.")
    alphas = _read_alphas(path, header.metadata)
    layers, unused = _layers(path, header.tensors)
    spelled: Counter[tuple[Layout, str]] = Counter()
    patches: list[Patch] = []
    for name, names in layers.items():
        found = find_target(name)
        if found is None:
            unused |= dict.fromkeys(names.values(), _stranger(name))
            continue
        layout, prefix, target = found
        made, rest = _patches(name, target, names, header.tensors, alphas)
        spelled[layout, prefix] += 1
        patches.extend(made)
        unused |= rest
    if not patches:
        raise RequestError(f"{path} holds nothing that FLUX.2 has a layer for: {summary(unused)}.")
    _check_overlap(path, patches)
    (layout, prefix), _ = spelled.most_common(1)[0]
    return Lora(path, layout, prefix, tuple(patches), header.tensors, unused)


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a LoRA's, of whatever dialect and for whatever model."""
    return any(_split(name) is not None or UNREAD_ENDING.search(name[:MAX_NAME]) for name in names)


def describe_kinds(patches: Iterable[Patch]) -> str:
    """ "LoRA of rank 4 to 16, bias", or whatever the patches are."""
    ranks: dict[str, set[int]] = {}
    for patch in patches:
        kind = patch.kind + (" with magnitudes (DoRA)" if "magnitude" in patch.shapes else "")
        ranks.setdefault(kind, set()).update(() if patch.rank is None else (patch.rank,))
    return ", ".join(
        f"{kind} of rank {' to '.join(map(str, sorted({min(found), max(found)})))}" if found else kind
        for kind, found in sorted(ranks.items())
    )


def summary(unused: Mapping[str, str]) -> str:
    """ "3 tensors of a text encoder (a, …), 1 tensor …": what is not applied, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in unused.items():
        names.setdefault(reason, []).append(name)
    return ", ".join(
        f"{len(some)} tensor{'' if len(some) == 1 else 's'} {reason} ({some[0][:120]}{', …' if len(some) > 1 else ''})"
        for reason, some in names.items()
    )


def _layers(path: Path, tensors: Mapping[str, TensorEntry]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Layer -> part played -> tensor, all by names in the file; and what the other tensors are."""
    layers: dict[str, dict[str, str]] = {}
    unused: dict[str, str] = {}
    for name, entry in tensors.items():
        split = _split(name)
        if split is None:
            unused[name] = "of a kind that is not read" if UNREAD_ENDING.search(name[:MAX_NAME]) else _stranger(name)
        elif entry.dtype not in DTYPES:
            unused[name] = f"in {entry.dtype}"
        else:
            layer, role = split
            if role in layers.setdefault(layer, {}):
                raise RequestError(
                    f"{path} holds {layers[layer][role]} and {name}, several LoRAs in one file: save each on its own."
                )
            layers[layer][role] = name
    return layers, unused


def _split(name: str) -> tuple[str, str] | None:
    """A tensor's name as its layer's and the part it plays there; None for what is no part of a LoRA."""
    match = ENDING.search(name) if len(name) <= MAX_NAME else None
    if match is None or match.lastindex is None or not match.start():
        return None
    return name[: match.start()], tuple(ENDINGS.values())[match.lastindex - 1]


def _stranger(name: str) -> str:
    return "of a text encoder" if TEXT_ENCODER.match(name) else "of no layer of FLUX.2's transformer"


def _patches(
    name: str, target: Target, names: Mapping[str, str], tensors: Mapping[str, TensorEntry], alphas: _Alphas
) -> tuple[list[Patch], dict[str, str]]:
    """What the tensors of a layer are together, and what those among them are that cannot be applied."""
    shapes = {role: squeezed(tensors[tensor].shape) for role, tensor in names.items()}
    if math.prod(shapes.get("alpha", ())) != 1:
        return [], dict.fromkeys(names.values(), "of layers with several alphas")
    # Older LyCORIS may have a magnitude for each column: its LoRA without it would be another one.
    if len(shapes.get("magnitude", (1,))) != 1:
        return [], dict.fromkeys(names.values(), "of layers with a magnitude for each column")
    patches: list[Patch] = []
    left = set(names)
    for kind, required in ROLES:
        if not left.issuperset(required) or not _is_sound(kind, target, {role: shapes[role] for role in required}):
            continue
        scaled = kind not in ("difference", "bias")
        roles = (*required, *(role for role in ("alpha", "magnitude") if scaled and role in left))
        own_names, own_shapes = {role: names[role] for role in roles}, {role: shapes[role] for role in roles}
        alpha = alphas.of(name) if scaled and "alpha" not in roles else None
        patches.append(Patch(name, target, kind, own_names, own_shapes, alpha))
        left -= set(roles)
    if patches:
        left -= {"alpha"}  # beside a difference it says nothing
    return patches, dict.fromkeys((names[role] for role in left), "without counterparts of fitting shapes")


def _is_sound(kind: Kind, target: Target, shapes: Mapping[str, Shape]) -> bool:
    """Whether tensors can be what their names say: in their dimensions, inner ones and ranks."""
    if not all(all(shape) for shape in shapes.values()):
        return False
    if kind == "bias" or target.is_norm:
        return kind == ("difference" if target.is_norm else "bias") and len(shapes[kind]) == 1
    if any(len(shape) != 2 for shape in shapes.values()):
        return False
    rank = 1
    for left, right in PAIRS:
        if left in shapes and right in shapes:
            if shapes[left][1] != shapes[right][0]:
                return False
            rank = rank * shapes[right][0] if kind == "LoHa" else max(rank, shapes[right][0])
    if kind == "LoHa" and shapes["hada_w1_a"][0] != shapes["hada_w2_a"][0]:
        return False
    if kind == "LoHa" and shapes["hada_w1_b"][1] != shapes["hada_w2_b"][1]:
        return False
    return rank <= MAX_RANK


def _factor(patch: Patch, index: int) -> tuple[int, int]:
    """The size of a LoKr's first or second factor."""
    whole = patch.shapes.get(f"lokr_w{index}")
    if whole is not None:
        return whole[0], whole[1]
    return patch.shapes[f"lokr_w{index}_a"][0], patch.shapes[f"lokr_w{index}_b"][1]


def _misfit(patch: Patch, shapes: Mapping[str, Shape]) -> str | None:
    if patch.target.is_norm:
        wanted = shapes.get(f"{patch.target.layer}.scale")
    else:
        weight = shapes.get(f"{patch.target.layer}.weight")
        rows = 0 if weight is None else patch.target.rows(weight)[1]
        wanted = None if weight is None else (rows,) if patch.kind == "bias" else (rows, weight[1])
    if wanted is None:
        return "is of a layer that this model does not have"
    if patch.size != wanted:
        return f"is for {_by(patch.size)} values where this model has {_by(wanted)}"
    if "magnitude" in patch.shapes and patch.shapes["magnitude"] != wanted[:1]:
        return f"has {_by(patch.shapes['magnitude'])} magnitudes for {wanted[0]} rows"
    return None


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _check_overlap(path: Path, patches: Iterable[Patch]) -> None:
    """Raises RequestError where the same rows are patched twice under two names."""
    taken: dict[tuple[str, Kind, str], str] = {}
    for patch in patches:
        for letter in LETTERS[patch.target.part]:
            other = taken.setdefault((patch.target.layer, patch.kind, letter), patch.name)
            if other != patch.name:
                raise RequestError(f"{path} holds {other} and {patch.name}, which are the same layer: remove one.")


@dataclass(frozen=True)
class _Alphas:
    """What a header or configuration of PEFT's says of scales. patterns: by the end of a layer's name."""

    default: Alpha | None
    patterns: Mapping[str, Alpha]

    def of(self, name: str) -> Alpha | None:
        """A layer's, by its name in the file."""
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        return next((self.patterns[end] for end in ends if end in self.patterns), self.default)


def _read_alphas(path: Path, metadata: Mapping[str, str]) -> _Alphas:
    """From what diffusers puts into the header, or the configuration that PEFT writes beside the file."""
    beside = path.with_name(ADAPTER_CONFIG)
    values: Mapping[str, Any]
    if ADAPTER_METADATA in metadata:
        source = f"{ADAPTER_METADATA} in the header of {path}"
        try:
            document = json.loads(metadata[ADAPTER_METADATA])
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path} is damaged: {source} is not valid JSON.") from error
        values = document if isinstance(document, dict) else {}
        values = {name.removeprefix("transformer."): value for name, value in values.items()}
    elif path.name == "adapter_model.safetensors" and beside.is_file():
        source, values = str(beside), read_json(beside)
    else:
        return _Alphas(None, {})
    kind = values.get("peft_type", "LORA")
    if kind != "LORA" and values.get("alpha") != values.get("r"):
        raise RequestError(
            f"{source} gives a {str(kind)[:20]} a scale, which is only read for LORA: merge it into its factors."
        )
    root = values.get("use_rslora") is True
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise RequestError(f"{source} has an alpha_pattern that is not an object.")
    default = values.get("lora_alpha")
    return _Alphas(
        None if default is None else Alpha(_number(source, default), root),
        {_plain(source, name): Alpha(_number(source, value), root) for name, value in patterns.items()},
    )


def _plain(source: str, pattern: str) -> str:
    """The end of a layer's name that a pattern stands for."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if re.fullmatch(r"[\w.]{1,200}", name) is None:
        raise RequestError(f"{source} has an alpha_pattern that is not read: {pattern[:80]!r}.")
    return name


def _number(source: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return float(value)
    raise RequestError(f"{source} has {str(value)[:80]!r} for an alpha, which is not a number.")
