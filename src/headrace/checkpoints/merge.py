"""LoRAs added to a transformer's weights as these are read, for a file that has them inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headrace.checkpoints.components import Component
from headrace.checkpoints.load import StoredTensors
from headrace.checkpoints.lora_choice import ChosenLora
from headrace.checkpoints.lora_load import load_branches
from headrace.errors import RequestError
from headrace.quant.lora import Branch, NormBranch


def merged_layers(loras: Sequence[ChosenLora]) -> frozenset[str]:
    """Our layers and norms that LoRAs change. Raises RequestError for one that adds biases, which no layer here has."""
    for chosen in loras:
        for patch in chosen.patches:
            if patch.kind == "bias":
                raise RequestError(
                    f"{chosen.lora.source} adds a bias to {patch.name[:200]}, for which a file of FLUX.2 has no place: "
                    "use it beside the model, with headrace generate --lora."
                )
    return frozenset(patch.target.layer for chosen in loras for patch in chosen.patches)


class MergedTensors(StoredTensors):
    """A transformer's tensors with LoRAs added; of the LoRAs one layer at a time is in memory."""

    def __init__(self, component: Component, loras: Sequence[ChosenLora]) -> None:
        super().__init__(component)
        self._loras = loras
        self._layer = ""
        self._branch: Branch | None = None

    def decoded(self, name: str, first: int, count: int) -> Tensor:
        """`count` rows of a tensor in float32, from row `first` on."""
        values = super().decoded(name, first, count)
        branch = self._of(name.rpartition(".")[0])
        if branch is None:
            return values
        if isinstance(branch, NormBranch):
            return values + branch.scale[first : first + count]
        if branch.gain is not None:
            values *= branch.gain[first : first + count, None]
        for delta in branch.deltas:
            start, end = max(first, delta.first), min(first + count, delta.first + delta.count)
            if start < end:
                values[start - first : end - first] += delta.rows(start - delta.first, end - start)
        return values

    def _of(self, layer: str) -> Branch | None:
        """What is added to a layer; that of the last one asked for is kept."""
        if layer != self._layer:
            parts = (
                replace(chosen, patches=tuple(patch for patch in chosen.patches if patch.target.layer == layer))
                for chosen in self._loras
            )
            own = [chosen for chosen in parts if chosen.patches]
            self._branch = load_branches(own, self.component, torch.float32, "cpu")[layer] if own else None
            self._layer = layer
        return self._branch
