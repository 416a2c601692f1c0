"""The latents a transformer learns from, encoded once and kept on disk: encoding is not to starve the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.nn.autoencoder import Autoencoder
from headrace.train import run
from headrace.world.draw import picture
from headrace.world.scene import Scene
from headrace.world.tasks import TASKS, Sample, reference_size, sample

CHUNK = 32
THREADS = 2

TOKENS = "tokens.f16"
INDEX = "index.npy"

Size = tuple[int, int]


class Kind(NamedTuple):
    """What the samples of one batch have in common, so that their tensors have one shape."""

    task: str
    references: int


@dataclass(frozen=True)
class Samples:
    """Encoded samples of one size, by kind; see `encode_samples`.

    size: (width, height) of the targets in pixels. tokens: (all tokens, channels). seeds, starts: of each kind, the
    samples' seeds and the places of their targets' first tokens.
    """

    size: Size
    token_size: int
    tokens: npt.NDArray[np.float16]
    seeds: dict[Kind, npt.NDArray[np.int64]]
    starts: dict[Kind, npt.NDArray[np.int64]]

    def target_grid(self) -> tuple[int, int]:
        """Height and width of a target in tokens."""
        return _grid(self.size, self.token_size)

    def reference_grids(self, kind: Kind) -> list[tuple[int, int]]:
        """Height and width of each reference in tokens."""
        return [_grid(reference_size(kind.task, *self.size), self.token_size)] * kind.references

    def latents(self, kind: Kind, chosen: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The targets (B, N, channels) of some samples of a kind, and all references of each (B, M, channels)."""
        targets = int(np.prod(self.target_grid()))
        length = targets + sum(height * width for height, width in self.reference_grids(kind))
        places = self.starts[kind][chosen][:, None] + np.arange(length)
        both = torch.from_numpy(self.tokens[places]).float()
        return both[:, :targets], both[:, targets:]


def encode_sizes(autoencoder: Autoencoder, count: int, sizes: Sequence[Size], folder: Path) -> list[Samples]:
    """So many samples of the first size, and a quarter of that of each other, in folders of this one."""
    counts = [count, *[-(-count // 4)] * (len(sizes) - 1)]
    return [
        encode_samples(autoencoder, number, (width, height), folder / f"samples-{number}-{width}x{height}")
        for (width, height), number in zip(sizes, counts, strict=True)
    ]


def encode_samples(autoencoder: Autoencoder, count: int, size: Size, folder: Path) -> Samples:
    """Latents of the samples with seeds 0 to count - 1 at ``size`` (width, height), kept in ``folder``.

    Tokens lie row by row, each sample's target first and then its references. What an earlier call left there is
    taken as it is; the index appears only when everything else is there.
    """
    index = folder / INDEX
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows, start = [], 0
        with (folder / TOKENS).open("wb") as file, ThreadPoolExecutor(THREADS) as pool:
            chunks = (range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))
            for encoded in pool.map(lambda seeds: list(_encode(autoencoder, seeds, size)), chunks):
                for one, pictures in encoded:
                    rows.append((list(TASKS).index(one.task), len(one.references), start))
                    for tokens in pictures:
                        file.write(tokens.tobytes())
                        start += len(tokens)
        partial = index.with_name("partial.npy")
        np.save(partial, np.array(rows, np.int64))
        partial.replace(index)
    tasks, references, starts = np.load(index).T
    tokens = np.memmap(folder / TOKENS, np.float16, "r").reshape(-1, autoencoder.config.token_channels)
    seeds: dict[Kind, npt.NDArray[np.int64]] = {}
    for task, number in sorted(set(zip(tasks.tolist(), references.tolist(), strict=True))):
        seeds[Kind(list(TASKS)[task], number)] = np.flatnonzero((tasks == task) & (references == number))
    return Samples(
        size, autoencoder.config.token_size, tokens, seeds, {kind: starts[own] for kind, own in seeds.items()}
    )


def _encode(
    autoencoder: Autoencoder, seeds: range, size: Size
) -> Iterator[tuple[Sample, list[npt.NDArray[np.float16]]]]:
    """Samples, and of each the tokens of its target and of its references."""
    samples = [sample(seed, *size) for seed in seeds]
    scenes = [scene for one in samples for scene in (one.target, *one.references)]
    encoded: dict[int, npt.NDArray[np.float16]] = {}
    for shape in {_size(scene) for scene in scenes}:
        places = [place for place, scene in enumerate(scenes) if _size(scene) == shape]
        images = run.to_tensor([picture(scenes[place]) for place in places])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = autoencoder.encode(images.to(memory_format=torch.channels_last))
        for place, latent in zip(places, latents.flatten(2).transpose(1, 2), strict=True):
            encoded[place] = latent.to(torch.float16).numpy()
    place = 0
    for one in samples:
        last = place + 1 + len(one.references)
        yield one, [encoded[each] for each in range(place, last)]
        place = last


def _size(scene: Scene) -> Size:
    return scene.width, scene.height


def _grid(size: Size, token_size: int) -> tuple[int, int]:
    return size[1] // token_size, size[0] // token_size
