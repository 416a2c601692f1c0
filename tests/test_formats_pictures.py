"""Whole models in the formats that are published: the picture of the decoded weights, resident and streamed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import headrace
from checkpoint_files import write_tensors
from conftest import Run
from headrace.checkpoints import inspect, load_transformer, open_checkpoint
from headrace.checkpoints.convert import convert
from headrace.checkpoints.export import transformer_for_diffusers
from headrace.checkpoints.lora_choice import choose_loras
from headrace.checkpoints.lora_load import load_branches
from headrace.errors import RequestError
from headrace.memory.plan import plan_work
from headrace.quant.codecs import encode_fp8, encode_int8, int8_scales
from headrace.quant.decode import decode, tiled, untiled
from headrace.quant.encode import encode, tensor_scale
from headrace.quant.formats import (
    GGUF_BLOCKS,
    Format,
    Fp8,
    Gguf,
    Int8,
    Mxfp8,
    Nvfp4,
    block_linears,
    format_bytes,
)
from headrace.quant.lora import attach
from lora_files import DIALECTS

GOLDEN = Path(__file__).parent / "data" / "formats"
REQUEST: dict[str, Any] = {"prompt": "a red apple", "size": "64x64", "seed": 3, "steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small klein in float32 whose rows are whole blocks of every format."""
    from reference_pipelines import save_pipeline

    folder = tmp_path_factory.mktemp("base")
    save_pipeline(folder, "klein", heads=2, head_dim=128, depth=1, single_depth=2)
    return folder


@pytest.fixture(scope="module")
def tensors(base: Path) -> dict[str, Tensor]:
    """Its transformer by Black Forest Labs' names."""
    return dict(load_transformer(open_checkpoint(base), torch.float32, "cpu").state_dict())


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


@pytest.fixture
def pictures(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray[Any, Any]]:
    """`pictures(model)` in float32 arithmetic; with `resident` through the blocks that are streamed."""
    for module in ("headrace.device", "headrace.pipeline"):
        monkeypatch.setattr(f"{module}.multiplies_bf16", lambda device: False)

    def make(model: Path, precision: str = "auto", resident: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
        options = {} if (model / "model_index.json").is_file() else {"variant": "distilled", "autoencoder": base}
        if options:
            options["text_encoder"] = base
        with monkeypatch.context() as patch:
            if resident is not None:
                patch.setattr(
                    headrace.pipeline,
                    "plan_work",
                    lambda *given: replace(plan_work(*given), keeps_all=False, resident_blocks=resident),
                )
            pipeline = headrace.load(model, precision=precision, device="cpu", **options)
            return np.asarray(pipeline.generate(**REQUEST).image).astype(int)

    return make


def decoded(form: Format, parts: dict[str, Tensor], like: Tensor) -> Tensor:
    out = torch.empty_like(like)
    decode(form, {name: part.reshape(-1) for name, part in parts.items()}, out)
    return out


def comfy_layers(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Format, dict[str, Tensor], dict[str, object]]]:
    """Layer by layer another of ComfyUI's formats, written by its formula."""
    kinds = itertools.cycle(["e4m3", "e5m2", "nvfp4", "mxfp8", "int8", "rows", "convrot", "plain"])
    for layer in block_linears(shapes(tensors)):
        values, kind = tensors[f"{layer}.weight"], next(kinds)
        largest = values.abs().max()
        if kind == "e4m3":
            scale = largest / 448
            yield (
                layer,
                Fp8("tensor"),
                {"weight": encode_fp8(values, scale), "weight_scale": scale},
                {"format": "float8_e4m3fn"},
            )
        elif kind == "e5m2":
            scale = largest / 57344
            codes = (values / scale).to(torch.float8_e5m2)
            yield layer, Fp8("tensor", "F8_E5M2"), {"weight": codes, "weight_scale": scale}, {"format": "float8_e5m2"}
        elif kind == "nvfp4":
            parts = encode(Nvfp4(), values, tensor_scale(Nvfp4(), largest))
            parts = {**parts, "weight": parts["weight"].view(len(values), -1)}
            yield layer, Nvfp4(), parts, {"format": "nvfp4"}
        elif kind == "mxfp8":
            blocks = values.view(len(values), -1, 32)
            exponents = torch.ceil(torch.log2(blocks.abs().amax(-1) / 448))
            codes = (blocks / torch.exp2(exponents)[..., None]).to(torch.float8_e4m3fn).view(values.shape)
            scales = tiled((exponents + 127).to(torch.uint8))
            yield layer, Mxfp8(), {"weight": codes, "weight_scale": scales}, {"format": "mxfp8"}
        elif kind == "int8":
            scale = largest / 127
            codes = encode_int8(values, scale.expand(len(values)))
            yield layer, Int8("tensor", None), {"weight": codes, "weight_scale": scale}, {"format": "int8_tensorwise"}
        elif kind == "rows":
            scales = int8_scales(values)
            parts = {"weight": encode_int8(values, scales), "weight_scale": scales[:, None]}
            yield layer, Int8("row", None), parts, {"format": "int8_tensorwise"}
        elif kind == "convrot":
            form = Int8("row", "regular", 256)
            parts = encode(form, values, None)
            parts = {"weight": parts["weight"].view(values.shape), "weight_scale": parts["weight_scale"][:, None]}
            yield layer, form, parts, {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}


