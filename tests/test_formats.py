"""Every format that weights are stored in: decoded as its own library does, multiplied with, recognised or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from checkpoint_files import write_tensors
from headrace.checkpoints.components import Component
from headrace.checkpoints.layouts import as_stored
from headrace.checkpoints.load import StoredTensors, fill_module
from headrace.checkpoints.quantised import find_quantised, layer_formats
from headrace.checkpoints.weights import read_weights
from headrace.errors import RequestError
from headrace.quant import linear as quantised_linear
from headrace.quant.apply import quantise
from headrace.quant.decode import decode, part_rows, tiled, untiled
from headrace.quant.encode import encode, tensor_scale
from headrace.quant.formats import GGUF_BLOCKS, Format, Fp8, Gguf, Int8, Mxfp8, Nf4, Nvfp4, format_bytes
from headrace.quant.linear import Fp8Linear, Int8Linear

GOLDEN = Path(__file__).parent / "data" / "formats"
LAYER = "single_blocks.0.linear2"
FORMS: dict[str, Format] = {
    "comfy-float8_e4m3fn": Fp8("tensor"),
    "comfy-float8_e5m2": Fp8("tensor", "F8_E5M2"),
    "bfl-nvfp4": Nvfp4("comfy"),
    "comfy-mxfp8": Mxfp8(),
    "comfy-int8-tensor": Int8("tensor", None),
    "comfy-int8-row": Int8("row", None),
    "comfy-int8-convrot": Int8("row", "regular", 64),
    "bitsandbytes-nf4": Nf4(64),
    "torchao-fp8": Fp8("row"),
}


def component(file: Path) -> Component:
    """The layers of a file, whatever they belong to."""
    weights = read_weights(file)
    stored = {name: entry for name, entry in weights.tensors.items() if name != "expected"}
    quantised = find_quantised(weights, "", stored)
    plain = {name: entry for name, entry in stored.items() if name not in quantised.owned}
    shapes = {name: entry.shape for name, entry in plain.items()}
    plan = as_stored(shapes | {name: matrix.shape for name, matrix in quantised.matrices.items()})
    formats = layer_formats(plan, quantised.matrices)
    return Component(file, weights.files, plain, quantised.matrices, plan, formats, (), quantised.notes)


def loaded(part: Component, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The file's only layer as it is stored, with the name `linear2`."""
    (layer,) = part.formats
    rows, width = part.plan[f"{layer}.weight"].shape
    network = nn.Module()
    network.linear2 = nn.Linear(width, rows, bias=False, device="meta", dtype=dtype)
    quantise(network, {"linear2": part.formats[layer]})
    fill_module(network, part, "cpu", layer.rpartition(".")[0])
    return network.linear2


