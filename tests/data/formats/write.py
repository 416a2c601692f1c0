"""Writes the files of this folder: small matrices by the libraries whose formats they are, and what these read back.

Needs torchao 0.18.0, bitsandbytes 0.50.2, comfy-kitchen 0.2.40 and their dependencies, which no test does. Every file
has a layer `single_blocks.0.linear2`, the tensor `expected` in float32, and the header its writer would write.
"""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes
import comfy_kitchen
import torch
from comfy_kitchen.tensor.int8 import TensorWiseINT8Layout
from safetensors.torch import save_file
from torch import Tensor
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Float8WeightOnlyConfig, quantize_

LAYER = "single_blocks.0.linear2"
FOLDER = Path(__file__).parent


def drawn(rows: int, width: int) -> Tensor:
    values = 0.05 * torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width))
    return values * torch.logspace(-1, 1, rows)[:, None]


def save(name: str, tensors: dict[str, Tensor], expected: Tensor, metadata: dict[str, str] | None = None) -> None:
    named = {f"{LAYER}.{part}": value.contiguous() for part, value in tensors.items()}
    save_file({**named, "expected": expected.float().contiguous()}, FOLDER / f"{name}.safetensors", metadata or {})


def noted(**note: object) -> Tensor:
    return torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)


def described(form: str) -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {LAYER: {"format": form}}})}


def comfy_kitchen_files() -> None:
    for form, dtype, largest in (
        ("float8_e4m3fn", torch.float8_e4m3fn, 448.0),
        ("float8_e5m2", torch.float8_e5m2, 57344.0),
    ):
        values = drawn(96, 64)
        scale = values.abs().max() / largest
        codes = comfy_kitchen.quantize_per_tensor_fp8(values, scale, dtype)
        expected = comfy_kitchen.dequantize_per_tensor_fp8(codes, scale, torch.float32)
        tensors = {"weight": codes, "weight_scale": scale, "comfy_quant": noted(format=form)}
        save(f"comfy-{form}", tensors, expected)

    values = drawn(160, 80)
    scale = values.abs().max() / (448 * 6)
    codes, blocks = comfy_kitchen.quantize_nvfp4(values, scale)
    expected = comfy_kitchen.dequantize_nvfp4(codes, scale, blocks, torch.float32)
    tensors = {"weight": codes, "weight_scale": blocks, "weight_scale_2": scale, "input_scale": torch.tensor(0.5)}
    save("bfl-nvfp4", tensors, expected, described("nvfp4"))

    values = drawn(160, 96)
    codes, blocks = comfy_kitchen.quantize_mxfp8(values)
    expected = comfy_kitchen.dequantize_mxfp8(codes, blocks, torch.float32)
    tensors = {"weight": codes, "weight_scale": blocks.view(torch.uint8), "comfy_quant": noted(format="mxfp8")}
    save("comfy-mxfp8", tensors, expected)

    for name, options in (
        ("tensor", {}),
        ("row", {"per_channel": True}),
        ("convrot", {"per_channel": True, "convrot": True, "convrot_groupsize": 64}),
    ):
        codes, params = TensorWiseINT8Layout.quantize(drawn(96, 128), **options)
        expected = TensorWiseINT8Layout.dequantize(codes, params)
        rotation = {"convrot": True, "convrot_groupsize": 64} if name == "convrot" else {}
        note = noted(format="int8_tensorwise", **rotation)
        save(f"comfy-int8-{name}", {"weight": codes, "weight_scale": params.scale, "comfy_quant": note}, expected)


def bitsandbytes_files() -> None:
    # Three blocks a row, and more of them than one block of blocks. Blocks across rows bitsandbytes itself decodes
    # wrongly on a CPU.
    for name, nested in (("nf4", False), ("nf4-nested", True)):
        layer = bitsandbytes.nn.Linear4bit(192, 100, bias=False, quant_type="nf4", compress_statistics=nested)
        layer.weight = bitsandbytes.nn.Params4bit(
            drawn(100, 192), requires_grad=False, compress_statistics=nested, quant_type="nf4"
        ).to("cpu")
        expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        save(f"bitsandbytes-{name}", dict(layer.state_dict()), expected)


def torchao_files() -> None:
    network = torch.nn.Module()
    network.single_blocks = torch.nn.ModuleList([torch.nn.Module()])
    network.single_blocks[0].linear2 = torch.nn.Linear(64, 96, bias=False)
    network.single_blocks[0].linear2.weight.data = drawn(96, 64)
    quantize_(network, Float8WeightOnlyConfig())
    tensors, metadata = flatten_tensor_state_dict(network.state_dict())
    expected = network.single_blocks[0].linear2.weight.dequantize()
    save("torchao-fp8", {name.removeprefix(f"{LAYER}."): value for name, value in tensors.items()}, expected, metadata)


if __name__ == "__main__":
    comfy_kitchen_files()
    bitsandbytes_files()
    torchao_files()
