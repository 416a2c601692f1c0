"""LoRA files from outside: what is said of those that fit in part or not at all, and that nothing worse happens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import headrace
from checkpoint_files import write_header
from conftest import Run
from headrace import catalog
from headrace.checkpoints import inspect, open_checkpoint
from headrace.checkpoints.lora import MAX_RANK, read_lora
from headrace.checkpoints.lora_choice import choose_loras, split_strength
from headrace.checkpoints.lora_load import load_branches
from headrace.checkpoints.lora_names import find_target
from headrace.errors import RequestError
from headrace.nn.config import TransformerConfig
from lora_files import DIALECTS, linears

MODELS = {entry.name: entry.transformer for entry in catalog.PUBLISHED}
SPRITE = open_checkpoint("sprite")
QKV = "diffusion_model.double_blocks.0.img_attn.qkv"


def pair(name: str, height: int, width: int, rank: int = 2) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(rank, width), f"{name}.lora_B.weight": torch.ones(height, rank)}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def refusal(choice: Any, config: TransformerConfig = SPRITE.transformer_config, model: str = "sprite") -> str:
    with pytest.raises(RequestError) as caught:
        choose_loras([choice], config, model)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_every_layer_of_every_model_is_found_by_either_name() -> None:
    for config in (*MODELS.values(), SPRITE.transformer_config):
        for layer in linears(config, "bfl"):
            for name in (layer, f"diffusion_model.{layer}", "lora_unet_" + layer.replace(".", "_")):
                found = find_target(name)
                assert found is not None
                assert (found[0], found[2].layer, found[2].part) == ("bfl", layer, None)
        for layer in linears(config, "diffusers"):
            for name in (layer, f"transformer.{layer}", "lycoris_" + layer.replace(".", "_")):
                found = find_target(name)
                assert found is not None
                assert found[0] == "diffusers"


@pytest.mark.parametrize(
    "name",
    ["", ".", "double_blocks.0", "double_blocks.00.img_attn.qkv", "double_blocks.99999.img_attn.qkv", "x" * 5000]
    + ["transformer.", "lora_unet_", "lora_te1_layers_0", "transformer_blocks.0.attn.to_q.to_q", "single_blocks.0"],
)
def test_other_names_are_nobodys(name: str) -> None:
    assert find_target(name) is None


def test_a_lora_of_another_size_is_refused_with_the_models_it_fits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", pair(QKV, 3 * 3072, 3072))
    assert refusal(path) == (
        f"{path} was not made for sprite: its {QKV} is for 9216x3072 values where this model has 768x256; "
        "it fits klein-4b, klein-base-4b."
    )
    assert "it fits klein-4b, klein-base-4b." in refusal(path, MODELS["dev"], "dev")
    (chosen,) = choose_loras([path], MODELS["klein-4b"], "klein-4b")
    assert chosen.report() == "a.safetensors at 1: LoRA of rank 2, for 1 layers; everything is applied."
    deep = write(tmp_path / "b.safetensors", pair("single_blocks.40.linear2", 256, 1024))
    assert "is of a layer that this model does not have; use one" in refusal(deep)


def test_guidance_that_a_model_does_not_have_is_left_out_and_said(tmp_path: Path) -> None:
    guidance = pair("diffusion_model.guidance_in.out_layer", 256, 256)
    path = write(tmp_path / "a.safetensors", guidance | pair(QKV, 768, 256))
    (chosen,) = choose_loras([path], SPRITE.transformer_config, "sprite")
    assert set(chosen.unused) == set(guidance)
    assert "not applied: 2 tensors of a layer that this model does not have (diffusion" in chosen.report()
    assert "was not made for sprite" in refusal(write(tmp_path / "b.safetensors", guidance))


def test_what_is_not_applied_is_said_by_reason(tmp_path: Path) -> None:
    tensors = {
        **pair(QKV, 768, 256),
        **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 4, 4),
        **pair("text_encoder.layers.0.mlp.up_proj", 4, 4),
        **pair("diffusion_model.transformer_blocks.0.attn.to_nothing", 4, 4),
        "diffusion_model.single_blocks.0.linear2.lora_A.weight": torch.ones(2, 1024),
        "diffusion_model.single_blocks.1.linear2.set_weight": torch.ones(2, 1024),
        "diffusion_model.double_blocks.0.img_attn.proj.diff": torch.ones(2, 2, 2),
        "diffusion_model.double_blocks.0.img_mlp.0.lora_A.weight": torch.ones(2, 256, dtype=torch.int32),
        "diffusion_model.double_blocks.0.img_mlp.0.lora_B.weight": torch.ones(1536, 2),
        "strange": torch.ones(3),
    }
    path = write(tmp_path / "a.safetensors", tensors)
    (chosen,) = choose_loras([path], SPRITE.transformer_config, "sprite")
    assert set(chosen.unused) == set(tensors) - set(pair(QKV, 1, 1))
    report = chosen.report()
    assert report.startswith("a.safetensors at 1: LoRA of rank 2, for 1 layers; not applied: ")
    for reason in (
        "4 tensors of a text encoder",
        "3 tensors of no layer of FLUX.2's transformer",
        "3 tensors without counterparts of fitting shapes",
        "1 tensor of a kind that is not read",
        "1 tensor in I32",
    ):
        assert reason in report
    inspection = inspect(path)
    assert inspection.kind == "LoRA"
    assert inspection.lora is not None
    assert inspection.lora.layers == ("double_blocks.0.img_attn.qkv",)
    assert "4 tensors of a text encoder" in inspection.lora.unused


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            pair("text_encoder.layers.0.mlp.up_proj", 4, 4),
            "nothing that FLUX.2 has a layer for: 2 tensors of a text enc",
        ),
        (pair("down_blocks.0.attentions.0.to_q", 4, 4), "2 tensors of no layer of FLUX.2's transformer"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.ones(4, 4)}, "is not a LoRA: none of its 1 tensors"),
        ({f"{QKV}.lora_A.weight": torch.ones(2, 256)}, "1 tensor without counterparts of fitting shapes"),
        (pair(QKV, 768, 256, rank=MAX_RANK + 1), "without counterparts of fitting shapes"),
        (pair(QKV, 768, 256, rank=0), "without counterparts of fitting shapes"),
        ({**pair(QKV, 768, 256), f"{QKV}.alpha": torch.ones(3)}, "of layers with several alphas"),
        ({**pair(QKV, 768, 256), f"{QKV}.dora_scale": torch.ones(1, 256)}, "a magnitude for each column"),
        ({**pair(QKV, 768, 256), f"{QKV}.dora_scale": torch.ones(700)}, "has 700 magnitudes for 768 rows"),
        (
            {f"{QKV}.lora_A.a.weight": torch.ones(2, 256), f"{QKV}.lora_A.b.weight": torch.ones(2, 256)},
            "several LoRAs in one file",
        ),
        (
            pair(QKV, 768, 256) | pair("transformer.transformer_blocks.0.attn.to_k", 256, 256),
            "which are the same layer: remove one.",
        ),
        ({f"{QKV}.lokr_w1": torch.ones(2, 2), f"{QKV}.lokr_w2": torch.ones(5, 5)}, "is for 10x10 values where"),
        (
            {
                f"{QKV}.hada_w{i}_{half}": torch.ones(768, 65) if half == "a" else torch.ones(65, 256)
                for i in (1, 2)
                for half in "ab"
            },
            "without counterparts of fitting shapes",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(tensors: dict[str, Tensor], sentence: str, tmp_path: Path) -> None:
    assert sentence in refusal(write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("role", [".lora_A.weight", ".lora_B.weight", ".alpha"])
def test_values_that_are_no_numbers_are_refused(value: float, role: str, tmp_path: Path) -> None:
    tensors = {**pair(QKV, 768, 256), f"{QKV}.alpha": torch.tensor(1.0)}
    tensors[QKV + role] = tensors[QKV + role].clone()
    tensors[QKV + role].view(-1)[-1] = value
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(RequestError, match="holds a value that is not a finite number"):
        headrace.load("sprite", device="cpu").generate("a", loras=[path], steps=1, size="32x32")


@pytest.mark.parametrize(
    "about",
    ["{", json.dumps({"transformer.lora_alpha": "much"}), json.dumps({"transformer.alpha_pattern": [1]})]
    + [json.dumps({"transformer.alpha_pattern": {"(a+)+$b": 1}}), json.dumps({"transformer.lora_alpha": 1e300})]
    + [json.dumps({"transformer.peft_type": "LOKR", "transformer.alpha": 4, "transformer.r": 8})],
)
def test_scales_that_cannot_be_read_are_refused(about: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", pair(QKV, 768, 256), {"lora_adapter_metadata": about})
    assert "lora_adapter_metadata" in refusal(path)


def test_pickles_and_places_without_a_lora_are_refused(tmp_path: Path) -> None:
    for name in ("a.pt", "a.ckpt", "a.bin"):
        (tmp_path / name).write_bytes(b"\x80\x02")
        assert "is a pickle" in refusal(tmp_path / name)
    (tmp_path / "b.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is a pickle" in refusal(tmp_path / "b.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no .safetensors file" in refusal(empty)
    for name in ("one.safetensors", "two.safetensors"):
        write(empty / name, pair(QKV, 768, 256))
    assert "several LoRAs that could be meant (one.safetensors, two.safetensors)" in refusal(empty)
    for place in ("nowhere.safetensors", "nowhere/none.pt", "a/b/../c.safetensors", ":0.5", "nowhere.safetensors:0.5"):
        assert "is neither a LoRA's file, nor a folder with one, nor a hub id" in refusal(place)
    with pytest.raises(RequestError, match="at most 32"):
        choose_loras([empty] * 33, SPRITE.transformer_config, "sprite")


def test_a_strength_stands_behind_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_strength("a.safetensors") == ("a.safetensors", 1.0)
    assert split_strength("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert split_strength("C:/a.safetensors:-1e-1") == ("C:/a.safetensors", -0.1)
    assert split_strength("C:/a.safetensors") == ("C:/a.safetensors", 1.0)
    assert split_strength(("a:2", 3)) == ("a:2", 3.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").touch()
    assert split_strength("a:2") == ("a:2", 1.0)
    for choice in ("a.safetensors:101", "a.safetensors:nan", "a.safetensors:1.2.3", ("a", "much"), ("a", True)):
        with pytest.raises(RequestError, match="strength"):
            split_strength(choice)  # type: ignore[arg-type]


PREFIXES = ["", "transformer.", "diffusion_model.", "lora_unet_", "lycoris_", "lora_te1_", "base_model.model."]
LAYERS = [
    "double_blocks.0.img_attn.qkv",
    "double_blocks_0_img_attn_qkv",
    "transformer_blocks.0.attn.to_q",
    "norm_out.linear",
]
LAYERS += [
    "single_blocks.0.linear1",
    "single_transformer_blocks.0.proj_mlp",
    "double_blocks.0.img_attn.norm.query_norm",
]
ROLES = ["lora_A.weight", "lora_B.weight", "lora_A.x.weight", "lora_up.weight", "lora_down.weight", "alpha", "diff"]
ROLES += ["diff_b", "dora_scale", "lora_magnitude_vector", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a"]
ROLES += ["lokr_w2_b", "lokr_t2", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "set_weight", "weight"]
NAMES = st.tuples(st.sampled_from(PREFIXES), st.sampled_from(LAYERS), st.sampled_from(ROLES)).map(
    lambda parts: f"{parts[0]}{parts[1]}.{parts[2]}"
)
SIZES = st.sampled_from([0, 1, 2, 3, 64, 192, 256, 768, 2304])
TENSORS = st.dictionaries(
    NAMES | st.text(max_size=12),
    st.tuples(st.sampled_from(["F32", "BF16", "F8_E4M3", "I8"]), st.lists(SIZES, max_size=3)),
    max_size=8,
)
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I8": 1}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(TENSORS, st.binary(max_size=64))
def test_whatever_a_file_says_it_is_used_or_refused_in_a_sentence(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int]]], data: bytes
) -> None:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BYTES[dtype]
        if name == "__metadata__" or end + size > 2**22:
            continue
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    content = (data * (end // max(1, len(data)) + 1))[:end] if data else bytes(end)
    path = write_header(tmp_path / "a.safetensors", header, content)
    try:
        chosen = choose_loras([path], SPRITE.transformer_config, "sprite")
        branches = load_branches(chosen, SPRITE.transformer, torch.float32, "cpu")
    except RequestError:
        return
    assert {name for patch in chosen[0].patches for name in patch.names.values()}.isdisjoint(chosen[0].unused)
    assert branches.keys() == {patch.target.layer for patch in chosen[0].patches}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_bytes_that_are_no_lora_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(RequestError):
        read_lora(tmp_path / "a.safetensors")


def test_the_command_reports_uses_and_writes_it_down(
    headrace: Run, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    config = open_checkpoint(tiny_model("klein")).transformer_config
    path = DIALECTS["kohya"](config).save(tmp_path / "my style.safetensors")
    model = ["--model", tiny_model("klein"), "--device", "cpu", "--size", "32x32", "--steps", "1", "--seed", "5"]
    result = headrace("generate", "a", "--lora", f"{path}:0.5", "-o", "a.png", *model)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "my style.safetensors at 0.5: LoRA of rank 3, for 21 layers; everything is applied.\n"
    assert "<lora:my style:0.5>" in (tmp_path / "a.png").read_bytes().decode("latin1")
    other = headrace("generate", "a", "--lora", write(tmp_path / "b.safetensors", pair(QKV, 9216, 3072)), *model)
    assert other.returncode == 2
    assert "it fits klein-4b, klein-base-4b." in other.stderr
    shown = headrace("inspect", tmp_path / "b.safetensors")
    assert "LoRA of rank 2, for 1 layers; names of Black Forest Labs after diffusion_model." in shown.stdout
    assert "fits klein-4b, klein-base-4b" in shown.stdout
