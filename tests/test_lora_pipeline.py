"""LoRAs from request to picture: beside weights in eight bits, streamed, switched, planned and written down."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import headrace
import headrace.pipeline
from allocations import Allocations
from checkpoint_files import write_json
from headrace.checkpoints import Checkpoint, load_transformer, open_checkpoint
from headrace.checkpoints.components import transformer_component
from headrace.checkpoints.export import transformer_for_diffusers
from headrace.checkpoints.lora_choice import choose_loras
from headrace.checkpoints.lora_load import load_branches
from headrace.checkpoints.open import BUNDLED_MODELS
from headrace.checkpoints.weights import read_weights
from headrace.errors import RequestError
from headrace.memory.plan import Budget, Plan, Work, describe_checkpoint, plan_work
from headrace.nn.config import TransformerConfig
from headrace.nn.transformer import Transformer
from headrace.provenance import read_recipe
from headrace.quant.codecs import decode_fp8, decode_int8
from headrace.quant.formats import Bits
from headrace.quant.linear import Fp8Linear, Int8Linear
from headrace.quant.lora import attach
from lora_files import DIALECTS, Drawn

SPRITE = open_checkpoint("sprite")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes every plan one that keeps two blocks alone, as if the budget had no room for more."""

    def from_now_on() -> None:
        def planned(*arguments: Any) -> Plan:
            return replace(plan_work(*arguments), keeps_all=False, resident_blocks=(0, 2))

        monkeypatch.setattr(headrace.pipeline, "plan_work", planned)

    return from_now_on


def soft(dialect: str, checkpoint: Checkpoint, strength: float = 0.1) -> Drawn:
    """A LoRA of that dialect, with what it adds to the weights at a strength that leaves a picture one."""
    drawn = DIALECTS[dialect](checkpoint.transformer_config)
    drawn.deltas = {layer: strength * delta for layer, delta in drawn.deltas.items()}
    return drawn


def pixels(picture: headrace.Picture) -> np.ndarray[Any, Any]:
    return np.asarray(picture.image, np.int16)


def difference(first: headrace.Picture, second: headrace.Picture) -> int:
    return int(np.abs(pixels(first) - pixels(second)).max())


def decoded_forward(layer: Int8Linear, x: Tensor) -> Tensor:
    """The layer's product with its weights decoded and its input as it is."""
    return F.linear(x, decode_int8(layer.weight, layer.weight_scale))


