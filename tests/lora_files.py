"""LoRAs with drawn factors, spelled as the tools that train them spell them, and what each means for our weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.checkpoints.layouts import TRANSFORMER_RULES, to_diffusers
from headrace.checkpoints.shapes import transformer_shapes
from headrace.nn.config import TransformerConfig

Factors = dict[str, Tensor]


@dataclass
class Drawn:
    """A LoRA's tensors as they are in its file, and the matrices it adds to our weights."""

    tensors: dict[str, Tensor]
    deltas: dict[str, Tensor]
    metadata: dict[str, str] | None = None

    def save(self, path: Path) -> Path:
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path, self.metadata)
        return path


def linears(config: TransformerConfig, layout: str) -> dict[str, tuple[int, int]]:
    """Layer -> (out, in), by Black Forest Labs' or by diffusers' names."""
    shapes = transformer_shapes(config)
    if layout == "diffusers":
        shapes = {name: part.shape for name, part in to_diffusers(TRANSFORMER_RULES, shapes).items()}
    return {
        name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in sorted(shapes.items()) if len(shape) == 2
    }


def place(config: TransformerConfig, layout: str, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices for layers of that layout -> matrices for ours."""
    if layout == "bfl":
        return dict(deltas)
    shapes = transformer_shapes(config)
    ours: dict[str, Tensor] = {}
    for name, part in to_diffusers(TRANSFORMER_RULES, shapes).items():
        delta = deltas.get(name.removesuffix(".weight"))
        start = 0
        for rows in part.parts if delta is not None else ():
            layer = rows.tensor.removesuffix(".weight")
            whole = ours.setdefault(layer, torch.zeros(shapes[rows.tensor]))
            whole[rows.first : rows.first + rows.count] = delta[start : start + rows.count]
            start += rows.count
    return ours


def draw(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])


def low_rank(
    layout: str,
    down: str,
    up: str,
    prefix: str,
    alpha: bool = False,
    underscored: bool = False,
    rank: int = 3,
) -> Callable[[TransformerConfig], Drawn]:
    """down, up: how the factors' names end. alpha: whether there is one."""

    def drawn(config: TransformerConfig) -> Drawn:
        generator = torch.Generator().manual_seed(7)
        tensors: Factors = {}
        deltas: Factors = {}
        for number, (layer, (height, width)) in enumerate(linears(config, layout).items()):
            name = prefix + (layer.replace(".", "_") if underscored else layer)
            first, second = draw(rank, width, generator=generator), draw(height, rank, generator=generator)
            tensors[name + down], tensors[name + up] = first, second
            scale = 1.0
            if alpha:
                tensors[f"{name}.alpha"] = torch.tensor(1.0 + number % 4)
                scale = (1.0 + number % 4) / rank
            deltas[layer] = scale * second @ first
        return Drawn(tensors, place(config, layout, deltas))

    return drawn


def kronecker(
    layout: str,
    prefix: str,
    underscored: bool = False,
    halves: tuple[bool, bool] = (False, True),
    left_size: tuple[int, int] = (4, 4),
) -> Callable[[TransformerConfig], Drawn]:
    """halves: whether the left and the right factor are products of two. left_size: of the left one."""

    def drawn(config: TransformerConfig) -> Drawn:
        generator = torch.Generator().manual_seed(8)
        tensors: Factors = {}
        deltas: Factors = {}
        for layer, (height, width) in linears(config, layout).items():
            name = prefix + (layer.replace(".", "_") if underscored else layer)
            factors = []
            for index, (rows, columns) in enumerate((left_size, (height // left_size[0], width // left_size[1]))):
                if halves[index]:
                    left, right = draw(rows, 2, generator=generator), draw(2, columns, generator=generator)
                    tensors[f"{name}.lokr_w{index + 1}_a"], tensors[f"{name}.lokr_w{index + 1}_b"] = left, right
                    factors.append(left @ right)
                else:
                    tensors[f"{name}.lokr_w{index + 1}"] = draw(rows, columns, generator=generator)
                    factors.append(tensors[f"{name}.lokr_w{index + 1}"])
            tensors[f"{name}.alpha"] = torch.tensor(3.0)
            deltas[layer] = (1.5 if any(halves) else 1.0) * torch.kron(*factors)
        return Drawn(tensors, place(config, layout, deltas))

    return drawn


def hadamard(layout: str, prefix: str) -> Callable[[TransformerConfig], Drawn]:
    def drawn(config: TransformerConfig) -> Drawn:
        generator = torch.Generator().manual_seed(9)
        tensors: Factors = {}
        deltas: Factors = {}
        for layer, (height, width) in linears(config, layout).items():
            name = prefix + layer.replace(".", "_")
            product = torch.ones(height, width)
            for index in (1, 2):
                left, right = draw(height, 2, generator=generator), draw(2, width, generator=generator)
                tensors[f"{name}.hada_w{index}_a"], tensors[f"{name}.hada_w{index}_b"] = left, right
                product = product * (left @ right)
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
            deltas[layer] = 2.0 * product
        return Drawn(tensors, place(config, layout, deltas))

    return drawn


def differences(prefix: str) -> Callable[[TransformerConfig], Drawn]:
    def drawn(config: TransformerConfig) -> Drawn:
        generator = torch.Generator().manual_seed(10)
        deltas = {layer: 0.3 * draw(*shape, generator=generator) for layer, shape in linears(config, "bfl").items()}
        return Drawn({f"{prefix}{layer}.diff": delta for layer, delta in deltas.items()}, deltas)

    return drawn


A, B = ".lora_A.weight", ".lora_B.weight"
DOWN, UP = ".lora_down.weight", ".lora_up.weight"

# Dialect -> its writer. What diffusers 0.42.1 reads right is compared with diffusers too.
DIALECTS: dict[str, Callable[[TransformerConfig], Drawn]] = {
    "diffusers": low_rank("diffusers", A, B, "transformer."),
    "peft": low_rank("diffusers", A, B, "base_model.model."),
    "peft-adapter-name": low_rank("diffusers", ".lora_A.style.weight", ".lora_B.style.weight", "base_model.model."),
    "diffsynth": low_rank("diffusers", ".lora_A.default.weight", ".lora_B.default.weight", ""),
    "simpletuner-alpha": low_rank("diffusers", A, B, "transformer.", alpha=True),
    "old-diffusers": low_rank("diffusers", ".lora.down.weight", ".lora.up.weight", "transformer."),
    "ai-toolkit": low_rank("bfl", A, B, "diffusion_model."),
    "bfl": low_rank("bfl", A, B, ""),
    "bfl-alpha": low_rank("bfl", A, B, "diffusion_model.", alpha=True),
    "comfy": low_rank("bfl", DOWN, UP, "diffusion_model.", alpha=True),
    "comfy-checkpoint": low_rank("bfl", DOWN, UP, "model.diffusion_model.", alpha=True),
    "comfy-underscore": low_rank("bfl", "_lora.down.weight", "_lora.up.weight", "diffusion_model."),
    "kohya": low_rank("bfl", DOWN, UP, "lora_unet_", alpha=True, underscored=True),
    "onetrainer": low_rank("diffusers", DOWN, UP, "lora_transformer_", alpha=True, underscored=True),
    "lycoris": low_rank("diffusers", DOWN, UP, "lycoris_", alpha=True, underscored=True),
    "lokr-lycoris": kronecker("diffusers", "lycoris_", underscored=True),
    "lokr-lycoris-full": kronecker("diffusers", "lycoris_", underscored=True, halves=(False, False)),
    "lokr-bare": kronecker("diffusers", ""),
    "lokr-both-low-rank": kronecker("diffusers", "transformer.", halves=(True, True)),
    "lokr-ai-toolkit": kronecker("bfl", "diffusion_model."),
    "lokr-kohya": kronecker("bfl", "lora_unet_", underscored=True, halves=(True, False), left_size=(2, 8)),
    "loha": hadamard("bfl", "lora_unet_"),
    "loha-lycoris": hadamard("diffusers", "lycoris_"),
    "differences": differences("diffusion_model."),
}
