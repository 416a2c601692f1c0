"""From LoRA files to what is added beside a transformer's layers, in its final place and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from headrace.checkpoints.components import Component
from headrace.checkpoints.layouts import as_stored
from headrace.checkpoints.load import BUFFER_BYTES, StoredTensors
from headrace.checkpoints.lora import Lora, Patch
from headrace.checkpoints.lora_choice import ChosenLora
from headrace.errors import RequestError
from headrace.quant.lora import Branch, Delta, Full, Kronecker, LinearBranch, LowRank, NormBranch, khatri_rao

Read = Callable[[str, torch.dtype], Tensor]
"""A tensor of a layer in a LoRA's file, by the part it plays there, in some dtype."""


def load_branches(
    loras: Sequence[ChosenLora], transformer: Component, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Branch]:
    """What the LoRAs add to each of our layers and norms, by its name.

    transformer: the model's, whose weights are read where magnitudes have to be compared with theirs.
    Raises RequestError where a file became unreadable, or holds a value that is not a finite number.
    """
    loading = _Loading(transformer, dtype, device)
    for chosen in loras:
        with StoredTensors(_as_component(chosen.lora)) as stored:
            for patch in chosen.patches:
                loading.add(patch, stored, chosen.record.strength)
    return loading.branches()


def _as_component(lora: Lora) -> Component:
    plan = as_stored({name: entry.shape for name, entry in lora.tensors.items()})
    return Component(lora.source, (lora.source,), lora.tensors, {}, plan, {}, ())


@dataclass
class _Loading:
    """What has been read so far."""

    transformer: Component
    dtype: torch.dtype
    device: torch.device | str
    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    gains: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, patch: Patch, stored: StoredTensors, strength: float) -> None:
        """Read a patch and add it to what its layer has."""
        layer = patch.target.layer

        def read(role: str, dtype: torch.dtype) -> Tensor:
            return _read(stored, patch, role, dtype, self.device)

        if patch.kind == "bias" or patch.target.is_norm:
            values = _rows_in_our_order(patch, strength * read(patch.kind, torch.float32))
            self._sum(layer, patch, values)
            return
        first, _ = patch.target.rows(self._shape(layer))
        delta = _delta(patch, read, self.dtype, first)
        if "magnitude" in patch.shapes and not isinstance(delta, Full):
            magnitude = _rows_in_our_order(patch, read("magnitude", torch.float32))
            gain = magnitude / self._row_norms(layer, delta)
            gains = self.gains.setdefault(layer, torch.ones(self._shape(layer)[0], device=self.device))
            gains[first : first + delta.count] += strength * (gain - 1)
            if isinstance(delta, Kronecker):
                delta = replace(delta, gain=gain)
            else:
                delta = replace(delta, up=(delta.up * gain[:, None]).to(self.dtype))
        self.deltas.setdefault(layer, []).append(replace(delta, scale=delta.scale * strength))

    def branches(self) -> dict[str, Branch]:
        """All that was added, by layer."""
        made: dict[str, Branch] = {}
        for layer in {**self.deltas, **self.sums}:
            gain, total = self.gains.get(layer), self.sums.get(layer)
            if layer.endswith("_norm"):
                made[layer] = NormBranch(cast(Tensor, total).to(self.dtype))
                continue
            bias = None if total is None else total.to(self.dtype)
            made[layer] = LinearBranch(tuple(self.deltas.get(layer, ())), gain, bias)
        return made

    def _sum(self, layer: str, patch: Patch, values: Tensor) -> None:
        """Add to the bias of a layer, or of a part of it, or to the scale of a norm."""
        if patch.target.is_norm:
            first, size = 0, len(values)
        else:
            shape = self._shape(layer)
            first, size = patch.target.rows(shape)[0], shape[0]
        total = self.sums.setdefault(layer, torch.zeros(size, device=self.device))
        total[first : first + len(values)] += values

    def _shape(self, layer: str) -> tuple[int, ...]:
        return self.transformer.plan[f"{layer}.weight"].shape

    def _row_norms(self, layer: str, delta: Delta) -> Tensor:
        """The lengths of the rows of the model's weight with the delta added, read a few MiB at a time."""
        name, width = f"{layer}.weight", self._shape(layer)[1]
        step = max(1, BUFFER_BYTES // (4 * width))
        norms = torch.empty(delta.count, device=self.device)
        with StoredTensors(self.transformer) as weights:
            for start in range(0, delta.count, step):
                count = min(step, delta.count - start)
                rows = weights.decoded(name, delta.first + start, count).to(self.device)
                norms[start : start + count] = (rows + delta.rows(start, count)).norm(dim=1)
        # A row of zeros has no direction; whatever its magnitude, it stays zero.
        return torch.where(norms > 0, norms, torch.inf)


def _delta(patch: Patch, read: Read, dtype: torch.dtype, first: int) -> Delta:
    """What a patch adds to a weight from row `first` on, at strength 1."""
    scale = _scale(patch, read)
    if patch.kind == "LoRA":
        return LowRank(read("down", dtype), _rows_in_our_order(patch, read("up", dtype)), scale, first)
    if patch.kind == "LoHa":
        pairs = [(read(f"hada_w{i}_a", torch.float32), read(f"hada_w{i}_b", torch.float32)) for i in (1, 2)]
        up, down = khatri_rao(*pairs)
        return LowRank(down.to(dtype), _rows_in_our_order(patch, up).to(dtype), scale, first)
    if patch.kind == "LoKr":
        left_roles, right_roles = _factor_roles(patch)
        left = [read(role, torch.float32) for role in left_roles]
        return Kronecker(
            (left[0] if len(left) == 1 else left[0] @ left[1]).to(dtype),
            tuple(read(role, dtype) for role in right_roles),
            scale,
            first,
            patch.target.halves_swapped,
        )
    return Full(_rows_in_our_order(patch, read("difference", dtype)), scale, first)


def _factor_roles(patch: Patch) -> Iterator[tuple[str, ...]]:
    """The tensors of a LoKr's first factor, and of its second."""
    for index in (1, 2):
        whole = f"lokr_w{index}"
        yield (whole,) if whole in patch.shapes else (f"{whole}_a", f"{whole}_b")


def _scale(patch: Patch, read: Read) -> float:
    """What the product of a patch's factors is multiplied by, at strength 1."""
    if patch.rank is None:
        return 1.0
    if "alpha" in patch.shapes:
        return float(read("alpha", torch.float32)) / patch.rank
    if patch.alpha is None:
        return 1.0
    return patch.alpha.value / (patch.rank**0.5 if patch.alpha.root else patch.rank)


def _rows_in_our_order(patch: Patch, values: Tensor) -> Tensor:
    return values.roll(len(values) // 2, 0) if patch.target.halves_swapped else values


def _read(stored: StoredTensors, patch: Patch, role: str, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    name = patch.names[role]
    values = torch.empty(patch.shapes[role], dtype=dtype, device=device)
    stored.read(name, values)
    if not bool(values.isfinite().all()):
        raise RequestError(
            f"{stored.component.source} is damaged: {name[:200]} holds a value that is not a finite number."
        )
    return values
