"""Reference cases: does this machine compute what the published references computed?

Two kinds of folder are understood, at any depth below the one given. Cases of Black Forest Labs' code hold tensors
(`case.safetensors`, `config.json`) and draw their weights by rule; cases of diffusers hold pictures
(`cases/*/case.json`, `expected.png`) beside the pipeline that made them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headrace.checkpoints.weights import read_json
from headrace.errors import RequestError
from headrace.flow.conventions import find_convention
from headrace.flow.denoise import Conditioning, denoise, guided_velocity
from headrace.flow.latents import from_tokens, picture_positions, reference_positions, text_positions, to_tokens
from headrace.flow.schedule import schedule
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig, TransformerConfig
from headrace.nn.transformer import Transformer
from headrace.pictures import open_picture
from headrace.pipeline import load

TENSOR_BOUND = 1e-4
PICTURE_BOUND = 1 / 255
SEED_FACTOR = 1_000_003


@dataclass(frozen=True)
class CaseResult:
    """The error of one tensor of one case: max|a - b| / max|b|, for pictures max|a - b| / 255; and what is allowed."""

    case: str
    tensor: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; an error that is not a number is not."""
        return self.error <= self.bound


def run_cases(directory: Path) -> Iterator[CaseResult]:
    """Run every case below `directory` in float32 on the CPU. Raises RequestError for none, or a broken one."""
    try:
        tensor_cases = sorted(path.parent for path in directory.rglob("case.safetensors"))
        picture_cases = sorted(path.parent for path in directory.rglob("case.json"))
    except OSError as unreadable:
        raise RequestError(f"{directory} cannot be read ({unreadable.strerror}).") from unreadable
    if not tensor_cases and not picture_cases:
        raise RequestError(f"{directory} holds no cases: neither case.safetensors nor case.json is in it or below it.")
    for folder in tensor_cases:
        name = folder.relative_to(directory).as_posix()
        for tensor, error in _tensor_errors(folder):
            yield CaseResult(name, tensor, error, TENSOR_BOUND)
    for folder in picture_cases:
        name = folder.relative_to(directory).as_posix()
        yield CaseResult(name, "picture", _picture_error(folder), PICTURE_BOUND)


def draw_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A weight of a reference case, drawn from a generator of its own so that the order does not matter."""
    generator = torch.Generator().manual_seed(seed * SEED_FACTOR + zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_mean"):
        return 0.3 * noise
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    if name.endswith("scale") or ("norm" in name and name.endswith("weight")):
        return 1 + 0.1 * noise
    return 0.05 * noise


def _tensor_errors(folder: Path) -> Iterator[tuple[str, float]]:
    config, tensors = _read_case(folder)
    try:
        with torch.inference_mode():
            computed = dict(_computed(config, tensors, *_networks(config)))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"{folder} does not hold a whole case ({error!r}).") from error
    for name, ours in computed.items():
        if name in tensors:
            yield name, _relative_error(ours, tensors[name])


def _read_case(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        return read_json(folder / "config.json"), load_file(folder / "case.safetensors")
    except (OSError, SafetensorError) as error:
        raise RequestError(f"The case {folder} cannot be read ({error}).") from error


def _networks(config: Mapping[str, Any]) -> tuple[Transformer, Autoencoder]:
    """The networks of a case with their weights drawn."""
    names = config["transformer_tensors"]
    known = {field.name for field in fields(TransformerConfig)}
    sizes = {name: value for name, value in config["transformer"].items() if name in known}
    told = {"axes_dim": tuple(sizes["axes_dim"]), "guidance_embed": "guidance_in.in_layer.weight" in names}
    transformer = Transformer(TransformerConfig(**sizes | told))
    widths = config["autoencoder"]
    groups = widths.get("norm_groups", widths.get("num_groups", AutoencoderConfig.norm_groups))
    autoencoder = Autoencoder(
        AutoencoderConfig(
            channels=tuple(widths["ch"] * factor for factor in widths["ch_mult"]),
            layers_per_block=widths["num_res_blocks"],
            latent_channels=widths["z_channels"],
            norm_groups=groups,
        )
    )
    _draw_into(transformer, names, config["seed"])
    _draw_into(autoencoder, config["autoencoder_tensors"], config["seed"])
    return transformer, autoencoder


def _draw_into(module: nn.Module, shapes: Mapping[str, list[int]], seed: int) -> None:
    drawn = {name: draw_weight(name, tuple(shape), seed) for name, shape in shapes.items()}
    untouched = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(untouched | drawn)


def _computed(
    config: Mapping[str, Any], given: Mapping[str, Tensor], transformer: Transformer, autoencoder: Autoencoder
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a case, from its inputs."""
    yield "ae_latent", autoencoder.encode(given["ae_image"])
    yield "ae_decoded", autoencoder.decode(given["ae_latent"])

    noise, context = given["noise"], given["context"]
    batch, _, rows, columns = noise.shape
    picture_ids, text_ids = picture_positions(rows, columns), text_positions(context.shape[1])
    yield "img_ids", picture_ids.expand(batch, -1, -1)
    yield "txt_ids", text_ids.expand(batch, -1, -1)
    guides = config.get("guidance") is not None
    conditioning = Conditioning(context, text_ids, picture_ids, float(config["guidance"]) if guides else 1.0)

    latents = [autoencoder.encode(given[f"ref_image_{k}"]) for k in range(len(config.get("references", [])))]
    if latents:
        references = torch.cat([to_tokens(latent) for latent in latents], dim=1).expand(batch, -1, -1)
        reference_ids = reference_positions([(latent.shape[2], latent.shape[3]) for latent in latents])
        yield "ref_tokens", references
        yield "ref_ids", reference_ids.expand(batch, -1, -1)
        conditioning = Conditioning(
            context, text_ids, picture_ids, conditioning.guidance, references=references, reference_ids=reference_ids
        )

    guidance = torch.tensor([conditioning.guidance]) if transformer.config.guidance_embed else None
    yield (
        "velocity",
        transformer(
            to_tokens(noise),
            picture_ids,
            given["velocity_t"],
            context,
            text_ids,
            guidance,
            references=conditioning.references,
            reference_ids=conditioning.reference_ids,
        ),
    )
    sigmas = schedule(rows * columns, int(config["steps"]))
    yield "timesteps", torch.tensor(sigmas, dtype=torch.float64)

    latent = to_tokens(noise)
    velocity = guided_velocity(transformer, conditioning, torch.float32)
    for step in denoise(velocity, latent, sigmas, find_convention("diffusers"), torch.float32):
        latent = step.latent
    final = from_tokens(latent, rows, columns)
    yield "final_latent", final
    yield "final_image", autoencoder.decode(final)


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    difference = (ours.double() - theirs.double()).abs().max()
    return float(difference / theirs.double().abs().max().clamp_min(1e-30))


def _picture_error(folder: Path) -> float:
    case = read_json(folder / "case.json")
    expected = np.asarray(open_picture(folder / "expected.png", kind="expected picture"), dtype=np.int16)
    try:
        picture = load(folder.parent.parent, precision="fp32", device="cpu").generate(
            case["prompt"],
            references=[folder / f"reference_{k}.png" for k in range(1, case["references"] + 1)],
            size=(case["width"], case["height"]),
            steps=case["steps"],
            guidance=case["guidance"],
            seed=case["seed"],
        )
    except (KeyError, TypeError) as error:
        raise RequestError(f"{folder} does not hold a whole case ({error!r}).") from error
    ours = np.asarray(picture.image, dtype=np.int16)
    return math.inf if ours.shape != expected.shape else float(np.abs(ours - expected).max()) / 255
