"""What `headrace plan` says before a run: amounts of memory, bytes of networks and of results, budgets, the command."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from allocations import Allocations
from conftest import Run
from headrace.catalog import KLEIN_4B_TRANSFORMER, PUBLISHED, QWEN3_4B, TEXT_ENCODERS
from headrace.checkpoints.convert import convert
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.errors import RequestError
from headrace.flow.latents import text_positions
from headrace.memory.activations import (
    text_activations,
    transformer_activations,
    vision_activations,
    writing_activations,
)
from headrace.memory.budget import check_fits
from headrace.memory.plan import (
    PRECISIONS,
    Budget,
    Model,
    Plan,
    Work,
    describe,
    plan_work,
    residence_order,
    step_operations,
)
from headrace.memory.sizes import FACTORS, network_sizes, parse_bytes
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig, VisionConfig
from headrace.nn.language_model import LanguageModel
from headrace.nn.transformer import KeyValue, Transformer
from headrace.nn.vision import Vision
from headrace.quant.apply import quantise
from headrace.quant.formats import block_linears, choose_formats
from headrace.text.writing import Sampling, write_tokens

KEYS = {
    "components",
    "resident_bytes",
    "streamed_bytes",
    "activation_bytes",
    "peak_bytes",
    "minimum_bytes",
    "fits",
    "bound",
    "seconds_per_step",
}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GB", 12 * 10**9),
        ("12GiB", 12 * 2**30),
        ("123456B", 123456),
        ("1.5 gb", 1_500_000_000),
        ("0.5KiB", 512),
        (" 6MB ", 6_000_000),
    ],
)
def test_amounts_of_memory(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.integers(1, 2**53))
def test_a_whole_number_of_bytes_is_itself(count: int) -> None:
    assert parse_bytes(f"{count}B") == parse_bytes(count) == count


@given(st.integers(1, 4000), st.integers(0, 999), st.sampled_from(sorted(FACTORS)))
def test_a_unit_multiplies_exactly(whole: int, thousandths: int, unit: str) -> None:
    assert parse_bytes(f"{whole}.{thousandths:03}{unit}") == (whole * 1000 + thousandths) * FACTORS[unit] // 1000


@given(st.text(max_size=30))
def test_any_other_text_is_refused_or_an_amount(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert 0 < parse_bytes(text) <= 2**53


@pytest.mark.parametrize(
    "text", ["", "GB", "12", "12 G B", "-1GB", "1e9B", "0GB", "٣GB", "9" * 21 + "B", "99999TiB", "nanGB"]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_bytes(text)


def bytes_of(network: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sizes_are_those_of_the_networks(precision: str) -> None:
    value_bytes, bits = PRECISIONS[precision]
    dtype = torch.float32 if value_bytes == 4 else torch.bfloat16
    published = next(entry for entry in PUBLISHED if entry.name == "klein-4b")
    config, layers = published.text_encoder.config, max(published.text_encoder.settings.layers)
    networks: list[tuple[Mapping[str, tuple[int, ...]], Callable[[], torch.nn.Module]]] = [
        (transformer_shapes(published.transformer), lambda: Transformer(published.transformer)),
        (language_model_shapes(config, layers=layers), lambda: LanguageModel(config, layers=layers)),
    ]
    for shapes, make in networks:
        formats = choose_formats(bits, block_linears(shapes), {})
        with torch.device("meta"):
            network = make().to(dtype)
        quantise(network, formats)
        assert network_sizes(shapes, formats, value_bytes).total == bytes_of(network)
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig()).to(dtype)
    counted = network_sizes(autoencoder_shapes(AutoencoderConfig()), {}, value_bytes).total
    assert abs(counted - bytes_of(autoencoder)) < 8  # the count of batches is a whole number of eight bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("depth", "single_depth"), [(1, 2), (2, 0), (0, 2)])
@pytest.mark.parametrize(
    ("batch", "picture", "text", "references", "cached"),
    [
        (1, 256, 64, 0, 0),
        (1, 1024, 128, 0, 0),
        (2, 256, 512, 0, 0),
        (1, 256, 64, 256, 0),
        (1, 256, 64, 0, 512),
        (2, 512, 512, 0, 512),
    ],
)
def test_the_transformer_allocates_what_is_foreseen(
    dtype: torch.dtype,
    depth: int,
    single_depth: int,
    batch: int,
    picture: int,
    text: int,
    references: int,
    cached: int,
) -> None:
    config = replace(
        KLEIN_4B_TRANSFORMER,
        depth=depth,
        depth_single_blocks=single_depth,
        hidden_size=256,
        num_heads=2,
        context_in_dim=384,
    )
    given: dict[str, Any] = {}
    if references:
        given = {
            "references": torch.randn(batch, references, 128, dtype=dtype),
            "reference_ids": torch.zeros(references, 4),
        }
    if cached:
        key_value = KeyValue(*torch.randn(2, 1, 2, cached, 128, dtype=dtype))
        given = {"reference_cache": [key_value] * (depth + single_depth)}
    network = Transformer(config).to(dtype)
    img, context = torch.randn(batch, picture, 128, dtype=dtype), torch.randn(batch, text, 384, dtype=dtype)
    with torch.inference_mode(), Allocations() as allocations:
        network(img, torch.zeros(picture, 4), torch.tensor([0.5]), context, text_positions(text), **given)
    foreseen = transformer_activations(config, batch, text, picture + references, dtype.itemsize, cached)
    assert allocations.peak == pytest.approx(foreseen, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder", TEXT_ENCODERS, ids=lambda encoder: encoder.name)
def test_the_language_model_allocates_what_is_foreseen(dtype: torch.dtype, encoder: Any) -> None:
    config = replace(
        encoder.config,
        hidden_size=encoder.config.hidden_size // 8,
        intermediate_size=encoder.config.intermediate_size // 8,
        num_heads=encoder.config.num_heads // 8,
        num_kv_heads=1,
        vocab_size=100,
        num_layers=3,
    )
    network = LanguageModel(config, norm=True).to(dtype)
    ids = torch.zeros(1, 256, dtype=torch.long)
    with torch.inference_mode(), Allocations() as allocations:
        network.hidden_states(ids, torch.ones_like(ids), (1, 2, 3))
    assert allocations.peak <= 1.01 * text_activations(config, 256, 3, dtype.itemsize) <= 1.2 * allocations.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [64, 512])
def test_writing_allocates_what_is_foreseen(dtype: torch.dtype, tokens: int) -> None:
    config = replace(
        QWEN3_4B.config,
        hidden_size=320,
        intermediate_size=1216,
        num_heads=4,
        num_kv_heads=1,
        vocab_size=4096,
        num_layers=3,
    )
    network = LanguageModel(config, norm=True, head=True).to(dtype)
    sampling = Sampling(0.7, 4, frozenset(), 0.9)
    with torch.inference_mode(), Allocations() as allocations:
        list(write_tokens(network, [0] * tokens, sampling, torch.device("cpu")))
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * (tokens + 4) * dtype.itemsize
    foreseen = cache + writing_activations(config, tokens, 4, dtype.itemsize)
    assert allocations.peak <= 1.01 * foreseen <= 1.5 * allocations.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(56, 84), (336, 280)])
def test_looking_allocates_what_is_foreseen(dtype: torch.dtype, size: tuple[int, int]) -> None:
    config = VisionConfig(text_size=640, hidden_size=128, intermediate_size=512, num_heads=2, num_layers=2)
    network = Vision(config).to(dtype)
    picture = torch.randn(3, size[1], size[0], dtype=dtype)
    with torch.inference_mode(), Allocations() as allocations:
        network(picture)
    foreseen = vision_activations(config, *size, dtype.itemsize)
    assert allocations.peak <= 1.01 * foreseen <= 1.5 * allocations.peak


MODELS = {published.name: describe(published.name) for published in PUBLISHED}
WORK = st.builds(
    Work,
    width=st.sampled_from([256, 1024, 2048]),
    height=st.sampled_from([256, 1024]),
    references=st.integers(0, 3).map(lambda count: ((1024, 1024),) * count),
    batch=st.integers(1, 3),
    guided=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MODELS)),
    WORK,
    st.sampled_from(sorted(PRECISIONS)),
    st.integers(10**9, 10**11),
    st.sampled_from([None, 10**10, 10**11]),
)
def test_a_plan_keeps_its_word(name: str, work: Work, precision: str, memory: int, host: int | None) -> None:
    def planned(memory: int) -> Plan:
        return plan_work(MODELS[name], [work], Budget(memory, 300_000_000, host), precision)

    plan = planned(memory)
    assert plan.fits == (plan.minimum_bytes <= memory) == (plan.peak_bytes <= memory)
    assert plan.resident_bytes + plan.streamed_bytes == sum(part.bytes for part in plan.components.values())
    least, less = planned(plan.minimum_bytes), planned(plan.minimum_bytes - 1)
    assert least.fits
    assert least.peak_bytes == plan.minimum_bytes
    assert not less.fits
    assert planned(2 * memory).streamed_bytes <= plan.streamed_bytes
    assert planned(2 * memory).seconds_per_step <= plan.seconds_per_step
    assert plan.host_bytes <= (host or 0)
    assert not set(plan.pinned_blocks) & set(plan.resident_blocks)
    if plan.keeps_all:
        assert plan.streamed_bytes == plan.host_bytes == 0


def test_more_of_the_hosts_memory_keeps_more_and_too_little_is_refused() -> None:
    def planned(host: int) -> Plan:
        return plan_work(MODELS["dev"], [Work(1024, 1024)], Budget(12 * 10**9, 6 * 10**8, host), "fp8")

    plans = [planned(host * 10**9) for host in (4, 16, 64)]
    assert [plan.bound for plan in plans] == ["disk", "disk", "arithmetic"]
    assert len(plans[0].pinned_blocks) < len(plans[1].pinned_blocks) < len(plans[2].pinned_blocks)
    assert len(plans[2].pinned_blocks) + len(plans[2].resident_blocks) == 8 + 48
    assert len({plan.peak_bytes for plan in plans}) == 1
    little = planned(10**9)
    assert not little.fits
    with pytest.raises(RequestError, match=r"needs \d+MB of it: give more with --host-memory"):
        check_fits(little)
    assert planned(little.host_bytes).fits


def test_conversion_in_every_step_is_foreseen() -> None:
    def planned(model: Model, memory: int, precision: str) -> Plan:
        return plan_work(model, [Work(256, 256)], Budget(memory, 3 * 10**8), precision)

    published = MODELS["klein-4b"]
    in_bf16 = replace(published, formats={"transformer": {}, "text_encoder": {}})
    as_stored, converted = (planned(model, 3 * 10**9, "int8") for model in (published, in_bf16))
    assert (as_stored.recoded_bytes, as_stored.peak_bytes) == (0, converted.peak_bytes)
    streamed = converted.components["transformer"].streamed_bytes
    assert (converted.recoded_bytes, converted.bound) == (streamed, "conversion")
    assert converted.seconds_per_step > as_stored.seconds_per_step + streamed / 0.15e9
    assert planned(in_bf16, 3 * 10**9, "bf16").recoded_bytes == 0
    assert planned(in_bf16, 10**11, "int8").recoded_bytes == 0


@given(st.integers(0, 8), st.integers(0, 50))
def test_double_blocks_stay_first_and_single_ones_far_apart(doubles: int, singles: int) -> None:
    order = residence_order([1] * (doubles + singles), doubles)
    assert sorted(order) == list(range(doubles + singles))
    assert order[:doubles] == tuple(range(doubles))


def test_operations_of_the_largest_model_are_the_known_ones() -> None:
    # 282 T at 1 MP: counted by hand from the published shapes.
    assert step_operations(describe("dev"), Work(1024, 1024)) == pytest.approx(282e12, rel=0.01)


def test_a_plan_of_a_folder_is_made_from_its_files(tiny_model: Callable[[str], Path]) -> None:
    plan = headrace.plan(tiny_model("klein"), memory="4GB", size="64x64", references=1)
    checkpoint = headrace.load(tiny_model("klein"), device="cpu").checkpoint
    stored = sum(entry.size for entry in checkpoint.transformer.tensors.values())
    assert plan.precision == checkpoint.precision
    assert plan.components["transformer"].bytes == stored
    assert plan.fits


@pytest.mark.parametrize(
    ("precision", "text_precision"), [("auto", None), ("fp8", None), ("fp32", "auto"), ("auto", "int8")]
)
def test_every_network_is_planned_in_the_precision_it_is_run_in(
    tiny_model: Callable[[str], Path], tmp_path: Path, precision: str, text_precision: str | None
) -> None:
    """Of a model whose transformer alone is stored in eight bits, as published files often are."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("klein"), folder)
    shutil.rmtree(folder / "transformer")
    convert(tiny_model("klein") / "transformer", folder / "transformer", "fp8", "diffusers")
    pipe = headrace.load(folder, device="cpu", precision=precision, text_precision=text_precision)
    pipe.generate("a", size="64x64", steps=1)
    plan = headrace.plan(folder, memory="100GB", size="64x64", precision=precision, text_precision=text_precision)
    assert (plan.precision, plan.text_precision) == (pipe.precision, pipe.text_precision)
    assert pipe.held_bytes == pytest.approx(plan.resident_bytes, abs=16)