def comfy_files(folder: Path, tensors: dict[str, Tensor], transport: str) -> tuple[Path, Path, dict[str, Format]]:
    """A file with a format for every layer, and one with what they stand for. transport: of the notes."""
    stored, plain = dict(tensors), dict(tensors)
    forms, notes = {}, {}
    for layer, form, parts, note in comfy_layers(tensors):
        plain[f"{layer}.weight"] = decoded(form, parts, tensors[f"{layer}.weight"])
        del stored[f"{layer}.weight"]
        stored |= {f"{layer}.{name}": part for name, part in parts.items()}
        if transport == "tensor":
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
        forms[layer], notes[f"model.diffusion_model.{layer}"] = form, note
    names = {f"model.diffusion_model.{name}": value.contiguous() for name, value in stored.items()}
    described = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": notes})}
    save_file(names, folder / "comfy.safetensors", described if transport == "header" else {})
    return folder / "comfy.safetensors", write_tensors(folder / "plain.safetensors", plain), forms


def test_a_format_for_every_layer(
    tmp_path: Path, base: Path, tensors: dict[str, Tensor], pictures: Callable[..., Any]
) -> None:
    stored, plain, forms = comfy_files(tmp_path, tensors, "header")
    checkpoint = open_checkpoint(stored, variant="distilled", autoencoder=base, text_encoder=base)
    assert checkpoint.transformer.formats == forms
    assert (checkpoint.precision, checkpoint.text_precision, checkpoint.notes) == ("stored", "fp32", ())
    read = load_transformer(checkpoint, torch.float32, "cpu").state_dict()
    for name, value in load_file(plain).items():
        torch.testing.assert_close(read[name], value, rtol=0, atol=0)
    kept = load_transformer(checkpoint, torch.float32, "cpu", "stored")
    assert sum(buffer.nbytes for buffer in kept.buffers()) == sum(
        format_bytes(form, tuple(tensors[f"{layer}.weight"].shape), 4) for layer, form in forms.items()
    )
    (network,) = inspect(stored).networks
    assert network.formats == {f"model.diffusion_model.{layer}": form.precision for layer, form in forms.items()}
    expected, made = pictures(plain), pictures(stored)
    # Rotated int8 quantises activations as well, token by token.
    assert np.abs(made - expected).max() <= 3
    assert np.abs(pictures(stored, "fp32") - expected).max() == 0
    assert np.array_equal(pictures(stored, resident=(0, 2)), made)