def merged_model(folder: Path, drawn: Drawn, bits: Bits) -> Path:
    """sprite in float32: what eight bits hold of its weights, decoded, with the LoRA added to them."""
    shutil.copytree(BUNDLED_MODELS / "sprite", folder)
    network = load_transformer(SPRITE, torch.float32, "cpu", bits)
    tensors = {}
    for name, module in network.named_modules():
        if isinstance(module, Fp8Linear):
            tensors[f"{name}.weight"] = torch.empty(module.weight.shape)
            decode_fp8(module.weight, module.weight_scale, tensors[f"{name}.weight"])
        elif isinstance(module, Int8Linear):
            tensors[f"{name}.weight"] = decode_int8(module.weight, module.weight_scale)
    assert tensors
    tensors = {**{name: value for name, value in network.state_dict().items() if "weight_scale" not in name}, **tensors}
    for layer, delta in drawn.deltas.items():
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] + delta
    config, theirs = transformer_for_diffusers(SPRITE.transformer_config, tensors)
    shutil.rmtree(folder / "transformer")
    write_json(folder / "transformer" / "config.json", config)
    save_file(theirs, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("bits", ["fp8", "int8"])
@pytest.mark.parametrize("dialect", ["diffusers", "lokr-lycoris"])
def test_beside_streamed_weights_in_eight_bits_a_picture_is_that_of_the_merged_weights(
    bits: Bits, dialect: str, tmp_path: Path, stream: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = soft(dialect, SPRITE)
    path = drawn.save(tmp_path / "a.safetensors")
    # Everything is computed in float32: activations of int8 layers too, which are otherwise quantised.
    for module in ("headrace.device", "headrace.pipeline"):
        monkeypatch.setattr(f"{module}.multiplies_bf16", lambda device: False)
    monkeypatch.setattr(Int8Linear, "forward", decoded_forward)
    request: dict[str, Any] = {"seed": 4, "steps": 3, "size": "128x128"}
    other = merged_model(tmp_path / "merged", drawn, bits)
    expected = headrace.load(other, device="cpu", precision="fp32").generate("a red apple", **request)
    model = headrace.load("sprite", device="cpu", precision=bits, text_precision="fp32")
    plain = model.generate("a red apple", **request)
    stream()
    picture = headrace.load("sprite", device="cpu", precision=bits, text_precision="fp32").generate(
        "a red apple", loras=[(path, 0.1)], **request
    )
    assert difference(picture, expected) <= 1
    assert difference(picture, plain) > 20


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    config = open_checkpoint(tiny_model("klein")).transformer_config
    return DIALECTS["kohya"](config).save(tmp_path_factory.mktemp("loras") / "style.safetensors")


@pytest.fixture(scope="module")
def other_lora(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    config = open_checkpoint(tiny_model("klein")).transformer_config
    return DIALECTS["lokr-lycoris"](config).save(tmp_path_factory.mktemp("loras") / "other.safetensors")


REQUEST: dict[str, Any] = {"seed": 3, "steps": 2, "size": (32, 48)}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int8"])
def test_at_strength_zero_nothing_changes(precision: str, tiny_model: Callable[[str], Path], lora: Path) -> None:
    pipeline = headrace.load(tiny_model("klein"), device="cpu", precision=precision)
    plain = pipeline.generate("a red apple", **REQUEST)
    zero = pipeline.generate("a red apple", loras=[f"{lora}:0"], **REQUEST)
    assert pixels(zero).tobytes() == pixels(plain).tobytes()
    assert zero.recipe == plain.recipe
    assert difference(pipeline.generate("a red apple", loras=[f"{lora}:1e-2"], **REQUEST), plain) > 0


@pytest.mark.parametrize(("kind", "precision"), [("klein", "fp8"), ("klein-base", "fp32"), ("klein-kv", "fp8")])
def test_streaming_and_batches_change_no_bit(
    kind: str,
    precision: str,
    tiny_model: Callable[[str], Path],
    lora: Path,
    other_lora: Path,
    stream: Callable[[], None],
) -> None:
    loras = [f"{lora}:0.5", (other_lora, -0.5)]
    options: dict[str, Any] = {"loras": loras, **REQUEST}
    options["references"] = [headrace.load(tiny_model(kind), device="cpu").generate("b", size="32x32", steps=1).image]
    load = lambda: headrace.load(tiny_model(kind), device="cpu", precision=precision)  # noqa: E731
    whole = load().generate(["a red apple", "two"], **options)
    stream()
    streamed = load().generate("a red apple", **options)
    assert pixels(streamed).tobytes() == pixels(whole[0]).tobytes()
    assert streamed.recipe == whole[0].recipe


@pytest.mark.parametrize("kind", ["klein", "klein-kv"])
def test_a_pipeline_changes_its_loras_from_call_to_call(
    kind: str, tiny_model: Callable[[str], Path], lora: Path, other_lora: Path
) -> None:
    loads: list[int] = []
    options: dict[str, Any] = dict(REQUEST)
    options["references"] = [headrace.load(tiny_model(kind), device="cpu").generate("b", size="32x32", steps=1).image]
    kept = headrace.load(tiny_model(kind), device="cpu")
    sequence: list[list[Any]] = [[], [lora], [(lora, 0.5)], [other_lora, lora], [], [lora]]
    expected: dict[str, bytes] = {}
    for loras in sequence:
        picture = kept.generate("a red apple", loras=loras, **options)
        if str(loras) not in expected:
            alone = headrace.load(tiny_model(kind), device="cpu").generate("a red apple", loras=loras, **options)
            expected[str(loras)] = pixels(alone).tobytes()
        assert pixels(picture).tobytes() == expected[str(loras)]
        loads.append(id(kept._networks._held["transformer"].network))
    assert len(set(loads)) == 1


def test_after_a_lora_that_cannot_be_read_the_one_before_works_again(
    tiny_model: Callable[[str], Path], lora: Path, tmp_path: Path
) -> None:
    pipeline = headrace.load(tiny_model("klein"), device="cpu")
    before = pipeline.generate("a", loras=[lora], **REQUEST)
    broken = {name: value.clone() for name, value in load_file(lora).items()}
    broken[next(iter(broken))].view(-1)[0] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(RequestError, match="not a finite number"):
        pipeline.generate("a", loras=[tmp_path / "broken.safetensors"], **REQUEST)
    assert pixels(pipeline.generate("a", loras=[lora], **REQUEST)).tobytes() == pixels(before).tobytes()


def test_the_recipe_names_file_and_strength(tiny_model: Callable[[str], Path], lora: Path, tmp_path: Path) -> None:
    picture = headrace.load(tiny_model("klein"), device="cpu").generate("a", loras=[f"{lora}:0.75"], **REQUEST)
    (record,) = picture.recipe.loras
    assert (record.name, record.strength) == ("style", 0.75)
    assert record.sha256 == hashlib.sha256(lora.read_bytes()).hexdigest()
    for ending in ("png", "jpg", "webp"):
        assert read_recipe(picture.save(tmp_path / f"a.{ending}")) == picture.recipe


def test_what_loras_take_is_in_the_plan(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model("klein"))
    config = checkpoint.transformer_config
    budget = Budget(memory=10**12, process=0)
    before = plan_work(describe_checkpoint(checkpoint), [Work(64, 64)], budget, "fp32")
    for dialect in ("kohya", "lokr-lycoris", "lokr-both-low-rank", "loha", "differences"):
        path = DIALECTS[dialect](config).save(tmp_path / f"{dialect}.safetensors")
        loras = choose_loras([path], config, "it")
        after = plan_work(describe_checkpoint(checkpoint, loras), [Work(64, 64)], budget, "fp32")
        branches = load_branches(loras, checkpoint.transformer, torch.float32, "cpu")
        held = sum(tensor.nbytes for branch in branches.values() for tensor in branch.tensors)
        alphas = 4 * sum("alpha" in patch.shapes for patch in loras[0].patches)
        assert held <= after.minimum_bytes - before.minimum_bytes <= held + alphas
        assert after.peak_bytes - before.peak_bytes == after.minimum_bytes - before.minimum_bytes
        with_lora, without = (headrace.plan(tiny_model("klein"), loras=given).peak_bytes for given in ([path], []))
        assert with_lora > without


@pytest.mark.parametrize("dialect", ["kohya", "lokr-lycoris", "differences"])
def test_a_step_takes_no_more_memory_than_without(dialect: str, tmp_path: Path) -> None:
    config = TransformerConfig(
        in_channels=64,
        context_in_dim=96,
        hidden_size=256,
        num_heads=4,
        depth=1,
        depth_single_blocks=1,
        axes_dim=(16, 16, 16, 16),
        guidance_embed=False,
    )
    network = Transformer(config).eval().requires_grad_(False)
    arguments = (
        torch.randn(1, 900, 64),
        torch.zeros(900, 4),
        torch.tensor([0.5]),
        torch.randn(1, 64, 96),
        torch.zeros(64, 4),
    )

    def peak() -> int:
        with torch.inference_mode(), Allocations() as allocations:
            network(*arguments)
        return allocations.peak

    plain = peak()
    path = DIALECTS[dialect](config).save(tmp_path / "a.safetensors")
    (chosen,) = choose_loras([path], config, "it")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    component, _ = transformer_component(read_weights(tmp_path / "model.safetensors"))
    attach(network, load_branches([chosen], component, torch.float32, "cpu"))
    assert peak() <= plain
