"""LoRAs in every dialect: what they add, beside which weights, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from headrace.checkpoints import Checkpoint, load_transformer, open_checkpoint
from headrace.checkpoints.lora_choice import ChosenLora, choose_loras
from headrace.checkpoints.lora_load import load_branches
from headrace.flow.latents import picture_positions, text_positions
from headrace.nn.transformer import Transformer
from headrace.quant.linear import Fp8Linear, Int8Linear
from headrace.quant.lora import Kronecker, LinearBranch, LowRank, attach
from lora_files import DIALECTS, Drawn, linears, place
from reference_pipelines import save_pipeline

# What diffusers 0.42.1 reads, and what of it is left out: the layers that it has no names for in that dialect, and the
# last modulation by Black Forest Labs' names, whose halves it does not swap.
BLOCKS_ALONE = r"(?!.*transformer_blocks)"
READ_BY_DIFFUSERS = {
    "diffusers": None,
    "peft": BLOCKS_ALONE,
    "ai-toolkit": r"diffusion_model\.final_layer\.adaLN",
    "kohya": r".*(?:final_layer_adaLN|modulation|guidance_in)",
    "lokr-lycoris": BLOCKS_ALONE,
    "lokr-lycoris-full": BLOCKS_ALONE,
    "lokr-bare": None,
    "lokr-ai-toolkit": r"diffusion_model\.final_layer\.adaLN",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            save_pipeline(made[kind], kind, channels=(8, 8, 16, 16), norm_groups=4)  # type: ignore[arg-type]
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def dev(folders: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(folders("dev"))


def opened(checkpoint: Checkpoint, *choices: Any) -> tuple[ChosenLora, ...]:
    return choose_loras(choices, checkpoint.transformer_config, checkpoint.name)


def with_loras(checkpoint: Checkpoint, *choices: Any, dtype: torch.dtype = torch.float32) -> Transformer:
    """The transformer with LoRAs beside it."""
    network = load_transformer(checkpoint, dtype, "cpu")
    attach(network, load_branches(opened(checkpoint, *choices), checkpoint.transformer, dtype, "cpu"))
    return network


def merged(checkpoint: Checkpoint, deltas: Mapping[str, Tensor], strength: float = 1.0) -> Transformer:
    """The transformer with matrices added to its weights."""
    network = load_transformer(checkpoint, torch.float32, "cpu")
    for layer, delta in deltas.items():
        weight(network, layer).add_(delta, alpha=strength)
    return network


def weight(network: Transformer, layer: str) -> Tensor:
    return network.get_parameter(f"{layer}.weight").data


@torch.inference_mode()
def velocity(network: Transformer, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    config = network.config
    guidance = torch.tensor([3.5]) if config.guidance_embed else None
    return network(
        torch.randn(1, 12, config.in_channels, generator=generator).to(dtype),
        picture_positions(3, 4),
        torch.tensor([0.7]),
        torch.randn(1, 5, config.context_in_dim, generator=generator).to(dtype),
        text_positions(5),
        guidance=guidance,
    )


def distance(made: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((made - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_adds_what_it_means(dialect: str, dev: Checkpoint, tmp_path: Path) -> None:
    drawn = DIALECTS[dialect](dev.transformer_config)
    path = drawn.save(tmp_path / "a.safetensors")
    network = load_transformer(dev, torch.float32, "cpu")
    plain = velocity(network)
    for strength in (1.0, -0.6):
        (chosen,) = opened(dev, (path, strength))
        assert not chosen.unused
        assert {patch.target.layer for patch in chosen.patches} == set(linears(dev.transformer_config, "bfl"))
        expected = velocity(merged(dev, drawn.deltas, strength))
        handles = attach(network, load_branches([chosen], dev.transformer, torch.float32, "cpu"))
        assert distance(velocity(network), expected) < 2e-5
        assert distance(plain, expected) > 0.05
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("dialect", READ_BY_DIFFUSERS)
@torch.inference_mode()
def test_what_diffusers_reads_is_what_diffusers_makes_of_it(
    dialect: str, dev: Checkpoint, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    drawn = DIALECTS[dialect](dev.transformer_config)
    left_out = READ_BY_DIFFUSERS[dialect]
    if left_out is not None:
        drawn.tensors = {name: value for name, value in drawn.tensors.items() if not re.match(left_out, name)}
    path = drawn.save(tmp_path / "a.safetensors")
    assert distance(velocity(with_loras(dev, path)), diffusers_velocity(folders("dev"), path)) < 2e-5


def diffusers_velocity(folder: Path, lora: Path) -> Tensor:
    """What `velocity` computes, with diffusers' transformer and its loader of LoRAs."""
    from diffusers import Flux2Pipeline, Flux2Transformer2DModel

    network = Flux2Transformer2DModel.from_pretrained(folder / "transformer").eval()
    state, metadata = Flux2Pipeline.lora_state_dict(str(lora), return_lora_metadata=True)
    Flux2Pipeline.load_lora_into_transformer(state, network, metadata=metadata)
    generator = torch.Generator().manual_seed(0)
    img = torch.randn(1, 12, network.config.in_channels, generator=generator)
    context = torch.randn(1, 5, network.config.joint_attention_dim, generator=generator)
    return network(
        img,
        context,
        torch.tensor([0.7]),
        picture_positions(3, 4)[None],
        text_positions(5)[None],
        guidance=torch.tensor([3.5]),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("root", [False, True])
@torch.inference_mode()
def test_scales_in_the_header_are_those_of_peft(
    root: bool, dev: Checkpoint, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    drawn = DIALECTS["diffusers"](dev.transformer_config)
    pattern = {"attn.to_q": 2, "transformer_blocks.0.ff.linear_in": 5}
    about = {
        "r": 3,
        "lora_alpha": 7,
        "alpha_pattern": pattern,
        "use_rslora": root,
        "target_modules": [
            name.removeprefix("transformer.").removesuffix(".lora_A.weight")
            for name in drawn.tensors
            if "lora_A" in name
        ],
    }
    drawn.metadata = {
        "lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in about.items()})
    }
    path = drawn.save(tmp_path / "a.safetensors")
    assert distance(velocity(with_loras(dev, path)), diffusers_velocity(folders("dev"), path)) < 2e-5
    # The same as PEFT's own folder.
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(drawn.tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(about))
    assert torch.equal(velocity(with_loras(dev, folder)), velocity(with_loras(dev, path)))


@torch.inference_mode()
def test_magnitudes_are_those_of_peft(dev: Checkpoint, folders: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    drawn = DIALECTS["diffusers"](dev.transformer_config)
    generator = torch.Generator().manual_seed(3)
    for layer, (height, _) in linears(dev.transformer_config, "diffusers").items():
        drawn.tensors[f"transformer.{layer}.lora_magnitude_vector"] = 0.5 + torch.rand(height, generator=generator)
    path = drawn.save(tmp_path / "a.safetensors")
    assert distance(velocity(with_loras(dev, path)), diffusers_velocity(folders("dev"), path)) < 2e-5


@pytest.mark.parametrize("dialect", ["kohya", "onetrainer", "lokr-lycoris", "lokr-kohya", "loha-lycoris"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_dora_scales_decompose_the_merged_weight(
    dialect: str, strength: float, dev: Checkpoint, tmp_path: Path
) -> None:
    drawn = DIALECTS[dialect](dev.transformer_config)
    layout = "bfl" if dialect in ("kohya", "lokr-kohya") else "diffusers"
    generator = torch.Generator().manual_seed(4)
    prefix = next(iter(drawn.tensors)).split("_")[0] + {
        "kohya": "_unet_",
        "lokr-kohya": "_unet_",
        "onetrainer": "_transformer_",
    }.get(dialect, "_")
    magnitudes = {}
    for layer, (height, _) in linears(dev.transformer_config, layout).items():
        magnitudes[layer] = 0.5 + torch.rand(height, 1, generator=generator)
        drawn.tensors[f"{prefix}{layer.replace('.', '_')}.dora_scale"] = magnitudes[layer]
    path = drawn.save(tmp_path / "a.safetensors")
    network = load_transformer(dev, torch.float32, "cpu")
    for layer, magnitude in place(dev.transformer_config, layout, magnitudes).items():
        plain = weight(network, layer)
        changed = plain + drawn.deltas[layer]
        changed = magnitude * changed / changed.norm(dim=1, keepdim=True)
        plain.add_(changed - plain, alpha=strength)
    expected = velocity(network)
    assert distance(velocity(with_loras(dev, (path, strength))), expected) < 2e-5
    in_bf16 = velocity(with_loras(dev, (path, strength), dtype=torch.bfloat16), torch.bfloat16).float()
    assert distance(in_bf16, expected) < 0.05


def test_parts_of_a_single_blocks_first_layer_land_on_their_rows(dev: Checkpoint, tmp_path: Path) -> None:
    config = dev.transformer_config
    size = config.hidden_size
    heights = {"attn.to_q": size, "attn.to_k": size, "attn.to_v": size, "proj_mlp": 2 * config.mlp_size}
    tensors: dict[str, Tensor] = {}
    rows = []
    for part, height in heights.items():
        down, up = torch.randn(2, size) / 8, torch.randn(height, 2)
        name = f"transformer.single_transformer_blocks.1.{part}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        rows.append(up @ down)
    down, up = torch.randn(2, size + config.mlp_size) / 8, torch.randn(size, 2)
    name = "transformer.single_transformer_blocks.1.proj_out"
    tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    path = Drawn(tensors, {}).save(tmp_path / "a.safetensors")
    deltas = {"single_blocks.1.linear1": torch.cat(rows), "single_blocks.1.linear2": up @ down}
    assert distance(velocity(with_loras(dev, path)), velocity(merged(dev, deltas))) < 2e-5


def test_differences_of_norms_and_biases(dev: Checkpoint, tmp_path: Path) -> None:
    size, head = dev.transformer_config.hidden_size, dev.transformer_config.head_dim
    scale, other, bias = 0.5 * torch.randn(head), 0.5 * torch.randn(head), torch.randn(size)
    names = {
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.diff": scale,
        "diffusion_model.single_blocks.1.norm.key_norm.diff": other,
        "diffusion_model.double_blocks.0.txt_attn.proj.diff_b": bias,
    }
    path = Drawn(names, {}).save(tmp_path / "a.safetensors")
    network = load_transformer(dev, torch.float32, "cpu")
    network.get_parameter("double_blocks.0.img_attn.norm.query_norm.scale").data.add_(scale, alpha=0.7)
    network.get_parameter("single_blocks.1.norm.key_norm.scale").data.add_(other, alpha=0.7)
    layer = network.get_submodule("double_blocks.0.txt_attn.proj")
    layer.register_forward_hook(lambda *given: given[2] + 0.7 * bias)
    assert distance(velocity(with_loras(dev, (path, 0.7))), velocity(network)) < 2e-5


@pytest.mark.parametrize("dialect", ["kohya", "lokr-lycoris", "loha", "differences"])
def test_in_bf16_the_sum_is_the_same_but_for_rounding(dialect: str, dev: Checkpoint, tmp_path: Path) -> None:
    drawn = DIALECTS[dialect](dev.transformer_config)
    drawn.tensors = {name: value.half() for name, value in drawn.tensors.items()}
    path = drawn.save(tmp_path / "a.safetensors")
    expected = velocity(merged(dev, drawn.deltas, 0.2))
    plain = distance(velocity(load_transformer(dev, torch.bfloat16, "cpu"), torch.bfloat16).float(), expected)
    made = velocity(with_loras(dev, (path, 0.2), dtype=torch.bfloat16), torch.bfloat16).float()
    assert distance(made, expected) < 0.03 < plain


@pytest.mark.parametrize("kind", [Fp8Linear, Int8Linear])
@torch.inference_mode()
def test_what_is_added_beside_eight_bits_is_neither_rotated_nor_quantised(kind: type[Fp8Linear | Int8Linear]) -> None:
    layer = kind(512, 96)
    layer.encode(0, torch.randn(96, 512))
    x = torch.randn(1, 40, 512)
    plain = layer(x)
    low_rank = LowRank(torch.randn(4, 512), torch.randn(32, 4), 0.5, first=32)
    product = Kronecker(torch.randn(8, 4), (torch.randn(4, 128),), 0.5, first=64)
    attach(torch.nn.ModuleDict({"layer": layer}), {"layer": LinearBranch((low_rank, product), bias=torch.ones(96))})
    expected = plain + 1
    expected[..., 32:64] += x @ (0.5 * low_rank.up @ low_rank.down).t()
    expected[..., 64:] += x @ (0.5 * torch.kron(product.left, product.right[0])).t()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


def test_several_add_up(dev: Checkpoint, tmp_path: Path) -> None:
    drawn = {name: DIALECTS[name](dev.transformer_config) for name in ("kohya", "lokr-lycoris", "differences")}
    choices = [
        f"{one.save(tmp_path / f'{name}.safetensors')}:{strength}"
        for (name, one), strength in zip(drawn.items(), (0.5, -1, 0.25), strict=True)
    ]
    network = load_transformer(dev, torch.float32, "cpu")
    for one, strength in zip(drawn.values(), (0.5, -1, 0.25), strict=True):
        for layer, delta in one.deltas.items():
            weight(network, layer).add_(delta, alpha=strength)
    assert distance(velocity(with_loras(dev, *choices)), velocity(network)) < 2e-5
