"""What can be opened, what it is opened as, and the one sentence for everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoint_files import (
    AUTOENCODER,
    CONFORMANCE,
    LANGUAGE_MODEL,
    TRANSFORMER,
    autoencoder_tensors,
    drawn,
    language_model_tensors,
    transformer_tensors,
    write_json,
    write_pipeline,
    write_tensors,
    write_text_encoder,
)
from headrace.catalog import MISTRAL, QWEN
from headrace.checkpoints import inspect, load_autoencoder, load_language_model, load_transformer, open_checkpoint
from headrace.checkpoints.open import find_source
from headrace.checkpoints.shapes import autoencoder_shapes, transformer_shapes
from headrace.errors import RequestError
from headrace.nn.config import TransformerConfig

DISTILLED = {"is_distilled": True}


def refusal(model: str | Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        open_checkpoint(model, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "tiny", **DISTILLED)


@pytest.fixture
def single(tmp_path: Path) -> dict[str, Path]:
    """A transformer, an autoencoder and a text encoder, each for itself."""
    return {
        "model": write_tensors(tmp_path / "some.safetensors", transformer_tensors()),
        "autoencoder": write_tensors(tmp_path / "ae.safetensors", autoencoder_tensors()),
        "text_encoder": write_text_encoder(tmp_path / "qwen"),
    }


def test_a_folder_of_diffusers(pipeline: Path) -> None:
    checkpoint = open_checkpoint(pipeline)
    assert checkpoint.name == "tiny"
    assert checkpoint.variant == "klein"
    assert (checkpoint.steps, checkpoint.guidance) == (4, 1.0)
    assert checkpoint.transformer_config == TRANSFORMER
    assert checkpoint.autoencoder_config == AUTOENCODER
    assert checkpoint.language_model_config == LANGUAGE_MODEL
    assert checkpoint.text == QWEN
    assert checkpoint.precision == "fp32"
    assert checkpoint.default_size == (1024, 1024)
    assert checkpoint.reference_limit == 10
    assert checkpoint.notes == ()


def test_every_tensor_arrives_where_it_belongs(pipeline: Path) -> None:
    checkpoint = open_checkpoint(pipeline)
    transformer = load_transformer(checkpoint, torch.float32, "cpu").state_dict()
    assert_same(transformer, transformer_tensors())
    assert_same(load_autoencoder(checkpoint, torch.float32, "cpu").state_dict(), autoencoder_tensors())
    language_model = load_language_model(checkpoint, torch.bfloat16, "cpu")
    stored = language_model_tensors(prefix="")
    assert_same(language_model.state_dict(), {name: stored[name].bfloat16() for name in language_model.state_dict()})
    assert len(language_model.layers) == 27
    assert not any(parameter.requires_grad for parameter in language_model.parameters())
    assert not language_model.training


def assert_same(loaded: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(loaded) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "index", "option", "variant"),
    [
        ("Flux2Pipeline", {}, None, "dev"),
        ("Flux2KleinPipeline", {"is_distilled": True}, None, "klein"),
        ("Flux2KleinPipeline", {"is_distilled": False}, None, "klein-base"),
        ("Flux2KleinPipeline", {"is_distilled": True}, "kv", "klein-kv"),
        ("Flux2KleinPipeline", {}, "base", "klein-base"),
        ("Flux2KleinPipeline", {"is_distilled": None}, "base", "klein-base"),
        ("Flux2KleinKVPipeline", {"is_distilled": True}, None, "klein-kv"),
        ("Flux2KleinKVPipeline", {}, None, "klein-kv"),
    ],
)
def test_the_variant_comes_from_the_index(
    tmp_path: Path, kind: str, index: dict[str, bool], option: str | None, variant: str
) -> None:
    checkpoint = open_checkpoint(write_pipeline(tmp_path, kind, **index), variant=option)
    assert checkpoint.variant == variant
    assert (checkpoint.steps, checkpoint.guidance) == ((50, 4.0) if variant in ("dev", "klein-base") else (4, 1.0))


def test_the_variant_is_asked_for_where_nothing_tells(tmp_path: Path, single: dict[str, Path]) -> None:
    assert "--variant" in refusal(write_pipeline(tmp_path / "untold"))
    assert "--variant" in refusal(write_pipeline(tmp_path / "null", is_distilled=None))
    assert "--variant (base, distilled or kv)" in refusal(**single)
    assert "no variants" in refusal(write_pipeline(tmp_path / "dev", "Flux2Pipeline"), variant="base")
    assert "not known" in refusal(tmp_path, variant="turbo")
    assert "not a FLUX.2 pipeline" in refusal(write_pipeline(tmp_path / "other", "FluxPipeline"))


@pytest.mark.parametrize(
    ("file", "option", "variant"),
    [
        ("flux-2-klein-4b.safetensors", None, "klein"),
        ("flux-2-klein-base-9b.safetensors", None, "klein-base"),
        ("flux-2-klein-base-4b-fp8.safetensors", None, "klein-base"),
        ("FLUX-2-klein-9b-kv-nvfp4.safetensors", None, "klein-kv"),
        ("FLUX-2-klein-9b-kv.safetensors", None, "klein-kv"),
        ("mine.safetensors", "distilled", "klein"),
        ("flux-2-klein-4b.safetensors", "base", "klein-base"),
    ],
)
def test_a_single_file(single: dict[str, Path], file: str, option: str | None, variant: str) -> None:
    path = single["model"].rename(single["model"].parent / file)
    checkpoint = open_checkpoint(**single | {"model": path}, variant=option)
    assert checkpoint.variant == variant
    assert checkpoint.transformer_config == TRANSFORMER
    assert checkpoint.autoencoder_config == AUTOENCODER
    assert_same(load_transformer(checkpoint, torch.float32, "cpu").state_dict(), transformer_tensors())
    assert_same(load_autoencoder(checkpoint, torch.float32, "cpu").state_dict(), autoencoder_tensors())


def test_embedded_guidance_means_dev(single: dict[str, Path]) -> None:
    shapes = transformer_shapes(TRANSFORMER) | {
        "guidance_in.in_layer.weight": (64, 256),
        "guidance_in.out_layer.weight": (64, 64),
    }
    write_tensors(single["model"], drawn(shapes))
    checkpoint = open_checkpoint(**single)
    assert checkpoint.variant == "dev"
    assert checkpoint.transformer_config.guidance_embed
    assert "no variants" in refusal(**single, variant="base")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_prefixes_of_transformers(single: dict[str, Path], prefix: str) -> None:
    tensors = {prefix + name: tensor for name, tensor in transformer_tensors().items()}
    write_tensors(single["model"], tensors)
    loaded = load_transformer(open_checkpoint(**single, variant="base"), torch.float32, "cpu")
    assert_same(loaded.state_dict(), transformer_tensors())


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("outer", [False, True])
def test_prefixes_of_autoencoders(single: dict[str, Path], prefix: str, outer: bool) -> None:
    tensors = {
        prefix + (name.replace("encoder.quant", "quant").replace("decoder.post", "post") if outer else name): tensor
        for name, tensor in autoencoder_tensors().items()
    }
    write_tensors(single["autoencoder"], tensors)
    loaded = load_autoencoder(open_checkpoint(**single, variant="base"), torch.float32, "cpu")
    assert_same(loaded.state_dict(), autoencoder_tensors())


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", "lm_head.weight"),
        ("model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "model.vision_tower.ln_pre.weight"),
        ("text_encoders.qwen3_4b.transformer.model.", "multi_modal_projector.norm.weight"),
    ],
)
def test_prefixes_of_text_encoders(single: dict[str, Path], prefix: str, beside: str) -> None:
    tensors = language_model_tensors(prefix=prefix) | {beside: torch.zeros(3)}
    write_tensors(single["text_encoder"] / "model.safetensors", tensors)
    checkpoint = open_checkpoint(**single, variant="base")
    assert checkpoint.notes == ()
    loaded = load_language_model(checkpoint, torch.float32, "cpu").state_dict()
    assert_same(loaded, {name: tensor for name, tensor in language_model_tensors(prefix="").items() if name in loaded})


def test_the_other_spelling_of_scales(single: dict[str, Path]) -> None:
    tensors = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in transformer_tensors().items()}
    write_tensors(single["model"], tensors)
    loaded = load_transformer(open_checkpoint(**single, variant="base"), torch.float32, "cpu")
    assert_same(loaded.state_dict(), transformer_tensors())


def test_everything_in_one_file(single: dict[str, Path]) -> None:
    tensors = {"model.diffusion_model." + name: tensor for name, tensor in transformer_tensors().items()}
    tensors |= {"vae." + name: tensor for name, tensor in autoencoder_tensors().items()}
    tensors |= language_model_tensors(prefix="text_encoders.qwen3_4b.transformer.model.")
    tensors |= {"ema.decay": torch.zeros(1)}
    write_tensors(single["model"], tensors)
    checkpoint = open_checkpoint(single["model"], variant="base", text_encoder=single["text_encoder"])
    assert_same(load_autoencoder(checkpoint, torch.float32, "cpu").state_dict(), autoencoder_tensors())
    assert len(checkpoint.notes) == 1
    assert "1 tensor (ema.decay) of no network" in checkpoint.notes[0]


def test_parts_of_a_pipeline_as_files(pipeline: Path, single: dict[str, Path]) -> None:
    file = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    for model in (file, file.parent):
        checkpoint = open_checkpoint(
            model, variant="distilled", autoencoder=pipeline / "vae", text_encoder=pipeline / "text_encoder"
        )
        assert checkpoint.transformer_config == TRANSFORMER
        assert checkpoint.tokenizer_file == pipeline / "tokenizer" / "tokenizer.json"
        assert_same(load_transformer(checkpoint, torch.float32, "cpu").state_dict(), transformer_tensors())
    whole = open_checkpoint(single["model"], variant="base", autoencoder=pipeline, text_encoder=pipeline)
    assert whole.autoencoder.source == pipeline / "vae"
    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    assert open_checkpoint(pipeline, autoencoder=file).autoencoder_config == AUTOENCODER


def test_another_autoencoder_for_a_pipeline(pipeline: Path, single: dict[str, Path]) -> None:
    write_tensors(single["autoencoder"], autoencoder_tensors(seed=9))
    checkpoint = open_checkpoint(pipeline, autoencoder=single["autoencoder"])
    assert_same(load_autoencoder(checkpoint, torch.float32, "cpu").state_dict(), autoencoder_tensors(seed=9))


def test_a_transformer_alone_says_what_it_needs(single: dict[str, Path]) -> None:
    model = single["model"]
    assert "--autoencoder FILE|FOLDER and --text-encoder FOLDER" in refusal(model)
    sentence = refusal(model, autoencoder=single["autoencoder"])
    assert "--text-encoder FOLDER" in sentence
    assert "--autoencoder" not in sentence


def test_settings_beside_the_index(pipeline: Path) -> None:
    settings = {
        "name": "mine",
        "licence": "Apache-2.0",
        "text_length": 64,
        "text_layers": [0, 3, 28],
        "steps": 6,
        "guidance": 2,
        "default_size": [256, 128],
        "colour": "red",
    }
    write_json(pipeline / "headrace.json", settings)
    checkpoint = open_checkpoint(pipeline)
    assert (checkpoint.name, checkpoint.licence) == ("mine", "Apache-2.0")
    assert (checkpoint.steps, checkpoint.guidance) == (6, 2.0)
    assert (checkpoint.text.length, checkpoint.text.layers) == (64, (0, 3, 28))
    assert checkpoint.default_size == (256, 128)
    assert "colour" in checkpoint.notes[0]
    # The last layer of all is followed by the final norm, as transformers counts its hidden states.
    assert "norm.weight" in load_language_model(checkpoint, torch.float32, "cpu").state_dict()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("text_length", 0),
        ("text_length", 10**9),
        ("text_length", "64"),
        ("text_layers", []),
        ("text_layers", [1, -1, 2]),
        ("steps", 0),
        ("steps", 2.5),
        ("guidance", "high"),
        ("guidance", 1e6),
        ("default_size", [256]),
        ("default_size", [256, 10**6]),
        ("default_size", [1000, 1000]),
        ("default_size", [4096, 2048]),
        ("name", 7),
    ],
)
def test_settings_that_cannot_be(pipeline: Path, setting: str, value: object) -> None:
    write_json(pipeline / "headrace.json", {setting: value})
    assert f"{pipeline / 'headrace.json'} sets {setting} to " in refusal(pipeline)


def test_a_text_layer_that_is_not_there(pipeline: Path) -> None:
    write_json(pipeline / "headrace.json", {"text_layers": [1, 2, 99]})
    assert "hidden states after layer 99" in refusal(pipeline)


def test_no_such_model() -> None:
    sentence = refusal("no-such-model")
    assert "klein-4b" in sentence
    assert "sprite" in sentence
    assert "empty" in refusal("")
    refusal("a/b/c")
    refusal("../nowhere")
    refusal("models/not-downloaded.safetensors")
    refusal("x" * 5000)
    refusal("a\0b")
    refusal("~no-such-user/model")
    refusal(Path("klein-4b"))
    refusal(Path("/dev/null"))


def test_no_such_part(pipeline: Path) -> None:
    for option in ("autoencoder", "text_encoder"):
        refusal(pipeline, **{option: "nowhere"})
        assert "empty" in refusal(pipeline, **{option: ""})
        refusal(pipeline, **{option: "x" * 5000})
        refusal(pipeline, **{option: "~no-such-user"})


@pytest.mark.parametrize("name", ["", "no-such-model", "x" * 300, "a\0b"])
def test_no_such_source(name: str) -> None:
    with pytest.raises(RequestError):
        find_source(name)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_truncated_file(pipeline: Path, part: str) -> None:
    file = next((pipeline / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    sentence = refusal(pipeline)
    assert f"{file} ends at byte {file.stat().st_size} of {file.stat().st_size + 10}" in sentence
    assert "download it again" in sentence


def test_missing_surplus_and_misshapen_tensors(pipeline: Path, single: dict[str, Path]) -> None:
    tensors = transformer_tensors()
    for change, sentence in (
        ({"final_layer.linear.weight": None, "txt_in.bias": None}, "lacks 1 tensor (final_layer.linear.weight)"),
        ({"img_in.bias": torch.zeros(64)}, "holds 1 tensor (img_in.bias) that FLUX.2's transformer does not have"),
        ({"single_blocks.1.linear2.weight": torch.zeros(64, 65)}, "with shape [64, 65]"),
    ):
        changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
        write_tensors(single["model"], changed)
        assert sentence in refusal(**single, variant="base")
    rewritten(pipeline / "transformer" / "config.json", lambda config: config.update(num_single_layers=3))
    assert "lacks 4 tensors" in refusal(pipeline)
    rewritten(pipeline / "transformer" / "config.json", lambda config: config.update(num_single_layers=1))
    assert "holds 4 tensors" in refusal(pipeline)


def test_layers_above_the_last_one_used_may_be_gone(single: dict[str, Path]) -> None:
    file = single["text_encoder"] / "model.safetensors"
    tensors = language_model_tensors()
    kept = {name: tensor for name, tensor in tensors.items() if "layers.27." not in name and "model.norm" not in name}
    write_tensors(file, kept)
    open_checkpoint(**single, variant="base")
    write_tensors(file, {name: tensor for name, tensor in kept.items() if "layers.26." not in name})
    assert "lacks 11 tensors" in refusal(**single, variant="base")
    write_tensors(file, kept | {"model.layers.3.self_attn.q_proj.bias": torch.zeros(16)})
    assert "q_proj.bias" in refusal(**single, variant="base")


def test_the_wrong_text_encoder(tmp_path: Path, single: dict[str, Path]) -> None:
    shapes = transformer_shapes(
        TransformerConfig(
            in_channels=128,
            context_in_dim=7680,
            hidden_size=32,
            num_heads=1,
            depth=1,
            depth_single_blocks=1,
            axes_dim=(8, 8, 8, 8),
            guidance_embed=False,
        )
    )
    write_tensors(single["model"], drawn(shapes))
    sentence = refusal(**single, variant="base")
    assert "3 x 16 = 48" in sentence
    assert "7680" in sentence
    assert "Qwen3-4B" in sentence


def test_the_wrong_file_in_the_place_of_another(single: dict[str, Path]) -> None:
    swapped = {**single, "model": single["autoencoder"], "autoencoder": single["model"]}
    assert "no FLUX.2 transformer: it is an autoencoder" in refusal(**swapped)
    assert "no FLUX.2 autoencoder: it is a transformer" in refusal(
        **single | {"autoencoder": single["model"]}, variant="base"
    )
    lora = write_tensors(single["model"].parent / "lora.safetensors", {"x.lora_A.weight": torch.zeros(2, 2)})
    assert "it is a LoRA" in refusal(lora)
    assert "no FLUX.2 text encoder: it is a transformer" in refusal(
        **single | {"text_encoder": single["model"]}, variant="base"
    )
    (single["text_encoder"] / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(**single, variant="base")


def test_an_autoencoder_of_another_family(single: dict[str, Path]) -> None:
    tensors = {name: tensor for name, tensor in autoencoder_tensors().items() if not name.startswith("bn.")}
    write_tensors(single["autoencoder"], tensors)
    assert "not FLUX.2's" in refusal(**single, variant="base")


def test_an_autoencoder_of_other_channels(single: dict[str, Path]) -> None:
    write_tensors(single["autoencoder"], drawn(autoencoder_shapes(replace(AUTOENCODER, latent_channels=16))))
    assert "tokens of 64 channels" in refusal(**single, variant="base")


def test_quantised_files_are_named(single: dict[str, Path]) -> None:
    tensors = transformer_tensors()
    name = "single_blocks.0.linear1.weight"
    write_tensors(single["model"], tensors | {name: tensors[name].to(torch.int16)})
    assert "I16" in refusal(**single, variant="base")


def test_shards_that_are_not_there(pipeline: Path) -> None:
    folder = pipeline / "text_encoder"
    tensors = language_model_tensors()
    (folder / "model.safetensors").unlink()
    upper = {name: tensor for name, tensor in tensors.items() if "layers.27." in name}
    lower = {name: tensor for name, tensor in tensors.items() if name not in upper}
    write_tensors(folder / "model-00001-of-00002.safetensors", lower)
    names = dict.fromkeys(upper, "model-00002-of-00002.safetensors")
    names |= dict.fromkeys(lower, "model-00001-of-00002.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": names})
    open_checkpoint(pipeline)
    (folder / "model-00001-of-00002.safetensors").unlink()
    write_tensors(folder / "model-00002-of-00002.safetensors", upper)
    assert "lacks model-00001-of-00002.safetensors: it was not downloaded whole" in refusal(pipeline)


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("transformer", {"num_layers": 10**9}, "num_layers"),
        ("transformer", {"num_layers": "2"}, "num_layers"),
        ("transformer", {"eps": 1e-5}, "eps"),
        ("transformer", {"axes_dims_rope": [16, 16]}, "rotary axes"),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "_class_name"),
        ("transformer", {"mlp_ratio": float("inf")}, "mlp_ratio"),
        ("transformer", {"num_attention_heads": 4}, "with shape"),
        ("vae", {"norm_num_groups": 7}, "groups"),
        ("vae", {"mid_block_add_attention": False}, "mid_block_add_attention"),
        ("vae", {"decoder_block_out_channels": [32, 32]}, "number of levels"),
        ("text_encoder", {"model_type": "llama"}, "llama"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_encoder", {"attention_bias": True}, "attention_bias"),
        ("text_encoder", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ("text_encoder", {"num_key_value_heads": 3}, "divide"),
        ("text_encoder", {"num_hidden_layers": 20}, "layer 27"),
    ],
)
def test_configurations_that_cannot_be(pipeline: Path, file: str, change: dict[str, Any], sentence: str) -> None:
    rewritten(pipeline / file / "config.json", lambda config: config.update(change))
    assert sentence in refusal(pipeline)


SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "use_karras_sigmas": False,
}


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "FlowMatchHeunDiscreteScheduler"},
        {"use_dynamic_shifting": False},
        {"use_dynamic_shifting": None},
        {"time_shift_type": "linear"},
        {"num_train_timesteps": 500},
        {"shift_terminal": 0.02},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_flow_sigmas": True},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
    ],
)
def test_schedulers_that_would_make_other_pictures(pipeline: Path, change: dict[str, Any]) -> None:
    file = pipeline / "scheduler" / "scheduler_config.json"
    write_json(file, SCHEDULER)
    open_checkpoint(pipeline)
    write_json(file, SCHEDULER | change)
    ((name, _),) = change.items()
    assert f"{file} sets {name} to " in refusal(pipeline)
    assert any(name in problem for problem in inspect(pipeline).problems)


def test_a_scheduler_of_another_class_in_the_index(tmp_path: Path) -> None:
    heun = ["diffusers", "FlowMatchHeunDiscreteScheduler"]
    assert "sets scheduler to" in refusal(write_pipeline(tmp_path, **DISTILLED, scheduler=heun))


def test_what_a_scheduler_leaves_out(pipeline: Path) -> None:
    file = pipeline / "scheduler" / "scheduler_config.json"
    write_json(file, {"use_dynamic_shifting": True, "shift": 3.0, "max_shift": 1.15})
    open_checkpoint(pipeline)
    write_json(file, {})
    assert "does not say use_dynamic_shifting" in refusal(pipeline)
    file.write_text("[" * 10**5)
    assert "not valid JSON" in refusal(pipeline)


@pytest.mark.parametrize("depths", [(0, 2), (2, 0)])
def test_transformers_with_blocks_of_one_kind(single: dict[str, Path], depths: tuple[int, int]) -> None:
    config = replace(TRANSFORMER, depth=depths[0], depth_single_blocks=depths[1])
    write_tensors(single["model"], transformer_tensors(config=config))
    checkpoint = open_checkpoint(**single, variant="base")
    assert checkpoint.transformer_config == config
    load_transformer(checkpoint, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("change", "theta", "window"),
    [
        ({}, 1e6, None),
        ({"rope_parameters": None, "rope_theta": 5e5}, 5e5, None),
        ({"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {"type": "default"}}, 5e5, None),
        ({"rope_parameters": None}, 1e4, None),
        ({"sliding_window": 9}, 1e6, None),
        ({"sliding_window": 9, "use_sliding_window": True}, 1e6, None),
        ({"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0}, 1e6, 9),
        ({"sliding_window": 9, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 28}, 1e6, 9),
    ],
)
def test_settings_of_text_encoders_by_either_transformers(
    tmp_path: Path, single: dict[str, Path], change: dict[str, Any], theta: float, window: int | None
) -> None:
    write_text_encoder(single["text_encoder"], **change)
    config = open_checkpoint(**single, variant="base").language_model_config
    assert (config.rope_theta, config.sliding_window) == (theta, window)


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the reference pipelines are not here")
@pytest.mark.parametrize(("name", "text"), [("dev", MISTRAL), ("klein", QWEN), ("klein-base", QWEN)])
def test_the_reference_pipelines(name: str, text: object) -> None:
    checkpoint = open_checkpoint(CONFORMANCE / "diffusers" / name)
    assert checkpoint.variant == name
    assert checkpoint.text == text
    assert checkpoint.transformer_config.guidance_embed == (name == "dev")
    assert checkpoint.language_model_config.sliding_window == (4096 if name == "dev" else None)