@pytest.mark.parametrize("magnitudes", [False, True])
@torch.inference_mode()
def test_a_lora_beside_every_format_is_that_of_the_decoded_weights(
    magnitudes: bool, tmp_path: Path, base: Path, tensors: dict[str, Tensor]
) -> None:
    stored, plain, forms = comfy_files(tmp_path, tensors, "header")
    checkpoint = open_checkpoint(stored, variant="distilled", autoencoder=base, text_encoder=base)
    drawn = DIALECTS["kohya"](checkpoint.transformer_config)
    generator = torch.Generator().manual_seed(1)
    sums = load_file(plain)
    for layer, delta in drawn.deltas.items():
        changed = sums[f"{layer}.weight"] + delta
        if magnitudes:
            magnitude = 0.5 + torch.rand(len(delta), 1, generator=generator)
            drawn.tensors[f"lora_unet_{layer.replace('.', '_')}.dora_scale"] = magnitude
            changed = magnitude * changed / changed.norm(dim=1, keepdim=True)
        sums[f"{layer}.weight"] = changed
    chosen = choose_loras([drawn.save(tmp_path / "a.safetensors")], checkpoint.transformer_config, "it")
    network = load_transformer(checkpoint, torch.float32, "cpu", "stored")
    attach(network, load_branches(chosen, checkpoint.transformer, torch.float32, "cpu"))
    for layer, form in forms.items():
        weight = sums[f"{layer}.weight"]
        x = torch.randn(1, 9, weight.shape[1], generator=generator)
        expected = x @ weight.t()
        # Layers of rotated int8 quantise activations as well.
        tolerance = 0.02 if isinstance(form, Int8) and form.rotation else 1e-5
        assert (network.get_submodule(layer)(x) - expected).abs().max() <= tolerance * expected.abs().max(), layer


