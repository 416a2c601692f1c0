"""The networks one by one: beside the published references, and where their arguments promise something."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from headrace.doctor.cases import run_cases
from headrace.errors import RequestError
from headrace.flow.latents import picture_positions, text_positions
from headrace.nn.attention import attention
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig
from headrace.nn.language_model import KeyValueCache, LanguageModel
from headrace.nn.transformer import Transformer

CASES = Path(__file__).parent / "data" / "bfl"
CONFORMANCE = Path(__file__).parents[2] / "shared" / "conformance"
INPUTS = {"ae_image", "noise", "context", "velocity_t"}


@pytest.mark.parametrize("case", ["text-to-image", "three-references"])
def test_every_tensor_of_the_reference_code_is_reproduced(case: str) -> None:
    results = list(run_cases(CASES / case))
    computed = {result.tensor for result in results}
    given = {name for name in load_file(CASES / case / "case.safetensors") if not name.startswith("ref_image_")}
    assert computed == given - INPUTS
    assert all(result.passed for result in results), results


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the reference pipelines are not part of the repository")
def test_every_picture_of_the_reference_pipelines_is_reproduced() -> None:
    results = list(run_cases(CONFORMANCE / "diffusers"))
    assert len(results) >= 6
    assert all(result.passed for result in results), results


def test_a_wrong_weight_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(CASES / "text-to-image", tmp_path / "case")
    config = json.loads((tmp_path / "case" / "config.json").read_text())
    (tmp_path / "case" / "config.json").write_text(json.dumps(config | {"seed": config["seed"] + 1}))
    failed = {result.tensor for result in run_cases(tmp_path) if not result.passed}
    assert failed == {"ae_latent", "ae_decoded", "velocity", "final_latent", "final_image"}


def test_a_tensor_of_the_wrong_shape_or_not_a_number_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(CASES / "text-to-image", tmp_path / "case")
    tensors = load_file(tmp_path / "case" / "case.safetensors")
    tensors["velocity"] = tensors["velocity"][:, :-1].contiguous()
    tensors["final_image"] = tensors["final_image"] * torch.nan
    save_file(tensors, tmp_path / "case" / "case.safetensors")
    assert {result.tensor for result in run_cases(tmp_path) if not result.passed} == {"velocity", "final_image"}


@pytest.mark.parametrize("missing", ["velocity_t", "ae_image"])
def test_a_case_without_its_inputs_is_refused(missing: str, tmp_path: Path) -> None:
    shutil.copytree(CASES / "text-to-image", tmp_path / "case")
    tensors = load_file(tmp_path / "case" / "case.safetensors")
    del tensors[missing]
    save_file(tensors, tmp_path / "case" / "case.safetensors")
    with pytest.raises(RequestError, match=missing):
        list(run_cases(tmp_path))


@pytest.mark.parametrize("content", [None, "{", '{"transformer": 3}'])
def test_a_folder_without_usable_cases_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        shutil.copy(CASES / "text-to-image" / "case.safetensors", tmp_path)
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RequestError):
        list(run_cases(tmp_path))


def language_models(family: str, window: int | None = None) -> tuple[Any, LanguageModel]:
    """The same random language model in transformers and here."""
    torch.manual_seed(len(family))
    qwen = family == "qwen"
    sizes: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": qwen,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6 if qwen else 1e9},
    }
    theirs = (
        Qwen3ForCausalLM(Qwen3Config(**sizes))
        if qwen
        else MistralForCausalLM(MistralConfig(**sizes, sliding_window=window))
    ).eval()
    for parameter in theirs.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    eps = theirs.config.rms_norm_eps
    config = LanguageModelConfig(90, 48, 80, 4, 4, 2, 16, 1e6 if qwen else 1e9, eps, qwen, window, qwen)
    ours = LanguageModel(config, norm=True, head=True)
    weights = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    if qwen:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights)
    return theirs, ours


@pytest.mark.parametrize(("family", "window"), [("qwen", None), ("mistral", None), ("mistral", 5)])
@torch.no_grad()
def test_hidden_states_are_those_of_transformers(family: str, window: int | None) -> None:
    theirs, ours = language_models(family, window)
    ids = torch.randint(0, 90, (2, 14))
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    mask[1, :4] = 0
    states = theirs(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = torch.cat([states[index] for index in (0, 2, 4)], dim=-1)
    torch.testing.assert_close(ours.hidden_states(ids, mask, (0, 2, 4)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "window"), [("qwen", None), ("mistral", None), ("mistral", 5)])
@torch.no_grad()
def test_logits_are_those_of_transformers_at_once_and_token_by_token(family: str, window: int | None) -> None:
    theirs, ours = language_models(family, window)
    ids = torch.randint(0, 90, (1, 12))
    expected = theirs(ids).logits
    torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=1e-5)
    cache = KeyValueCache(12)
    parts = [ours(ids[:, :5], cache=cache), *(ours(ids[:, i : i + 1], cache=cache) for i in range(5, 12))]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5)
    assert cache.length == 12


def small_transformer() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        in_channels=8,
        context_in_dim=24,
        hidden_size=32,
        num_heads=2,
        depth=2,
        depth_single_blocks=2,
        axes_dim=(4, 4, 4, 4),
        guidance_embed=False,
    )
    return Transformer(config).requires_grad_(False)


def inputs() -> dict[str, torch.Tensor]:
    return {
        "img": torch.randn(1, 6, 8),
        "img_ids": picture_positions(2, 3),
        "timestep": torch.tensor([0.7]),
        "context": torch.randn(1, 5, 24),
        "txt_ids": text_positions(5),
    }


def test_blocks_are_an_argument() -> None:
    network, given = small_transformer(), inputs()
    ran: list[int] = []

    def lent() -> Any:
        for index, block in enumerate(network.blocks()):
            ran.append(index)
            yield block

    assert torch.equal(network(**given, blocks=lent()), network(**given))
    assert ran == [0, 1, 2, 3]
    assert not torch.equal(network(**given, blocks=list(network.blocks())[:3]), network(**given))


def test_the_reference_cache_is_computed_from_references_alone_and_changes_the_velocity() -> None:
    network, given = small_transformer(), inputs()
    references, ids = torch.randn(1, 4, 8), picture_positions(2, 2, time=10)
    cache = network.reference_cache(references, ids)
    assert [part.key.shape for part in cache] == [(1, 2, 4, 16)] * 4
    assert not torch.equal(network(**given, reference_cache=cache), network(**given))


def test_embedded_guidance_may_be_left_out() -> None:
    config = TransformerConfig(8, 24, 32, 2, 1, 1, (4, 4, 4, 4), guidance_embed=True)
    network, given = Transformer(config).eval(), inputs()
    alone = network(**given)
    assert not torch.equal(alone, network(**given, guidance=torch.tensor([4.0])))
    torch.nn.init.zeros_(network.guidance_in.out_layer.weight)
    assert torch.equal(alone, network(**given, guidance=torch.tensor([4.0])))


def test_the_autoencoder_works_with_any_number_of_levels_and_a_narrower_decoder() -> None:
    network = Autoencoder(AutoencoderConfig((8, 8, 16), (4, 4, 8), 1, 4, 2)).eval()
    latent = network.encode(torch.rand(1, 3, 32, 48) * 2 - 1)
    assert latent.shape == (1, 16, 4, 6)
    assert network.decode(latent).shape == (1, 3, 32, 48)


@pytest.mark.parametrize(("queries", "keys"), [(1, 512), (512, 512), (700, 1030)])
def test_attention_by_rows_is_attention(queries: int, keys: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, queries, 32), torch.randn(2, 3, keys, 32), torch.randn(2, 3, keys, 32)
    exact = attention(query, key, value)
    with torch.inference_mode():
        rounded = attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
        alone = attention(query[1:].bfloat16(), key[1:].bfloat16(), value[1:].bfloat16())
    assert (rounded.float() - exact).square().mean().sqrt() < 0.008 * exact.square().mean().sqrt()
    assert torch.equal(rounded[1:], alone)


MEASURE_DECODING = """
import torch
from headrace.memory.process import peak_bytes
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig

network = Autoencoder(AutoencoderConfig((8, 8, 8, 8), None, 1, 32, 2))
with torch.inference_mode():
    network.decode(torch.randn(1, 128, 8, 8))
    before = peak_bytes()
    network.decode(torch.randn(1, 128, 64, 64))
    print(peak_bytes() - before)
"""


def test_decoding_does_not_hold_the_attention_of_all_positions_with_all_others() -> None:
    grown = int(subprocess.run([sys.executable, "-c", MEASURE_DECODING], check=True, capture_output=True).stdout)
    assert grown < 128**4 * 4 / 2, "half of the scores of 128 x 128 positions in float32"