@pytest.mark.parametrize("name", [*FORMS, "bitsandbytes-nf4-nested"])
def test_decoded_as_by_the_library_that_wrote_it(name: str) -> None:
    file = GOLDEN / f"{name}.safetensors"
    with safe_open(file, "pt") as stored:
        expected = stored.get_tensor("expected")
    part = component(file)
    form = part.formats[LAYER]
    if name in FORMS:
        assert form == FORMS[name]
    else:
        assert isinstance(form, Nf4)
        assert form.nested == 256
    assert (part.plan[f"{LAYER}.weight"].shape, part.notes) == (tuple(expected.shape), ())
    rows = len(expected)
    exact = "convrot" not in name
    with StoredTensors(part) as tensors:
        for first, count in ((0, rows), (0, 1), (1, rows - 2), (rows // 2 + 3, 7), (rows - 1, 1)):
            made = tensors.decoded(f"{LAYER}.weight", first, count)
            torch.testing.assert_close(
                made, expected[first : first + count], rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6
            )
    x = torch.randn(3, 50, expected.shape[1])
    layer = loaded(part)
    held = sum(buffer.nbytes for buffer in layer.buffers())
    assert held == format_bytes(form, tuple(expected.shape), 4) < expected.nbytes / 2
    with torch.inference_mode():
        # Activations of rotated int8 are quantised as well.
        tolerance = 2e-2 if isinstance(layer, Int8Linear) else 1e-5
        close = {"rtol": tolerance, "atol": tolerance * float(expected.abs().max()) * expected.shape[1] ** 0.5}
        torch.testing.assert_close(layer(x), x @ expected.t(), **close)


@pytest.mark.parametrize("name", ["bfl-nvfp4", "comfy-mxfp8", "bitsandbytes-nf4-nested", "comfy-float8_e5m2"])
def test_slabs_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = loaded(component(GOLDEN / f"{name}.safetensors"))
    x = torch.randn(1, 40, layer.in_features)
    with torch.inference_mode():
        whole = layer(x)
        monkeypatch.setattr(quantised_linear, "TILE_ROWS", 1)
        monkeypatch.setattr(quantised_linear, "SLAB_BYTES", 7 * 4 * layer.in_features)
        torch.testing.assert_close(layer(x), whole)


@pytest.mark.parametrize("kind", GGUF_BLOCKS)
def test_blocks_of_ggml(kind: str) -> None:
    """Random bytes, whose halves are now and then infinite or no number, against the reference in numpy."""
    gguf = pytest.importorskip("gguf")
    weights, size = GGUF_BLOCKS[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (512 * 6, 2 * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    made = torch.empty(len(blocks), 2 * weights)
    form = Gguf(kind)
    parts = {"weight": torch.from_numpy(blocks).view(-1)}
    decode(form, parts, made)
    np.testing.assert_array_equal(made.numpy(), expected)
    some = torch.empty(5, 2 * weights)
    decode(form, part_rows(form, parts, 2 * weights, 17, 5), some)
    np.testing.assert_array_equal(some.numpy(), expected[17:22])


@pytest.mark.parametrize("rows", [1, 100, 128, 300])
@pytest.mark.parametrize("blocks", [1, 4, 6])
def test_tiles(rows: int, blocks: int) -> None:
    """Where a scale lies: cuBLAS documentation, "1D block scaling", which counts rows in runs of 32."""
    scales = torch.arange(rows * blocks).view(rows, blocks)
    flat = tiled(scales)
    across = -(-blocks // 4)
    assert len(flat) == -(-rows // 128) * across * 512
    for row in range(0, rows, 29):
        for block in range(blocks):
            tile = (row // 128 * across + block // 4) * 512
            assert flat[tile + row % 32 * 16 + row % 128 // 32 * 4 + block % 4] == scales[row, block]
    assert torch.equal(untiled(flat, rows, blocks), scales)


def test_nvfp4_is_written_as_comfy_kitchen_writes_it() -> None:
    stored = load_file(GOLDEN / "bfl-nvfp4.safetensors")
    rows, width = stored["expected"].shape
    values = 0.05 * torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width))
    values *= torch.logspace(-1, 1, rows)[:, None]
    scale = tensor_scale(Nvfp4(), values.abs().max())
    parts = encode(Nvfp4(), values, scale)
    assert torch.equal(parts["weight_scale_2"], stored[f"{LAYER}.weight_scale_2"].view(1))
    assert torch.equal(parts["weight_scale"].float(), stored[f"{LAYER}.weight_scale"].float().view(-1))
    assert torch.equal(parts["weight"], stored[f"{LAYER}.weight"].view(-1))


def nvfp4_of_modelopt(values: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same codes with the first weight in the low half, and scales row by row; and what they stand for."""
    scale = tensor_scale(Nvfp4(), values.abs().max())
    parts = encode(Nvfp4(), values, scale)
    decoded = torch.empty_like(values)
    decode(Nvfp4(), parts, decoded)
    rows, width = values.shape
    codes = parts["weight"].view(rows, width // 2)
    tensors = {
        "weight": (codes << 4) | (codes >> 4),
        "weight_scale": untiled(parts["weight_scale"].view(torch.uint8), rows, width // 16).view(torch.float8_e4m3fn),
        "weight_scale_2": parts["weight_scale_2"].view(()),
        "input_scale": torch.tensor(1.0),
    }
    return tensors, decoded


def named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{LAYER}.{part}": value for part, value in tensors.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"config.json": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}},
        {"config.json": {"quantization_config": {"quant_method": "bfl"}}},
        {"hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}},
    ],
)
def test_the_two_dialects_of_nvfp4_are_told_apart_by_the_marker(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Their tensors have the same names, shapes and dtypes where rows fill whole tiles."""
    values = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    tensors, expected = nvfp4_of_modelopt(values)
    file = write_tensors(tmp_path / "model.safetensors", named(tensors))
    with pytest.raises(RequestError, match="nothing says how"):
        component(file)
    for name, document in settings.items():
        (tmp_path / name).write_text(json.dumps(document))
    part = component(file)
    assert part.formats == {LAYER: Nvfp4("modelopt")}
    with StoredTensors(part) as stored:
        assert torch.equal(stored.decoded(f"{LAYER}.weight", 3, 200), expected[3:203])
    with torch.inference_mode():
        x = torch.randn(1, 5, 128)
        torch.testing.assert_close(loaded(part)(x), x @ expected.t())
    # A note of ComfyUI's goes before what the folder says.
    note = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    comfy = component(write_tensors(tmp_path / "comfy.safetensors", named({**tensors, "comfy_quant": note})))
    assert comfy.formats == {LAYER: Nvfp4("comfy")}


def test_columns_that_were_smoothed(tmp_path: Path) -> None:
    stored = load_file(GOLDEN / "bfl-nvfp4.safetensors")
    expected, smooth = stored.pop("expected"), torch.linspace(0.5, 2, 80)
    note = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    tensors = {**stored, **named({"pre_quant_scale": smooth.bfloat16(), "comfy_quant": note})}
    part = component(write_tensors(tmp_path / "x.safetensors", tensors))
    with StoredTensors(part) as read:
        made = read.decoded(f"{LAYER}.weight", 0, len(expected))
    assert torch.equal(made, expected * smooth.bfloat16().float())
    x = torch.randn(1, 7, 80)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(part)(x), (x * smooth.bfloat16().float()) @ expected.t())


def test_older_spellings_and_casts(tmp_path: Path) -> None:
    """A cast is read as what it is, and said to be one."""
    codes = torch.randn(32, 16).to(torch.float8_e5m2)
    part = component(write_tensors(tmp_path / "cast.safetensors", named({"weight": codes})))
    assert part.formats == {LAYER: Fp8("tensor", "F8_E5M2")}
    assert len(part.notes) == 1
    assert "without a scale" in part.notes[0]
    with StoredTensors(part) as stored:
        assert torch.equal(stored.decoded(f"{LAYER}.weight", 0, 32), codes.float())
    assert isinstance(loaded(component(GOLDEN / "comfy-float8_e4m3fn.safetensors")), Fp8Linear)


def note(**said: object) -> Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


CODES = torch.zeros(32, 64, dtype=torch.uint8)
BAD_NF4 = {"weight.quant_map": torch.zeros(16), "weight.absmax": torch.zeros(32)}
STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"weight": CODES}, "nothing says how"),
        ({"weight": CODES.view(torch.int8), "weight_scale": torch.ones(32)}, "nothing says how"),
        ({"weight": CODES, "weight_scale": torch.zeros(32, 8).to(torch.float8_e4m3fn)}, "nothing says how"),
        ({"weight": CODES, "comfy_quant": note(format="convrot_w4a4")}, "'convrot_w4a4', which is not read"),
        ({"weight": CODES, "comfy_quant": note(format=3)}, "which is not read"),
        ({"weight": CODES, "comfy_quant": note(format="float8_e4m3fn")}, "calls .* float8_e4m3fn but stores U8"),
        ({"weight": torch.zeros(32, 64), "comfy_quant": note(format="nvfp4")}, "but stores F32"),
        ({"weight": CODES, "comfy_quant": note(format="nvfp4")}, "no weight_scale"),
        ({"weight": CODES, "comfy_quant": torch.zeros(5, dtype=torch.uint8)}, "is not JSON"),
        ({"weight": CODES, "comfy_quant": torch.tensor(list(b"[1]"), dtype=torch.uint8)}, "not a JSON object"),
        ({"weight": CODES, "comfy_quant": torch.zeros(2**17, dtype=torch.uint8)}, "not text"),
        ({"weight": CODES, "comfy_quant": torch.zeros(5)}, "not text"),
        (
            {
                "weight": CODES.view(torch.int8),
                "weight_scale": torch.ones(32),
                "comfy_quant": note(format="int8_tensorwise", convrot=True, convrot_groupsize=32),
            },
            "rotation that is not known",
        ),
        (
            {
                "weight": CODES.view(torch.int8),
                "weight_scale": torch.ones(32),
                "comfy_quant": note(format="int8_hadamard", rotation=128),
            },
            "rotation that is not known",
        ),
        ({"weight": CODES.view(torch.float8_e4m3fn), "weight_scale": torch.ones(4, 2)}, "does not fit"),
        ({"weight": CODES.view(torch.float8_e4m3fn), "weight_scale": CODES[0, 0].clone()}, "does not fit"),
        ({"weight": CODES[0].view(torch.float8_e4m3fn), "weight_scale": torch.ones(())}, "not the weight of a linear"),
        ({"weight": CODES.view(torch.float8_e4m3fn), "pre_quant_scale": torch.ones(64)}, "smooths"),
        ({"_weight_qdata": CODES.view(torch.int8), "_weight_scale": torch.ones(32)}, "torchao's None"),
        ({**BAD_NF4, "weight": CODES.view(-1, 1), "weight.quant_state.bitsandbytes__fp4": CODES.clone()}, "not nf4"),
        ({**BAD_NF4, "weight": CODES.view(-1, 1), STATE: note(shape=[32, 128])}, "the state of"),
        ({**BAD_NF4, "weight": CODES.view(-1, 1), STATE: note(shape=[32], blocksize=64)}, "the state of"),
        ({**BAD_NF4, "weight": CODES.view(-1, 1), STATE: note(shape=[32, 2**40], blocksize=64)}, "the state of"),
        ({**BAD_NF4, "weight": CODES.view(-1, 1), STATE: note(shape=[32, 96], blocksize=64)}, "does not fit"),
        ({**BAD_NF4, "weight": CODES.view(-1, 1), STATE: note(shape=[32, 128], blocksize=32)}, "does not fit"),
        ({"weight": CODES.view(-1, 1), STATE: note(shape=[32, 128], blocksize=64)}, "no weight.absmax"),
    ],
)
def test_refused(tmp_path: Path, tensors: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        component(write_tensors(tmp_path / "x.safetensors", named(tensors)))
    assert str(caught.value).count("\n") == 0
    assert LAYER in str(caught.value) or "note of how" in str(caught.value)