def test_a_transformer_that_comes_alone_is_planned_with_what_it_is_given(
    tiny_model: Callable[[str], Path], headrace: Run
) -> None:
    folder = tiny_model("klein")
    arguments = "plan", folder / "transformer", "--memory", "4GB", "--size", "64x64", "--json", "--precision", "auto"
    alone = headrace(*arguments)
    assert (alone.returncode, alone.stderr.count("--autoencoder")) == (2, 1)
    parts = "--autoencoder", folder, "--text-encoder", folder, "--variant", "distilled"
    planned, whole = json.loads(headrace(*arguments, *parts).stdout), headrace("plan", folder, *arguments[2:]).stdout
    assert {**planned, "model": None} == {**json.loads(whole), "model": None}


def test_the_command_prints_json(headrace: Run) -> None:
    result = json.loads(
        headrace("plan", "dev", "--memory", "12GB", "--size", "1024x1024", "--refs", "2", "--json").stdout
    )
    assert set(result) >= KEYS
    assert set(result["precisions"]) == set(PRECISIONS) - {"stored"}
    for row in result["precisions"].values():
        assert row["resident_bytes"] + row["streamed_bytes"] == sum(
            part["bytes"] for part in row["components"].values()
        )
    one = json.loads(headrace("plan", "dev", "--precision", "fp8", "--json").stdout)
    assert one["precision"] == "fp8"
    assert "precisions" not in one


def test_the_command_prints_a_row_for_every_precision(headrace: Run) -> None:
    out = headrace("plan", "klein-4b", "--memory", "6GB").stdout
    for precision in set(PRECISIONS) - {"stored"}:
        assert sum(line.split()[:1] == [precision] for line in out.splitlines()) == 2
    assert "7.75 GB" in out
    assert "constants, not measured here" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["klein-4b", "--memory", "12"],
        ["klein-4b", "--size", "100x100"],
        ["klein-4b", "--precision", "fp4"],
        ["klein-4b", "--text-precision", "fp4"],
        ["klein-4b", "--refs", "-1"],
        ["klein-4b", "--refs", "11"],
        ["no-such-model"],
    ],
)
def test_what_cannot_be_planned_is_refused(headrace: Run, arguments: list[str]) -> None:
    result = headrace("plan", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