def gguf_file(path: Path, tensors: dict[str, Tensor], kinds: dict[str, str]) -> dict[str, Tensor]:
    """Writes tensors in ggml's types, K types as random blocks of about the right size; returns what they stand for."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "flux")
    generator = np.random.default_rng(0)
    plain = {}
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds.get(name, "F32")]
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        if kind.name.endswith("_K"):
            blocks = generator.integers(0, 256, (len(value), value.shape[1] // weights, size), dtype=np.uint8)
            places = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}[kind.name]
            step = np.float16({"Q2_K": 4e-3, "Q3_K": 1e-3, "Q4_K": 3e-4, "Q5_K": 2e-4, "Q6_K": 4e-5}[kind.name])
            for place in places:
                blocks[..., place : place + 2] = np.frombuffer(step.tobytes(), dtype=np.uint8)
            data = blocks.reshape(len(value), -1)
        else:
            data = gguf.quantize(value.numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        plain[name] = torch.from_numpy(gguf.dequantize(data, kind).copy()).view(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def test_gguf(tmp_path: Path, base: Path, tensors: dict[str, Tensor], pictures: Callable[..., Any]) -> None:
    layers = block_linears(shapes(tensors))
    kinds = dict(
        zip((f"{layer}.weight" for layer in layers), itertools.cycle([*GGUF_BLOCKS, "F16", "BF16"]), strict=False)
    )
    # Modulation as well is stored in blocks in the smaller files.
    kinds["double_stream_modulation_img.lin.weight"] = "Q4_K"
    file = tmp_path / "model.gguf"
    plain = gguf_file(file, tensors, kinds)
    checkpoint = open_checkpoint(file, variant="distilled", autoencoder=base, text_encoder=base)
    assert checkpoint.transformer.formats == {
        name.removesuffix(".weight"): Gguf(kind) for name, kind in kinds.items() if kind in GGUF_BLOCKS
    }
    expected = pictures(write_tensors(tmp_path / "plain.safetensors", plain))
    made = pictures(file)
    assert np.abs(made - expected).max() <= 1
    assert np.array_equal(pictures(file, resident=(1,)), made)
    (network,) = inspect(file).networks
    assert network.formats == {
        name.removesuffix(".weight"): kind.lower() for name, kind in kinds.items() if kind in GGUF_BLOCKS
    }
    assert (network.missing, network.unused, network.problems) == ((), (), ())


def diffusers_folder(
    folder: Path, base: Path, tensors: dict[str, Tensor], metadata: dict[str, str], **config: Any
) -> Path:
    """The whole pipeline with another transformer."""
    shutil.copytree(base, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata)
    settings = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(settings | config))
    return folder


def nf4(values: Tensor, nested: bool) -> tuple[dict[str, Tensor], Tensor]:
    """bitsandbytes' four bits by their definition (arXiv:2305.14314), and what they stand for."""
    levels = load_file(GOLDEN / "bitsandbytes-nf4.safetensors")["single_blocks.0.linear2.weight.quant_map"]
    blocks = values.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    state: dict[str, object] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(values.shape)}
    parts = {"weight.absmax": largest}
    if nested:
        table = torch.linspace(-1, 1, 256)
        offset = float(largest.mean())
        groups = torch.nn.functional.pad(largest - offset, (0, -len(largest) % 256)).view(-1, 256)
        sizes = groups.abs().amax(1)
        codes = ((groups / sizes[:, None] + 1) * 127.5).round().to(torch.uint8)
        largest = ((table[codes.int()] * sizes[:, None]) + offset).view(-1)[: len(largest)]
        parts = {
            "weight.absmax": codes.view(-1)[: len(largest)],
            "weight.nested_absmax": sizes,
            "weight.nested_quant_map": table,
        }
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
    codes = (blocks[..., None] / largest[:, None, None] - levels).abs().argmin(-1).to(torch.uint8).view(-1, 2)
    parts |= {
        "weight": ((codes[:, 0] << 4) | codes[:, 1])[:, None],
        "weight.quant_map": levels,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    standing = (levels[codes.view(-1, 64).int()] * largest[:, None]).view(values.shape)
    return parts, standing


@pytest.mark.parametrize("kind", ["nf4 nested", "torchao fp8", "modelopt fp8", "modelopt nvfp4"])
def test_diffusers_folders(
    tmp_path: Path, base: Path, tensors: dict[str, Tensor], pictures: Callable[..., Any], kind: str
) -> None:
    """Queries, keys and values apart; with bitsandbytes and torchao every linear layer, the swapped last one too."""
    _, theirs = transformer_for_diffusers(open_checkpoint(base).transformer_config, tensors)
    stored, plain = dict(theirs), dict(theirs)
    metadata: dict[str, str] = {}
    for name in [name for name, value in theirs.items() if value.ndim == 2]:
        layer, values = name.removesuffix(".weight"), theirs[name]
        if kind.startswith("modelopt") and "transformer_blocks" not in name:
            continue
        del stored[name]
        if kind.startswith("nf4"):
            parts, plain[name] = nf4(values, "nested" in kind)
        elif kind == "torchao fp8":
            scales = values.abs().amax(1) / 448
            parts = {"_weight_qdata": encode_fp8(values, scales), "_weight_scale": scales[:, None]}
            metadata[name] = json.dumps({"_type": "Float8Tensor", "_data": {"block_size": [1, values.shape[1]]}})
            plain[name] = parts["_weight_qdata"].float() * scales[:, None]
        elif kind == "modelopt fp8":
            scale = values.abs().max() / 448
            parts = {"weight": encode_fp8(values, scale), "weight_scale": scale, "input_scale": torch.tensor(1.0)}
            plain[name] = parts["weight"].float() * scale
        else:
            codes = encode(Nvfp4(), values, tensor_scale(Nvfp4(), values.abs().max()))
            plain[name] = decoded(Nvfp4(), codes, values)
            rows, width = values.shape
            parts = {
                "weight": ((codes["weight"] << 4) | (codes["weight"] >> 4)).view(rows, width // 2),
                "weight_scale": untiled(codes["weight_scale"].view(torch.uint8), rows, width // 16)
                .contiguous()
                .view(torch.float8_e4m3fn),
                "weight_scale_2": codes["weight_scale_2"].view(()),
            }
        stored |= {f"{layer}.{part}": value for part, value in parts.items()}
    method = {"nf4 nested": "bitsandbytes", "torchao fp8": "torchao"}.get(kind, "modelopt")
    folder = diffusers_folder(tmp_path / "in", base, stored, metadata, quantization_config={"quant_method": method})
    expected = pictures(diffusers_folder(tmp_path / "plain", base, plain, {}))
    checkpoint = open_checkpoint(folder)
    kept = set(block_linears(shapes(tensors)))
    assert kept <= set(checkpoint.transformer.formats)
    assert checkpoint.precision == ("fp8" if "fp8" in kind else "stored")
    made = pictures(folder)
    assert np.abs(made - expected).max() <= 1
    assert np.array_equal(pictures(folder, resident=(0,)), made)


def test_a_cast_is_loaded_with_a_warning(
    tmp_path: Path, tensors: dict[str, Tensor], pictures: Callable[..., Any], base: Path
) -> None:
    """Everything in e4m3 without a scale, norms too."""
    cast = {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}
    file = write_tensors(tmp_path / "cast.safetensors", cast)
    checkpoint = open_checkpoint(file, variant="distilled", autoencoder=base, text_encoder=base)
    assert len(checkpoint.notes) == 1
    assert "cast to fp8 without a scale" in checkpoint.notes[0]
    plain = write_tensors(tmp_path / "plain.safetensors", {name: value.float() for name, value in cast.items()})
    assert np.abs(pictures(file) - pictures(plain)).max() <= 1
    assert "cast to fp8" in inspect(file).networks[0].problems[0]


@pytest.mark.parametrize("precision", ["nvfp4", "int8", "fp8", "stored"])
def test_converted_from_and_to(tmp_path: Path, base: Path, tensors: dict[str, Tensor], precision: Any) -> None:
    """From a format for every layer: re-encoded from what it stands for, or kept byte by byte."""
    stored, plain, forms = comfy_files(tmp_path, tensors, "header")
    made, again = tmp_path / "made.safetensors", tmp_path / "again.safetensors"
    convert(stored, made, precision, "comfy")
    rest: dict[str, Any] = {"variant": "distilled", "autoencoder": base, "text_encoder": base}
    checkpoint = open_checkpoint(made, **rest)
    if precision == "stored":
        assert checkpoint.transformer.formats == forms
        source, target = load_file(stored), load_file(made)
        for layer, form in forms.items():
            for part in form.parts():
                before = source[f"model.diffusion_model.{layer}.{part.name}"].view(-1).view(torch.uint8)
                assert torch.equal(target[f"{layer}.{part.name}"].view(-1).view(torch.uint8), before)
    elif precision == "nvfp4":
        kept = [layer for layer, form in forms.items() if form == Nvfp4()]
        assert checkpoint.transformer.formats == dict.fromkeys(kept, Nvfp4())
    else:
        assert {form.precision for form in checkpoint.transformer.formats.values()} == {precision}
    convert(made, again, "fp32", "bfl")
    values, expected = load_file(again), load_file(plain)
    for layer in checkpoint.transformer.formats:
        value = values[f"{layer}.weight"]
        error = (value - expected[f"{layer}.weight"]).pow(2).sum() / expected[f"{layer}.weight"].pow(2).sum()
        assert error <= 2e-3, layer


def test_what_a_layout_has_no_place_for(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "model.gguf"
    gguf_file(file, tensors, {"single_blocks.0.linear1.weight": "Q4_K"})
    with pytest.raises(RequestError, match="q4_k, for which the layout comfy has no place"):
        convert(file, tmp_path / "out.safetensors", "stored", "comfy")
    convert(file, tmp_path / "out.safetensors", "int8", "bfl")


def test_inspect_says_which_layers_are_in_which_format(
    headrace: Run, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    stored, _, forms = comfy_files(tmp_path, tensors, "tensor")
    shown = headrace("inspect", stored).stdout
    count = sum(form.precision == "int8" for form in forms.values())
    assert f"transformer: {count} layers in int8: " in shown
    assert "layers in nvfp4: model.diffusion_model.double_blocks.*.img_mlp.0 (1)" in shown
