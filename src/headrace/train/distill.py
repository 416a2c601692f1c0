"""Distils a trained transformer into one that needs few steps and no guidance.

Between two neighbouring times of the student's schedule the teacher takes several guided steps; the student learns the
one velocity that leads to where they end. That is progressive distillation (Salimans and Ho 2022, arXiv:2202.00512)
with its rounds taken at once, of a guided teacher (Meng et al. 2022, arXiv:2210.03142). The text encoder stays as it
is.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headrace.flow.schedule import schedule
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.transformer import Transformer
from headrace.text.tokens import PromptTokenizer
from headrace.train.export import ModelSettings
from headrace.train.loop import Loop
from headrace.train.samples import Samples
from headrace.train.transformer import (
    Batch,
    Network,
    Positions,
    TransformerTraining,
    learn_pictures,
    tokenize,
    velocity,
)


@dataclass(frozen=True)
class Distillation:
    """A run. ``steps``: the student's. ``teacher_steps``: the teacher's for each of them, with this ``guidance``."""

    steps: int
    teacher_steps: int
    guidance: float
    loop: Loop


@dataclass(frozen=True)
class DistilledTraining:
    """All settings that a distilled model comes from: those of its teacher's run too."""

    base: TransformerTraining
    distillation: Distillation

    def sampling(self) -> TransformerTraining:
        """The teacher's settings with the student's loop and steps: what batches and previews are drawn by."""
        return dataclasses.replace(
            self.base, loop=self.distillation.loop, preview_steps=self.distillation.steps, empty_share=0.0
        )


def distil(
    config: DistilledTraining,
    folder: Path,
    teacher: Network,
    samples: Sequence[Samples],
    tokenizer: PromptTokenizer,
    autoencoder: Autoencoder,
    *,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Trains to the end and leaves the state and pictures in ``folder``; see `loop.learn`.

    samples: as for `transformer.train`, with captions; none is left empty.
    """
    student = copy.deepcopy(teacher).requires_grad_(False)
    student.transformer.requires_grad_(True)
    teacher = teacher.requires_grad_(False)
    learn_pictures(
        student,
        functools.partial(loss, student, teacher, config.distillation, no_prompt(teacher, tokenizer)),
        config.sampling(),
        ModelSettings("sprite", config.distillation.steps, 1.0, distilled=True, default_size=config.base.sizes[0]),
        folder,
        samples,
        tokenizer,
        autoencoder,
        settings=dataclasses.asdict(config),
        resume=resume,
        report=report,
    )


@torch.no_grad()
def no_prompt(teacher: Network, tokenizer: PromptTokenizer) -> Tensor:
    """The context of an empty prompt, (1, L, width), which guidance leads away from."""
    with torch.autocast("cpu", torch.bfloat16):
        return teacher.context(*tokenize(tokenizer, [""]))


def loss(
    student: Network, teacher: Network, config: Distillation, nothing: Tensor, batch: Batch, where: Positions
) -> Tensor:
    """The student's error on a batch, whose times do not matter. nothing: see `no_prompt`."""
    count, tokens, _ = batch.latent.shape
    times = torch.tensor(schedule(tokens, config.steps))
    # Every step of the schedule is learned from alike in every batch.
    first = torch.arange(count) % config.steps
    now, after = times[first], times[first + 1]
    noisy = (1 - now[:, None, None]) * batch.latent + now[:, None, None] * batch.noise
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            context = teacher.context(batch.token_ids, batch.mask)
            contexts = context, nothing.expand_as(context)
            follow = functools.partial(guided, teacher.transformer, contexts, batch.references, where, config.guidance)
            reached = solve(follow, noisy, now, after, config.teacher_steps)
        direct = velocity(student.transformer, noisy, now, context, batch.references, where)
    target = (reached - noisy) / (after - now)[:, None, None]
    return (direct.float() - target).square().mean()


def guided(
    transformer: Transformer,
    contexts: tuple[Tensor, Tensor],
    references: Tensor,
    where: Positions,
    guidance: float,
    latent: Tensor,
    times: Tensor,
) -> Tensor:
    """The velocity with classifier-free guidance (Ho and Salimans 2022): contexts of the prompt and of nothing."""
    asked, free = (velocity(transformer, latent, times, context, references, where).float() for context in contexts)
    return free + guidance * (asked - free)


def solve(follow: Callable[[Tensor, Tensor], Tensor], latent: Tensor, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Euler's method in equal steps from the times ``start`` to ``end``, each (B,): where the latent (B, N, C) gets."""
    stride = (end - start) / steps
    for index in range(steps):
        latent = latent + stride[:, None, None] * follow(latent, start + index * stride)
    return latent
