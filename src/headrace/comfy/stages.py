"""One checkpoint at work for a graph: text, pictures, sampling, each with its network where a plan has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from headrace.checkpoints import Checkpoint
from headrace.checkpoints.lora_choice import ChosenLora
from headrace.comfy.sampling import sample
from headrace.comfy.values import Guider
from headrace.device import choose_precision, choose_text_precision, dtype_of, multiplies_bf16
from headrace.flow.conventions import CONVENTIONS
from headrace.memory.networks import Networks
from headrace.memory.plan import Budget, Plan, Work, describe_checkpoint, plan_work
from headrace.text.encode import encode_tokens
from headrace.text.tokens import PromptTokenizer, load_tokenizer

CONVENTION = CONVENTIONS["comfy"]


class Stages:
    """What nodes ask of one checkpoint, while it is `within` a plan.

    Latents are (B, C, h, w), pixels (B, H, W, 3) in 0..1, both float32 on the CPU. precision, text_precision: as
    `headrace.load` takes them; memory, host_memory in bytes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str,
        text_precision: str | None,
        device: torch.device,
        memory: int | None = None,
        host_memory: int | None = None,
    ) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.memory, self.host_memory = memory, host_memory
        self.precision = choose_precision(precision, checkpoint.precision, device)
        self.text_precision = choose_text_precision(
            text_precision or precision, checkpoint.text_precision, self.precision, device
        )
        self._networks = Networks(checkpoint, self.precision, self.text_precision, device)
        self._dtype = dtype_of(self.precision, device)

    @property
    def token_size(self) -> int:
        """Side in pixels of the square that a token stands for."""
        return self.checkpoint.autoencoder_config.token_size

    @property
    def held_bytes(self) -> int:
        """Of the device's memory, by networks."""
        return self._networks.held_bytes

    def release(self) -> None:
        """Let go of all networks."""
        self._networks.release()

    def use(self, loras: tuple[ChosenLora, ...]) -> None:
        """Sample with these LoRAs beside the transformer from now on, for as long as the plan is followed."""
        self._networks.use(loras)

    def plan(
        self, works: Sequence[Work], budget: Budget, kept_tokens: int = 0, loras: tuple[ChosenLora, ...] = ()
    ) -> Plan:
        """How all of this fits into a budget.

        kept_tokens: reference tokens of a whole batch whose keys and values are kept from the first step on. loras:
        the heaviest that will be used.
        """
        config, value_bytes = self.checkpoint.transformer_config, self._dtype.itemsize
        blocks = config.depth + config.depth_single_blocks
        kept = 2 * kept_tokens * config.hidden_size * value_bytes * blocks
        model, rounded = describe_checkpoint(self.checkpoint, loras), multiplies_bf16(self.device)
        budget = replace(budget, process=budget.process + kept)
        return plan_work(model, works, budget, self.precision, self.text_precision, rounded)

    def within(self, plan: Plan) -> AbstractContextManager[None]:
        """Follow the plan: see `Networks.within`."""
        return self._networks.within(plan)

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """Prompt to token ids."""
        return load_tokenizer(self.checkpoint.tokenizer_file, self.checkpoint.text)

    def encode_prompt(self, text: str) -> Tensor:
        """(1, L, width) embeddings, in the precision of the transformer."""
        lent = self._networks.language_model()
        tokens, settings = self.tokenizer(text), self.checkpoint.text
        states = encode_tokens(lent.network, tokens, settings, CONVENTION, self.device, lent.blocks())
        return states.to("cpu", self._dtype)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents of pixels whose sides are multiples of the autoencoder's token size."""
        autoencoder = self._networks.autoencoder()
        images = pixels.movedim(-1, 1) * 2 - 1
        return torch.cat(
            [autoencoder.encode(image[None].to(self.device, self._dtype)).float().cpu() for image in images]
        )

    def decode(self, samples: Tensor) -> Tensor:
        """Pixels of latents, picture by picture."""
        autoencoder = self._networks.autoencoder()
        images = []
        for latent in samples:
            decoded = autoencoder.decode(latent[None].to(self.device, self._dtype)).float()
            images.append(((decoded + 1) / 2).clamp(0, 1).movedim(1, -1).cpu())
        return torch.cat(images)

    def sample(
        self,
        guider: Guider,
        noise: Tensor,
        latent: Tensor,
        sigmas: Sequence[float],
        mask: Tensor | None = None,
        advance: Callable[[int], None] = lambda steps: None,
    ) -> tuple[Tensor, Tensor]:
        """The latent after the last step, as if without noise, and the finished one foreseen there.

        advance: called after every step. Both are `latent` where there is no step.
        """
        made = foreseen = latent
        for step in sample(self._forward, guider, noise.to(self.device), latent.to(self.device), sigmas, mask):
            made, foreseen = step.latent, step.predicted
            advance(1)
        if sigmas and sigmas[-1] > 0:
            made = made / (1 - sigmas[-1])
        return made.cpu(), foreseen.cpu()

    def _forward(self, img: Tensor, ids: Tensor, time: Tensor, context: Tensor, *inputs: Any, **options: Any) -> Tensor:
        lent = self._networks.transformer()
        if options["references"] is not None:
            options["references"] = options["references"].to(self._dtype)
        rounded = img.to(self._dtype), ids, time, context.to(self._dtype)
        velocity: Tensor = lent.network(*rounded, *inputs, **options, blocks=lent.blocks())
        return velocity
