"""What `inspect` says about whole, broken and foreign files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from checkpoint_files import (
    AUTOENCODER,
    CONFORMANCE,
    autoencoder_tensors,
    language_model_tensors,
    transformer_tensors,
    write_json,
    write_pipeline,
    write_tensors,
    write_text_encoder,
)
from headrace import catalog
from headrace.checkpoints import inspect
from headrace.checkpoints.shapes import (
    autoencoder_shapes,
    count_parameters,
    language_model_shapes,
    transformer_shapes,
)
from headrace.errors import RequestError


def write_shapes(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A file with these tensors of two bytes a value, whose data is a hole that takes no room on the disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.mark.parametrize("entry", catalog.PUBLISHED, ids=lambda entry: entry.name)
def test_published_transformers_are_recognised_by_their_shapes(tmp_path: Path, entry: catalog.PublishedModel) -> None:
    (network,) = inspect(write_shapes(tmp_path / "x.safetensors", transformer_shapes(entry.transformer))).networks
    assert entry.name in network.models
    assert network.layout == "bfl"
    assert network.parameters == count_parameters(transformer_shapes(entry.transformer))
    assert network.dtypes == {"BF16": len(network.tensors)}
    assert network.missing == () == network.unused


@pytest.mark.parametrize("encoder", catalog.TEXT_ENCODERS, ids=lambda encoder: encoder.name)
def test_published_text_encoders_are_recognised_without_configuration(
    tmp_path: Path, encoder: catalog.TextEncoder
) -> None:
    shapes = {f"model.{name}": shape for name, shape in language_model_shapes(encoder.config, layers=30).items()}
    (network,) = inspect(write_shapes(tmp_path / "x.safetensors", shapes)).networks
    assert (network.kind, network.models, network.config) == ("text encoder", (encoder.name,), None)


@pytest.mark.parametrize(("name", "config"), catalog.AUTOENCODERS.items())
def test_published_autoencoders_are_recognised(tmp_path: Path, name: str, config: catalog.AutoencoderConfig) -> None:
    shapes = {name: shape for name, shape in autoencoder_shapes(config).items() if shape}
    (network,) = inspect(write_shapes(tmp_path / "x.safetensors", shapes)).networks
    assert (network.kind, network.models) == ("autoencoder", (name,))
    assert network.parameters == count_parameters(autoencoder_shapes(config))


def test_a_pipeline(tmp_path: Path) -> None:
    seen = inspect(write_pipeline(tmp_path, is_distilled=True))
    assert seen.kind == "pipeline"
    assert seen.problems == ()
    assert seen.metadata == {"_class_name": "Flux2KleinPipeline", "is_distilled": "True"}
    assert [network.kind for network in seen.networks] == ["transformer", "autoencoder", "text encoder"]
    assert seen.tensors == sum(seen.dtypes.values())
    assert json.loads(json.dumps(seen.as_dict()))["networks"][1]["config"]["channels"] == list(AUTOENCODER.channels)


def test_what_a_pipeline_lacks(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path, is_distilled=True)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    write_tensors(folder / "text_encoder" / "model.safetensors", {"x": torch.zeros(1)})
    problems = inspect(folder).problems
    assert len(problems) == 3
    assert "holds no .safetensors file" in problems[0]
    assert "not a network of FLUX.2" in problems[1]
    assert "tokenizer.json is missing" in problems[2]


def test_missing_and_unused_tensors_are_listed(tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in transformer_tensors().items()}
    del tensors["model.diffusion_model.final_layer.linear.weight"]
    tensors |= {"model.diffusion_model.img_in.bias": torch.zeros(64), "ema.decay": torch.zeros(1)}
    seen = inspect(write_tensors(tmp_path / "x.safetensors", tensors))
    (network,) = seen.networks
    assert network.prefix == "model.diffusion_model."
    assert network.missing == ("model.diffusion_model.final_layer.linear.weight",)
    assert network.unused == ("model.diffusion_model.img_in.bias",)
    assert seen.unused == ("ema.decay",)


def test_precision_is_counted_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = transformer_tensors()
    name = "single_blocks.0.linear1.weight"
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn), "single_blocks.0.linear1.weight_scale": torch.tensor(1.0)}
    (network,) = inspect(write_tensors(tmp_path / "x.safetensors", tensors)).networks
    assert network.dtypes["F8_E4M3"] == 1
    assert network.unused == ()


def test_several_networks_in_one_file(tmp_path: Path) -> None:
    tensors = {"model.diffusion_model." + name: tensor for name, tensor in transformer_tensors().items()}
    tensors |= {"vae." + name: tensor for name, tensor in autoencoder_tensors().items()}
    tensors |= language_model_tensors(prefix="text_encoders.qwen3_4b.transformer.model.")
    seen = inspect(write_tensors(tmp_path / "x.safetensors", tensors))
    assert seen.kind == "autoencoder and text encoder and transformer"
    assert all(network.missing == () == network.unused for network in seen.networks)


@pytest.mark.parametrize("name", ["", "none", "x" * 300, "a\0b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(RequestError):
        inspect(name)


def test_other_files(tmp_path: Path) -> None:
    lora = {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.zeros(2, 2)}
    assert inspect(write_tensors(tmp_path / "lora.safetensors", lora)).kind == "LoRA"
    assert inspect(write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)})).kind == "unknown"
    folder = write_text_encoder(tmp_path / "qwen")
    assert inspect(folder).networks[0].missing == ()
    write_json(folder / "config.json", {"model_type": "llama"})
    assert inspect(folder).networks[0].config is None
    with pytest.raises(RequestError, match="neither a file nor a folder"):
        inspect(tmp_path / "nothing")


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the reference pipelines are not here")
@pytest.mark.parametrize("name", ["dev", "klein", "klein-base"])
def test_the_reference_pipelines_are_whole(name: str) -> None:
    seen = inspect(CONFORMANCE / "diffusers" / name)
    assert seen.problems == ()
    assert all(network.missing == () == network.unused for network in seen.networks)
