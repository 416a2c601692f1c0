"""What a graph's nodes ask of networks: first rehearsed without any, to know what is needed; then done within a plan.

A graph says which files it uses, but sizes come out of its pictures as it runs. So it is run once with `Rehearsal`,
which gives tensors without values and writes down every use; the uses make plans, and the graph runs with `Engine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from headrace.checkpoints import digest
from headrace.checkpoints.lora_choice import ChosenLora
from headrace.comfy.models import (
    Model,
    TextEncoder,
    Vae,
    assemble,
    open_autoencoder,
    open_loras,
    open_text_encoder,
    open_transformer,
)
from headrace.comfy.stages import Stages
from headrace.comfy.values import Guider
from headrace.device import choose_device
from headrace.errors import RequestError
from headrace.memory.budget import check_budget
from headrace.memory.claims import claimed
from headrace.memory.plan import Budget, Plan, Work, lora_values


@dataclass(frozen=True)
class Settings:
    """How a graph is run: see `headrace.load`. memory, host_memory: in bytes."""

    precision: str = "auto"
    text_precision: str | None = None
    device: str = "auto"
    memory: int | None = None
    host_memory: int | None = None


class Stage(Protocol):
    """What nodes may ask for. Latents are (B, C, h, w), pixels (B, H, W, 3) in 0..1, both float32 on the CPU."""

    def encode_prompt(self, encoder: TextEncoder, text: str) -> Tensor:
        """(1, L, width) embeddings."""

    def encode_pixels(self, vae: Vae, pixels: Tensor) -> Tensor:
        """Latents of pixels whose sides are multiples of the autoencoder's token size."""

    def decode(self, vae: Vae, samples: Tensor) -> Tensor:
        """Pixels of latents."""

    def sample(
        self, guider: Guider, noise: Tensor, latent: Tensor, sigmas: Sequence[float], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The latent after the last step, and the finished one foreseen there; both `latent` where there is no step."""


@dataclass(frozen=True)
class Sampling:
    """One use of a transformer: in latents (B, C, h, w), with references of these sizes in tokens, h x w."""

    guider: Guider
    latent: tuple[int, int, int, int]
    references: tuple[tuple[int, int], ...]
    steps: int

    @property
    def guided(self) -> bool:
        return self.guider.negative is not None and not math.isclose(self.guider.cfg, 1.0)

    @property
    def reference_tokens(self) -> int:
        """Of all branches of a batch together."""
        tokens = sum(rows * columns for rows, columns in self.references)
        return self.latent[0] * (2 if self.guided else 1) * tokens


class Rehearsal:
    """Gives tensors without values, and keeps what was asked for."""

    def __init__(self) -> None:
        self.prompts: list[TextEncoder] = []
        self.pictures: list[tuple[Vae, int, int]] = []
        self.samplings: list[Sampling] = []

    def encode_prompt(self, encoder: TextEncoder, text: str) -> Tensor:
        _, found = open_text_encoder(encoder.file)
        self.prompts.append(encoder)
        return torch.empty(1, found.text.length, len(found.text.layers) * found.config.hidden_size, device="meta")

    def encode_pixels(self, vae: Vae, pixels: Tensor) -> Tensor:
        _, config = open_autoencoder(vae.file)
        batch, height, width, _ = pixels.shape
        self.pictures.append((vae, width, height))
        size = config.token_size
        return torch.empty(batch, config.token_channels, height // size, width // size, device="meta")

    def decode(self, vae: Vae, samples: Tensor) -> Tensor:
        _, config = open_autoencoder(vae.file)
        batch, channels, rows, columns = samples.shape
        if channels != config.token_channels:
            raise RequestError(
                f"{vae.file.name} decodes latents of {config.token_channels} channels, but those of the workflow have "
                f"{channels}; use EmptyFlux2LatentImage."
            )
        size = config.token_size
        self.pictures.append((vae, columns * size, rows * size))
        return torch.empty(batch, rows * size, columns * size, 3, device="meta")

    def sample(
        self, guider: Guider, noise: Tensor, latent: Tensor, sigmas: Sequence[float], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        _, config = open_transformer(guider.model.file)
        batch, channels, rows, columns = latent.shape
        if channels != config.in_channels:
            raise RequestError(
                f"{guider.model.file.name} makes latents of {config.in_channels} channels, but it is given one of "
                f"{channels}; use EmptyFlux2LatentImage."
            )
        sizes = tuple((reference.shape[2], reference.shape[3]) for reference in guider.positive.references)
        self.samplings.append(Sampling(guider, (batch, channels, rows, columns), sizes, len(sigmas) - 1))
        made = torch.empty(*latent.shape, device="meta")
        return made, made


@dataclass(frozen=True)
class _Trio:
    """The three files of one checkpoint; the model as its loader gives it."""

    model: Model
    encoder: TextEncoder
    vae: Vae


class Engine:
    """Does what was rehearsed, with every network where its plan has it. To be used as `with engine.planned(): ...`."""

    def __init__(
        self, rehearsal: Rehearsal, settings: Settings, advance: Callable[[int], None] = lambda steps: None
    ) -> None:
        self._rehearsal, self._settings, self._advance = rehearsal, settings, advance
        self.device = choose_device(settings.device)
        self.memory, self.host_memory = settings.memory, settings.host_memory
        check_budget(self.memory, self.host_memory, self.device)
        self._stages = {trio: self._opened(trio) for trio in _trios(rehearsal)}
        self._current: Stages | None = None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Name and hash of every checkpoint and LoRA that the graph uses."""
        checkpoints = [(stages.checkpoint.name, digest(stages.checkpoint)) for stages in self._stages.values()]
        models = dict.fromkeys(sampling.guider.model for sampling in self._rehearsal.samplings)
        records = [chosen.record for model in models for chosen in open_loras(model)]
        return list(dict.fromkeys([*checkpoints, *((record.name, f"sha256:{record.sha256}") for record in records)]))

    @property
    def held_bytes(self) -> int:
        """Of the device's memory, by networks."""
        return sum(stages.held_bytes for stages in self._stages.values())

    def release(self) -> None:
        """Let go of all networks."""
        for stages in self._stages.values():
            stages.release()

    @contextmanager
    def planned(self) -> Iterator[tuple[Plan, ...]]:
        """The plans that hold within. Raises RequestError, before anything is loaded, where the budget is too small."""
        if not self._stages:
            yield ()
            return
        with claimed(self, self._plans) as (_, plans), ExitStack() as stack:
            for stages, plan in zip(self._stages.values(), plans, strict=True):
                stack.enter_context(stages.within(plan))
            yield plans

    def encode_prompt(self, encoder: TextEncoder, text: str) -> Tensor:
        return self._lent(encoder).encode_prompt(text)

    def encode_pixels(self, vae: Vae, pixels: Tensor) -> Tensor:
        return self._lent(vae).encode_pixels(pixels)

    def decode(self, vae: Vae, samples: Tensor) -> Tensor:
        return self._lent(vae).decode(samples)

    def sample(
        self, guider: Guider, noise: Tensor, latent: Tensor, sigmas: Sequence[float], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stages = self._lent(guider.model.weights)
        stages.use(open_loras(guider.model))
        return stages.sample(guider, noise, latent, sigmas, mask, self._advance)

    def _lent(self, part: Model | TextEncoder | Vae) -> Stages:
        """The first checkpoint with that file; of several only the one that is being used is in memory."""
        stages = next(stages for trio, stages in self._stages.items() if part in (trio.model, trio.encoder, trio.vae))
        if self._current is not None and self._current is not stages:
            self._current.release()
        self._current = stages
        return stages

    def _opened(self, trio: _Trio) -> Stages:
        precision = trio.model.precision if self._settings.precision == "auto" else self._settings.precision
        return Stages(
            assemble(trio.model, trio.encoder, trio.vae),
            precision,
            self._settings.text_precision,
            self.device,
            self.memory,
            self.host_memory,
        )

    def _plans(self, budget: Budget) -> tuple[Plan, tuple[Plan, ...]]:
        """The plan of every checkpoint, and before them the one that asks for most."""
        plans = tuple(
            stages.plan(list(self._works(trio, stages)), budget, self._kept(trio), self._heaviest_loras(trio))
            for trio, stages in self._stages.items()
        )
        if len(plans) > 1:
            plans = tuple(replace(plan, keeps_all=False) for plan in plans)
        return max(plans, key=lambda plan: (not plan.fits, plan.peak_bytes)), plans

    def _samplings(self, trio: _Trio) -> list[Sampling]:
        return [sampling for sampling in self._rehearsal.samplings if sampling.guider.model.weights == trio.model]

    def _heaviest_loras(self, trio: _Trio) -> tuple[ChosenLora, ...]:
        """Of the LoRAs that a checkpoint runs with, one after another, those that take most memory."""
        return max(
            (open_loras(sampling.guider.model) for sampling in self._samplings(trio)), key=lora_values, default=()
        )

    def _works(self, trio: _Trio, stages: Stages) -> Iterator[Work]:
        """What is to be done with a checkpoint."""
        size, prompts = stages.token_size, max(1, len(self._rehearsal.prompts))
        known: set[tuple[int, int]] = set()
        for sampling in self._samplings(trio):
            batch, _, rows, columns = sampling.latent
            references = tuple((width * size, height * size) for height, width in sampling.references)
            known |= {(columns * size, rows * size), *references}
            yield Work(columns * size, rows * size, references, batch, prompts, sampling.guided)
        for vae, width, height in self._rehearsal.pictures:
            if vae == trio.vae and (width, height) not in known:
                yield Work(width, height, prompts=prompts)

    def _kept(self, trio: _Trio) -> int:
        """How many reference tokens of a batch have their keys and values kept, at most."""
        return max(
            (
                sampling.latent[0]
                * (1 + sampling.guided)
                * sum(rows * columns for rows, columns in sampling.references)
                for sampling in self._samplings(trio)
                if sampling.guider.model.caches_references
            ),
            default=0,
        )


def _trios(rehearsal: Rehearsal) -> list[_Trio]:
    """The files that were used, three and three: each transformer with its text encoder, and an autoencoder.

    Every file is in at least one of them. Raises RequestError where a kind is missing that the others need.
    """
    vaes = list(dict.fromkeys(vae for vae, _, _ in rehearsal.pictures))
    encoders = list(dict.fromkeys(rehearsal.prompts))
    pairs = {sampling.guider.model.weights: sampling.guider.positive.encoder for sampling in rehearsal.samplings}
    if not (pairs or vaes or encoders):
        return []
    if not pairs or not vaes:
        raise RequestError(
            "The workflow makes no picture with a model from beginning to end: it needs a sampler, whose latent goes "
            "through VAEDecode to a node that saves."
        )
    trios = [_Trio(model, encoder, vaes[0]) for model, encoder in pairs.items()]
    first = trios[0]
    trios.extend(replace(first, encoder=encoder) for encoder in encoders if encoder not in pairs.values())
    trios.extend(replace(first, vae=vae) for vae in vaes[1:])
    return trios
