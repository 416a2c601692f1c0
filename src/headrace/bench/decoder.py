"""The autoencoder at a large size beside diffusers' untiled one: memory, time and difference, on the same weights.

Each runs in a process of its own, so that its peak is its own; the weights are random, in the published shape.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headrace.catalog import FLUX2_AUTOENCODER
from headrace.checkpoints.export import autoencoder_for_diffusers
from headrace.device import DTYPES
from headrace.errors import HeadraceError
from headrace.memory.process import peak_bytes, resident_bytes
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import AutoencoderConfig

Part = Literal["decoder", "encoder"]
Which = Literal["headrace", "diffusers"]
WARM_UP = 64
"""Side in pixels of the picture that is made before, so that libraries are loaded and threads started."""


@dataclass(frozen=True)
class Measured:
    """One run. peak_bytes: of the process's resident set; start_bytes: the same before, weights and libraries included.

    largest, mean: of the difference from the first row's result; of the decoder's in steps of 1/255.
    """

    what: str
    start_bytes: int
    peak_bytes: int
    seconds: float
    largest: float = 0.0
    mean: float = 0.0


def has_diffusers() -> bool:
    """Whether there is a diffusers to compare with."""
    return importlib.util.find_spec("diffusers") is not None


def compare(
    part: Part, width: int, height: int, precision: str, config: AutoencoderConfig = FLUX2_AUTOENCODER
) -> Iterator[Measured]:
    """Headrace's row, then diffusers' where it is installed.

    width, height: of the picture, in pixels; multiples of 16. precision: "bf16" or "fp32".
    Raises HeadraceError where a process comes to nothing, as it does without the memory.
    """
    with TemporaryDirectory() as made:
        folder = Path(made)
        _write(folder, part, width, height, precision, config)
        first = _run("headrace", folder, part)
        expected = _result(folder)
        yield first
        if has_diffusers():
            other = _run("diffusers", folder, part)
            steps = 127.5 if part == "decoder" else 1.0
            difference = steps * (_result(folder) - expected).abs()
            yield Measured(
                other.what,
                other.start_bytes,
                other.peak_bytes,
                other.seconds,
                float(difference.max()),
                float(difference.mean()),
            )


def _write(folder: Path, part: Part, width: int, height: int, precision: str, config: AutoencoderConfig) -> None:
    """The weights in both layouts, and what is given to the networks."""
    torch.manual_seed(0)
    network = Autoencoder(config).to(DTYPES[precision])
    save_file(network.state_dict(), folder / "headrace.safetensors")
    (folder / "headrace.json").write_text(json.dumps(asdict(config)))
    settings, tensors = autoencoder_for_diffusers(config, network.state_dict())
    save_file(tensors, folder / "diffusers.safetensors")
    (folder / "diffusers.json").write_text(json.dumps(settings))
    given = {}
    for name, (w, h) in {"input": (width, height), "warm_up": (WARM_UP, WARM_UP)}.items():
        scale = config.token_size // 2
        shape = (config.latent_channels, h // scale, w // scale) if part == "decoder" else (3, h, w)
        values = torch.randn(1, *shape) if part == "decoder" else torch.rand(1, *shape) * 2 - 1
        given[name] = values.to(DTYPES[precision])
    save_file(given, folder / "given.safetensors")


def _run(which: Which, folder: Path, part: Part) -> Measured:
    code = f"from headrace.bench.decoder import measure; measure({which!r}, {str(folder)!r}, {part!r})"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise HeadraceError(
            f"The process that runs {which}'s {part} ended with {done.returncode}; is there the memory?"
        )
    return Measured(which, **json.loads(done.stdout))


def _result(folder: Path) -> Tensor:
    return load_file(folder / "result.safetensors")["result"].float()


@torch.inference_mode()
def measure(which: Which, folder: str, part: Part) -> None:
    """What a process of its own does: run once, print the figures, and leave the result in the folder."""
    files = Path(folder)
    forward = (_headrace if which == "headrace" else _diffusers)(files, part)
    given = load_file(files / "given.safetensors")
    forward(given["warm_up"])
    before = resident_bytes()
    started = time.perf_counter()
    result = forward(given["input"])
    seconds = time.perf_counter() - started
    figures = {"start_bytes": before, "peak_bytes": peak_bytes(), "seconds": seconds}
    save_file({"result": result.contiguous()}, files / "result.safetensors")
    print(json.dumps(figures))  # noqa: T201


def _headrace(folder: Path, part: Part) -> Callable[[Tensor], Tensor]:
    config = AutoencoderConfig(**json.loads((folder / "headrace.json").read_text()))
    network = _filled(lambda: Autoencoder(config), folder / "headrace.safetensors")
    if part == "decoder":
        return network.decode_latent
    return lambda image: network.encode_moments(image)[0]


def _diffusers(folder: Path, part: Part) -> Callable[[Tensor], Tensor]:
    diffusers: Any = importlib.import_module("diffusers")

    settings = json.loads((folder / "diffusers.json").read_text())
    arguments = {name: value for name, value in settings.items() if not name.startswith("_")}
    network = _filled(lambda: diffusers.AutoencoderKLFlux2(**arguments), folder / "diffusers.safetensors")
    if part == "decoder":
        return lambda latent: network.decode(latent).sample
    return lambda image: network.encode(image).latent_dist.mean


def _filled(make: Callable[[], Any], file: Path) -> Any:
    """A network with a file's tensors, whose memory they keep."""
    with torch.device("meta"):
        network: nn.Module = make()
    network.load_state_dict(load_file(file), assign=True)
    return network.eval()
