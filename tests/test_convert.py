"""`headrace convert`: every layout and precision, read back; what other programs see; what cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import headrace
from checkpoint_files import (
    LANGUAGE_MODEL,
    TRANSFORMER,
    transformer_tensors,
    write_pipeline,
    write_tensors,
)
from conftest import Run
from headrace.checkpoints import load_language_model, load_transformer, open_checkpoint
from headrace.checkpoints.convert import convert
from headrace.checkpoints.headers import read_header
from headrace.checkpoints.write import PAGE, TensorFile
from headrace.errors import HeadraceError, RequestError
from headrace.quant.codecs import decode_fp8, decode_int8, encode_fp8, fp8_scales
from headrace.quant.formats import FP8, FP8_TENSOR, Int8, Split
from headrace.quant.linear import Fp8Linear, Int8Linear
from lora_files import DIALECTS, low_rank

QUANTISED = re.compile(r"(double_blocks|single_blocks)\.\d+\..*(qkv|proj|mlp\.[02]|linear[12])\.weight")
PRECISIONS = ["fp32", "bf16", "fp8", "int8"]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "in", is_distilled=True)


def single(file: Path, pipeline: Path) -> Any:
    """A transformer file with the rest of a pipeline."""
    return open_checkpoint(file, variant="distilled", autoencoder=pipeline, text_encoder=pipeline)


def state(checkpoint: Any, bits: Any = None) -> dict[str, Tensor]:
    return dict(load_transformer(checkpoint, torch.float32, "cpu", bits).state_dict())


def assert_same(made: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        assert made[name].dtype == value.dtype, name
        assert torch.equal(made[name].float(), value.float()), name


def bf16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values that went through bf16, in float32; scales and codes as they are."""
    return {
        name: value.bfloat16().float() if value.dtype == torch.float32 and not name.endswith("_scale") else value
        for name, value in tensors.items()
    }


