"""Every precision of every device against float32 on the CPU: two blocks of the transformer, encoder and decoder.

Weights are the same, down to the bit; only how they are kept and multiplied differs. Float32 on the CPU, which the
others are held against, is itself held against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.bench.quality import decibels
from headrace.checkpoints import Checkpoint, load_autoencoder
from headrace.checkpoints.load import fill_module
from headrace.device import DTYPES, bits_of, choose_precision, dtype_of, multiplies_bf16
from headrace.doctor.finding import Finding, Subject, judged, told
from headrace.errors import RequestError
from headrace.flow.latents import picture_positions, text_positions
from headrace.nn.transformer import Transformer
from headrace.quant.apply import quantise
from headrace.quant.formats import block_linears, choose_formats
from headrace.quant.linear import multiplies_fp8

# The least signal to noise of a velocity after two blocks, in dB. fp32: 24 bits of significand would give 140 and TF32
# would give 70; measured 128. bf16: one rounding to 8 bits is at 56, and some twenty come one after another; measured
# 45. Eight bits: the bounds of single layers (benchmarks/quality.md), to whose error the blocks' own path around them
# adds none; measured 39, 37 and 43.
BLOCK_BOUNDS = {"fp32": 90.0, "bf16": 40.0, "fp8 weight-only": 31.0, "fp8 W8A8": 28.0, "int8": 37.0}
# Of encoder and decoder. fp32 leaves room for TF32, in which torch lets GPUs convolve; on a CPU it measured 129 and
# 132, and bf16 45 and 50.
CONVOLUTION_BOUNDS = {"fp32": 50.0, "bf16": 38.0}

TEXT, ROWS, COLUMNS = 64, 16, 32
TIME = 0.75
BATCH = 2
PIXELS = 128

REMEDY = (
    "Do not use this precision on this device; update torch and the device's driver, and send this report to "
    "Headrace's authors if that does not help."
)


class Inputs(NamedTuple):
    """A batch of noisy tokens (2, N, 128) and text (2, L, context_in_dim), in float32 on the CPU."""

    noise: Tensor
    context: Tensor


def label(precision: str, device: torch.device) -> str:
    """A precision as the report names it: in fp8, whether this device multiplies it or decodes its weights."""
    if precision != "fp8":
        return precision
    return "fp8 W8A8" if multiplies_fp8(device) else "fp8 weight-only"


def not_offered(precision: str, device: torch.device) -> str | None:
    """Why there is no such precision on the device, or None where there is."""
    try:
        choose_precision(precision, "bf16", device)
    except RequestError as refusal:
        return str(refusal)
    return None


class BlockChecks:
    """One double-stream and one single-stream block of a checkpoint, with embedders and final layer around them."""

    def __init__(self, open_model: Callable[[], Checkpoint]) -> None:
        self._open = open_model

    def run(self, precision: str, device: torch.device) -> Iterator[Finding]:
        """The error, whether the same comes out twice, and whether each of a batch comes out as it would alone."""
        named = label(precision, device)
        refusal = not_offered(precision, device)
        if refusal is not None:
            yield told(Subject("blocks", str(device), named), refusal)
            return
        inputs, exact = self._exact
        network = self._load(dtype_of(precision, device), device, precision)
        made = velocity(network, inputs)
        bound = BLOCK_BOUNDS[named]
        if precision == "fp32" and device.type == "cpu":
            exact = velocity(self._load(torch.float32, device, "fp32").double(), inputs)
        slow = precision == "bf16" and not multiplies_bf16(device)
        remark = "slower than fp32 on this device" if slow else ""
        yield judged(Subject("blocks", str(device), named), decibels(made, exact), "dB", bound, REMEDY, remark)

        again = velocity(network, inputs)
        subject = Subject("blocks, a second time", str(device), named)
        remedy = "Pictures may differ from run to run here: do not rely on seeds with this precision on this device."
        yield judged(subject, differing(made, again), "values", 0, remedy)

        alone = torch.cat([velocity(network, Inputs(*(part[i : i + 1] for part in inputs))) for i in range(BATCH)])
        subject = Subject("blocks, one by one", str(device), named)
        if device.type == "cpu":
            remedy = "Pictures may depend on how many are made at once: make them one by one with this precision."
            yield judged(subject, differing(made, alone), "values", 0, remedy)
        else:
            yield judged(subject, decibels(alone, made), "dB", bound, REMEDY)

    @cached_property
    def _exact(self) -> tuple[Inputs, Tensor]:
        config = self._open().transformer_config
        generator = torch.Generator().manual_seed(0)
        inputs = Inputs(
            torch.randn(BATCH, ROWS * COLUMNS, config.in_channels, generator=generator),
            torch.randn(BATCH, TEXT, config.context_in_dim, generator=generator),
        )
        return inputs, velocity(self._load(torch.float32, torch.device("cpu"), "fp32"), inputs)

    def _load(self, dtype: torch.dtype, device: torch.device, precision: str) -> Transformer:
        checkpoint = self._open()
        with torch.device("meta"):
            network = Transformer(replace(checkpoint.transformer_config, depth=1, depth_single_blocks=1)).to(dtype)
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        quantise(network, choose_formats(bits_of(precision), block_linears(shapes), {}))
        fill_module(network, checkpoint.transformer, device)
        return network


class AutoencoderChecks:
    """Encoder and decoder of a checkpoint, on a drawn picture."""

    def __init__(self, open_model: Callable[[], Checkpoint]) -> None:
        self._open = open_model
        self._exact = cache(self._compute_exact)

    def run(self, precision: str, device: torch.device) -> Iterator[Finding]:
        """The errors of both; precision is fp32 or bf16, which the autoencoder has."""
        cpu_fp32 = precision == "fp32" and device.type == "cpu"
        picture, latent, decoded = self._exact(torch.float64 if cpu_fp32 else torch.float32)
        dtype = DTYPES[precision]
        with torch.inference_mode():
            network = load_autoencoder(self._open(), dtype, device)
            made = {
                "encoder": network.encode(picture.to(device, dtype)),
                "decoder": network.decode(latent.to(device, dtype)),
            }
        expected = {"encoder": latent, "decoder": decoded}
        for part, tensor in made.items():
            figure = decibels(tensor.double().cpu(), expected[part].double())
            yield judged(Subject(part, str(device), precision), figure, "dB", CONVOLUTION_BOUNDS[precision], REMEDY)

    @torch.inference_mode()
    def _compute_exact(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        network = load_autoencoder(self._open(), torch.float32, "cpu").to(dtype)
        picture = drawn_picture().to(dtype)
        latent = network.encode(picture)
        return picture, latent, network.decode(latent)


@torch.inference_mode()
def velocity(network: Transformer, inputs: Inputs) -> Tensor:
    """(B, N, in_channels) in float64 on the CPU, computed in the network's precision on its device."""
    like = network.img_in.weight
    positions = picture_positions(ROWS, COLUMNS).to(like.device), text_positions(TEXT).to(like.device)
    noise, context = (part.to(like.device, like.dtype) for part in inputs)
    time = torch.tensor([TIME], device=like.device)
    return network(noise, positions[0], time, context, positions[1]).cpu().double()


def differing(a: Tensor, b: Tensor) -> int:
    """How many values are not equal; all of them where there are others than numbers."""
    return int((a != b).sum())


def drawn_picture() -> Tensor:
    """(1, 3, 128, 128) in [-1, 1]: slow waves in each colour, as a picture has, and an edge."""
    place = torch.linspace(0, 1, PIXELS)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    waves = [torch.sin(2 * torch.pi * (frequency * rows + columns)) for frequency in (1, 2, 3)]
    picture = 0.8 * torch.stack(waves)
    picture[:, PIXELS // 2 :, PIXELS // 2 :] *= -1
    return picture[None]
