"""The latents a transformer learns from, encoded once and kept on disk: encoding is not to starve the training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from headrace.nn.autoencoder import Autoencoder
from headrace.train import run
from headrace.world.draw import picture
from headrace.world.layout import scene

CHUNK = 32
THREADS = 2

Latents = npt.NDArray[np.float16]


def encode_scenes(autoencoder: Autoencoder, count: int, size: tuple[int, int], file: Path) -> Latents:
    """Latents of the scenes with seeds 0 to count - 1 at ``size`` (width, height): a memory-mapped array.

    Its shape is (count, tokens, channels), tokens row by row. A file of this name is taken as it is; a new one appears
    only when it is whole.
    """
    if not file.exists():
        width, height = size
        side = autoencoder.config.token_size
        shape = (count, (width // side) * (height // side), autoencoder.config.token_channels)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        latents = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)

        def encode(start: int) -> None:
            seeds = range(start, min(start + CHUNK, count))
            images = run.to_tensor([picture(scene(seed, width, height)) for seed in seeds])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                encoded = autoencoder.encode(images.to(memory_format=torch.channels_last))
            latents[seeds.start : seeds.stop] = encoded.flatten(2).transpose(1, 2).float().numpy()

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(encode, range(0, count, CHUNK)))
        latents.flush()
        partial.replace(file)
    return np.load(file, mmap_mode="r")