@pytest.mark.parametrize("layout", ["bfl", "diffusers", "comfy"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_read_back(tmp_path: Path, pipeline: Path, precision: Any, layout: Any) -> None:
    """Converting and loading gives what loading in that precision gives."""
    output = tmp_path / ("out" if layout == "diffusers" else "out.safetensors")
    convert(pipeline, output, precision, layout)
    checkpoint = open_checkpoint(output) if layout == "diffusers" else single(output, pipeline)
    assert checkpoint.precision == precision
    bits = precision if precision in ("fp8", "int8") else None
    made, expected = state(checkpoint, bits), state(open_checkpoint(pipeline), bits)
    if precision != "fp32":
        expected = bf16(expected)
    if layout == "comfy" and bits:
        for name in [name for name in expected if QUANTISED.fullmatch(name)]:
            scale, original = made.pop(f"{name}_scale"), transformer_tensors()[name]
            values = torch.empty(original.shape)
            if precision == "fp8":
                decode_fp8(made.pop(name), scale, values)
                assert scale.shape == ()
                assert torch.equal(scale, fp8_scales(original.reshape(1, -1))[0])
            else:
                values = decode_int8(
                    made.pop(name), scale, Int8("row", "regular", 64 if original.shape[1] % 256 else 256)
                )
            assert torch.nn.functional.cosine_similarity(values.view(-1), original.view(-1), dim=0) > 0.999
            del expected[name], expected[f"{name}_scale"]
    assert_same(made, expected)
    if layout == "diffusers":
        text = load_language_model(checkpoint, torch.bfloat16, "cpu", bits).state_dict()
        again = load_language_model(open_checkpoint(pipeline), torch.bfloat16, "cpu", bits).state_dict()
        assert_same(dict(text), dict(again))
        assert checkpoint.text_precision == precision


@pytest.mark.parametrize("first", PRECISIONS)
@pytest.mark.parametrize("second", PRECISIONS)
def test_from_every_precision_to_every_other(tmp_path: Path, pipeline: Path, first: Any, second: Any) -> None:
    convert(pipeline, tmp_path / "first", first, "diffusers")
    convert(tmp_path / "first", tmp_path / "second", second, "diffusers")
    convert(tmp_path / "second" / "transformer", tmp_path / "third.safetensors", second, "bfl")
    second_state = load_file(tmp_path / "third.safetensors")
    bits = second if second in ("fp8", "int8") else None
    expected = state(open_checkpoint(tmp_path / "first"), bits)
    assert_same(
        {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in second_state.items()},
        expected if second == "fp32" else bf16(expected),
    )


def test_comfy_finds_a_note_and_a_scale_beside_every_quantised_layer(tmp_path: Path, pipeline: Path) -> None:
    file = tmp_path / "out.safetensors"
    convert(pipeline, file, "fp8", "comfy")
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    quantised = [name for name in tensors if QUANTISED.fullmatch(name)]
    assert len(quantised) == 8 * TRANSFORMER.depth + 2 * TRANSFORMER.depth_single_blocks
    assert {name for name, value in tensors.items() if value.dtype == torch.float8_e4m3fn} == set(quantised)
    for name in quantised:
        layer = name.removesuffix(".weight")
        assert json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
        assert tensors[f"{layer}.weight_scale"].shape == ()
    layers = json.loads(metadata["_quantization_metadata"])["layers"]
    assert layers == {name.removesuffix(".weight"): {"format": "float8_e4m3fn"} for name in quantised}
    assert all(
        value.dtype == torch.bfloat16
        for name, value in tensors.items()
        if name not in quantised and not name.endswith(("weight_scale", "comfy_quant"))
    )


def published_fp8(tensors: dict[str, Tensor], *, spelling: tuple[str, str], prefix: str) -> dict[str, Tensor]:
    """As Black Forest Labs' and older files of ComfyUI's are: one scale a tensor, and one for its inputs."""
    file: dict[str, Tensor] = {}
    for name, value in tensors.items():
        file[prefix + name] = value.bfloat16()
        if QUANTISED.fullmatch(name) and "txt_attn" not in name:
            layer = prefix + name.removesuffix(".weight")
            scale = value.abs().max() / 448
            file[prefix + name] = encode_fp8(value, scale)
            file[f"{layer}.{spelling[0]}"] = scale
            file[f"{layer}.{spelling[1]}"] = torch.tensor(0.5)
    return file


@pytest.mark.parametrize(
    ("spelling", "prefix"),
    [(("weight_scale", "input_scale"), ""), (("scale_weight", "scale_input"), "model.diffusion_model.")],
)
def test_published_fp8_files_are_loaded_as_stored_or_decoded(
    tmp_path: Path, pipeline: Path, spelling: tuple[str, str], prefix: str
) -> None:
    tensors = published_fp8(transformer_tensors(), spelling=spelling, prefix=prefix)
    if prefix:
        tensors |= {f"{prefix}scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    checkpoint = single(write_tensors(tmp_path / "fp8.safetensors", tensors), pipeline)
    assert checkpoint.precision == "fp8"
    network = load_transformer(checkpoint, torch.bfloat16, "cpu", "fp8")
    layers = {name for name, part in network.named_modules() if isinstance(part, Fp8Linear)}
    assert layers == {
        name.removesuffix(".weight") for name in transformer_tensors() if prefix + name in tensors
        and tensors[prefix + name].dtype == torch.float8_e4m3fn
    }  # fmt: skip
    decoded, int8 = state(checkpoint), load_transformer(checkpoint, torch.bfloat16, "cpu", "int8")
    for layer in layers:
        stored = tensors[f"{prefix}{layer}.weight"]
        part = network.get_submodule(layer)
        assert torch.equal(part.weight.float(), stored.float())
        assert part.weight_scale == tensors[f"{prefix}{layer}.{spelling[0]}"]
        assert torch.equal(decoded[f"{layer}.weight"], stored.float() * part.weight_scale)
        assert isinstance(int8.get_submodule(layer), Int8Linear)


def test_an_fp8_file_without_scales(tmp_path: Path, pipeline: Path) -> None:
    tensors = transformer_tensors()
    cast = {n: v.to(torch.float8_e4m3fn) if QUANTISED.fullmatch(n) else v.bfloat16() for n, v in tensors.items()}
    checkpoint = single(write_tensors(tmp_path / "fp8.safetensors", cast), pipeline)
    network = load_transformer(checkpoint, torch.bfloat16, "cpu", "fp8")
    assert network.single_blocks[0].linear1.weight_scale == 1
    assert_same(state(checkpoint), {name: value.float() for name, value in cast.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"linear1.weight": torch.zeros(576, 64, dtype=torch.int8), "linear1.weight_scale": torch.ones(576)}, "I8"),
        ({"linear1.weight": torch.zeros(576, 64, dtype=torch.uint8)}, "U8"),
        (
            {
                "linear1.weight": torch.zeros(576, 64).to(torch.float8_e4m3fn),
                "linear1.weight_scale": torch.ones(18, 2),
            },
            "does not fit",
        ),
        ({"linear1.weight_scale": torch.ones(())}, "does not have"),
    ],
)
def test_eight_bits_that_are_not_read(tmp_path: Path, pipeline: Path, change: dict[str, Tensor], sentence: str) -> None:
    tensors = transformer_tensors() | {f"single_blocks.0.{name}": value for name, value in change.items()}
    with pytest.raises(RequestError, match=sentence):
        single(write_tensors(tmp_path / "x.safetensors", tensors), pipeline)


def test_parts_of_one_layer_in_different_formats(tmp_path: Path, pipeline: Path) -> None:
    """The queries in bf16, keys in fp8 with a scale for each row, values with one for all."""
    folder = tmp_path / "out"
    convert(pipeline, folder, "fp8", "diffusers")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, layer = load_file(file), "transformer_blocks.0.attn.to_"
    queries, values = transformer_tensors()["double_blocks.0.img_attn.qkv.weight"].view(3, 64, 64)[[0, 2]]
    del tensors[f"{layer}q.weight_scale"]
    scale = values.abs().max() / 448
    tensors |= {f"{layer}q.weight": queries.bfloat16(), f"{layer}v.weight": encode_fp8(values, scale)}
    write_tensors(file, tensors | {f"{layer}v.weight_scale": scale})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.transformer.formats["double_blocks.0.img_attn.qkv"] == Split(
        ((64, None), (64, FP8), (64, FP8_TENSOR))
    )
    network = load_transformer(checkpoint, torch.float32, "cpu", "fp8")
    decoded = state(checkpoint)["double_blocks.0.img_attn.qkv.weight"]
    assert torch.equal(decoded[:64], queries.bfloat16().float())
    assert torch.equal(decoded[128:], tensors[f"{layer}v.weight"].float() * scale)
    x = torch.randn(2, 5, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.double_blocks[0].img_attn.qkv(x), x @ decoded.t())


def test_blocks_are_contiguous_in_order_and_on_pages(tmp_path: Path) -> None:
    """At widths like the published ones, where every matrix fills whole pages."""
    from headrace.checkpoints.shapes import transformer_shapes
    from headrace.nn.config import TransformerConfig

    config = TransformerConfig(
        context_in_dim=384, hidden_size=256, num_heads=2, depth=2, depth_single_blocks=11, guidance_embed=False
    )
    tensors = {name: torch.zeros(shape) for name, shape in sorted(transformer_shapes(config).items())}
    for layout, precision in (("bfl", "bf16"), ("comfy", "fp8"), ("diffusers", "int8")):
        output = tmp_path / f"{layout}{'' if layout == 'diffusers' else '.safetensors'}"
        convert(write_tensors(tmp_path / "in.safetensors", tensors), output, precision, layout)
        file = output / "diffusion_pytorch_model.safetensors" if layout == "diffusers" else output
        entries = read_header(file).tensors
        ordered = sorted(entries.items(), key=lambda item: item[1].offset)
        paged = [(name, entry) for name, entry in ordered if entry.size % PAGE == 0 and entry.size]
        assert all(entry.offset % PAGE == 0 for _, entry in paged)
        assert [name for name, _ in ordered[: len(paged)]] == [name for name, _ in paged]
        blocks = [
            match[0] for name, _ in paged if (match := re.match(r"\w*(double|single|transformer)_\w*\.\d+", name))
        ]
        runs = [name for index, name in enumerate(blocks) if index == 0 or blocks[index - 1] != name]
        stems = (
            ("transformer_blocks", "single_transformer_blocks")
            if layout == "diffusers"
            else ("double_blocks", "single_blocks")
        )
        assert runs == [f"{stems[0]}.{i}" for i in range(2)] + [f"{stems[1]}.{i}" for i in range(11)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["dev", "klein"])
def test_diffusers_opens_the_folder(
    tmp_path: Path, tiny_model: Callable[[str], Path], kind: str, precision: Any
) -> None:
    import diffusers

    folder = tiny_model(kind)
    convert(folder, tmp_path / "out", precision, "diffusers")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    kinds = {"dev": diffusers.Flux2Pipeline, "klein": diffusers.Flux2KleinPipeline}
    theirs = kinds[kind].from_pretrained(tmp_path / "out", dtype=dtype)
    original = kinds[kind].from_pretrained(folder, dtype=dtype)
    for part in ("transformer", "vae", "text_encoder"):
        assert_same(dict(getattr(theirs, part).state_dict()), dict(getattr(original, part).state_dict()))
    assert theirs.tokenizer.get_vocab() == original.tokenizer.get_vocab()


def test_pictures_are_the_same_before_and_after(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """In eight bits: quantised as it is loaded, or by convert and then loaded with --precision auto."""
    convert(tiny_model("klein"), tmp_path / "bf16", "bf16", "diffusers")
    convert(tmp_path / "bf16", tmp_path / "int8", "int8", "diffusers")
    request: dict[str, Any] = {"prompt": "a red apple", "size": "64x64", "seed": 1, "steps": 2}
    converted = headrace.load(tmp_path / "int8", device="cpu").generate(**request)
    assert (converted.recipe.precision, converted.recipe.text_precision) == ("int8", "")
    quantised = headrace.load(tmp_path / "bf16", precision="int8", device="cpu").generate(**request)
    assert converted.image.tobytes() == quantised.image.tobytes()


def test_text_precision(tiny_model: Callable[[str], Path]) -> None:
    request: dict[str, Any] = {"prompt": "a red apple", "size": "64x64", "seed": 1, "steps": 1}
    mixed = headrace.load(tiny_model("klein"), precision="fp8", text_precision="fp32", device="cpu").generate(**request)
    assert (mixed.recipe.precision, mixed.recipe.text_precision) == ("fp8", "fp32")
    assert headrace.Recipe.from_dict(mixed.recipe.as_dict()) == mixed.recipe
    alike = headrace.load(tiny_model("klein"), precision="fp8", device="cpu").generate(**request)
    assert (alike.recipe.precision, alike.recipe.text_precision) == ("fp8", "")
    assert mixed.image.tobytes() != alike.image.tobytes()


def test_the_language_model_keeps_embeddings_and_norms(pipeline: Path) -> None:
    network = load_language_model(open_checkpoint(pipeline), torch.bfloat16, "cpu", "fp8")
    quantised = [name for name, part in network.named_modules() if isinstance(part, Fp8Linear)]
    assert len(quantised) == 7 * 27
    assert network.embed_tokens.weight.dtype == torch.bfloat16
    assert LANGUAGE_MODEL.num_layers == 28


@pytest.mark.parametrize(
    ("output", "layout", "sentence"),
    [
        ("out", "bfl", "a .safetensors file"),
        ("out.safetensors", "diffusers", "a folder"),
        ("none/out", "diffusers", "does not exist"),
        ("in", "diffusers", "is there already"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, pipeline: Path, output: str, layout: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        convert(pipeline, tmp_path / output, "bf16", layout)


def test_a_disk_that_is_too_small(tmp_path: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(RequestError, match="only 1000 are free"):
        convert(pipeline, tmp_path / "out", "bf16", "diffusers")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(
    tmp_path: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def write(*_: object) -> None:
        raise error

    monkeypatch.setattr(TensorFile, "write", write)
    with pytest.raises(HeadraceError if isinstance(error, OSError) else KeyboardInterrupt):
        convert(pipeline, tmp_path / "out", "bf16", "diffusers")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]


def test_the_command(headrace: Run, tmp_path: Path, pipeline: Path) -> None:
    done = headrace("convert", pipeline, "out.safetensors", "--precision", "int8")
    assert done.stdout.startswith("wrote out.safetensors (")
    assert done.stderr == ""
    again = headrace("convert", pipeline, "out.safetensors")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "is there already" in again.stderr
    assert headrace("convert", "none", "out").returncode == 2


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "lokr-kohya"])
def test_loras_are_merged_into_what_is_written(tmp_path: Path, pipeline: Path, dialect: str, layout: Any) -> None:
    first, second = DIALECTS[dialect](TRANSFORMER), DIALECTS["differences"](TRANSFORMER)
    loras = [(first.save(tmp_path / "a.safetensors"), 0.5), f"{second.save(tmp_path / 'b.safetensors')}:-2"]
    output = tmp_path / ("out" if layout == "diffusers" else "out.safetensors")
    reports: list[str] = []
    convert(pipeline, output, "fp32", layout, loras=loras, say=reports.append)
    made = state(open_checkpoint(output) if layout == "diffusers" else single(output, pipeline))
    expected = state(open_checkpoint(pipeline))
    for drawn, strength in ((first, 0.5), (second, -2)):
        for layer, delta in drawn.deltas.items():
            expected[f"{layer}.weight"] = expected[f"{layer}.weight"] + strength * delta
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-5)
    assert [report.partition(" at ")[0] for report in reports] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8", "nvfp4"])
def test_what_loras_change_is_rounded_once(tmp_path: Path, pipeline: Path, precision: Any) -> None:
    lora = DIALECTS["kohya"](TRANSFORMER).save(tmp_path / "a.safetensors")
    convert(pipeline, tmp_path / "merged", "fp32", "diffusers", loras=[lora])
    convert(tmp_path / "merged", tmp_path / "two.safetensors", precision, "comfy")
    convert(pipeline, tmp_path / "one.safetensors", precision, "comfy", loras=[lora])
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def octets(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("precision", ["fp8", "stored"])
def test_of_a_quantised_file_only_what_loras_change_is_written_anew(
    tmp_path: Path, pipeline: Path, precision: Any
) -> None:
    convert(pipeline, tmp_path / "in.safetensors", "fp8", "comfy")
    drawn = DIALECTS["kohya"](TRANSFORMER)
    layers = ("single_blocks.1.linear1", "double_blocks.0.img_mlp.2", "final_layer.linear")
    names = tuple(f"lora_unet_{layer.replace('.', '_')}." for layer in layers)
    drawn.tensors = {name: value for name, value in drawn.tensors.items() if name.startswith(names)}
    convert(
        tmp_path / "in.safetensors",
        tmp_path / "out.safetensors",
        precision,
        "comfy",
        loras=[drawn.save(tmp_path / "a.safetensors")],
    )
    before, after = load_file(tmp_path / "in.safetensors"), load_file(tmp_path / "out.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(octets(before[name]), octets(after[name]))}
    assert {name.rpartition(".")[0] for name in changed} == set(layers)
    made, plain = (state(single(tmp_path / name, pipeline)) for name in ("out.safetensors", "in.safetensors"))
    for layer in layers:
        expected = plain[f"{layer}.weight"] + drawn.deltas[layer]
        assert (made[f"{layer}.weight"] - expected).abs().max() <= expected.abs().max() / 14  # half a step of e4m3


def test_magnitudes_and_norms_are_merged_and_biases_refused(tmp_path: Path, pipeline: Path) -> None:
    layer, norm = "double_blocks.0.txt_attn.qkv", "single_blocks.0.norm.key_norm"
    plain = state(open_checkpoint(pipeline))
    drawn = DIALECTS["kohya"](TRANSFORMER)
    weight = plain[f"{layer}.weight"] + drawn.deltas[layer]
    name = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {key: value for key, value in drawn.tensors.items() if key.startswith(name)}
    tensors |= {
        f"{name}.dora_scale": torch.rand(len(weight), 1),
        f"diffusion_model.{norm}.diff": torch.rand(plain[f"{norm}.scale"].shape),
    }
    lora = write_tensors(tmp_path / "a.safetensors", tensors)
    convert(pipeline, tmp_path / "out.safetensors", "fp32", "bfl", loras=[lora])
    made = load_file(tmp_path / "out.safetensors")
    expected = weight * (tensors[f"{name}.dora_scale"] / weight.norm(dim=1, keepdim=True))
    torch.testing.assert_close(made[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made[f"{norm}.scale"], plain[f"{norm}.scale"] + tensors[f"diffusion_model.{norm}.diff"])
    tensors[f"{name}.diff_b"] = torch.ones(len(weight))
    lora = write_tensors(tmp_path / "b.safetensors", tensors)
    with pytest.raises(RequestError, match="adds a bias to"):
        convert(pipeline, tmp_path / "biased.safetensors", "fp32", "bfl", loras=[lora])
    assert not (tmp_path / "biased.safetensors").exists()


def test_the_command_merges_loras(headrace: Run, tmp_path: Path, pipeline: Path) -> None:
    DIALECTS["bfl"](TRANSFORMER).save(tmp_path / "a.safetensors")
    convert(pipeline, tmp_path / "plain.safetensors", "bf16", "bfl")
    convert(pipeline, tmp_path / "zero.safetensors", "bf16", "bfl", loras=[f"{tmp_path / 'a.safetensors'}:0"])
    assert (tmp_path / "zero.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    done = headrace("convert", pipeline, "out.safetensors", "--precision", "bf16", "--lora", "a.safetensors:0.5")
    assert "a.safetensors at 0.5: LoRA of rank 3" in done.stderr
    assert (tmp_path / "out.safetensors").read_bytes() != (tmp_path / "plain.safetensors").read_bytes()


PEAK = """
import re, sys
from pathlib import Path
from headrace.checkpoints.convert import convert

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

folder, small, large, lora = map(Path, sys.argv[1:])
convert(small, folder / "1.safetensors", "fp8", "comfy")
before = peak()
for number, loras in enumerate(([], [lora])):
    convert(large, folder / f"large-{number}.safetensors", "fp8", "comfy", loras=loras)
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_a_few_tensors(tmp_path: Path) -> None:
    from headrace.checkpoints.shapes import transformer_shapes
    from headrace.nn.config import TransformerConfig

    config = TransformerConfig(
        context_in_dim=1024, hidden_size=1024, num_heads=8, depth=2, depth_single_blocks=2, guidance_embed=False
    )
    large = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in transformer_shapes(config).items()}
    assert sum(value.nbytes for value in large.values()) > 190e6
    small = write_tensors(tmp_path / "small.safetensors", transformer_tensors())
    factors = low_rank("bfl", ".lora_A.weight", ".lora_B.weight", "", rank=128)(config).save(
        tmp_path / "lora.safetensors"
    )
    assert factors.stat().st_size > 45e6
    large_file = write_tensors(tmp_path / "large.safetensors", large)
    command = [sys.executable, "-c", PEAK, tmp_path, small, large_file, factors]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    plain, merged = map(int, done.stdout.split())
    assert plain < 60e6
    assert merged < 105e6
