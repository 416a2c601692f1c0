"""Trains the transformer together with its text encoder, by rectified flow on latents of what the world draws.

For a latent x, noise e and a time t in 0..1 the network sees (1 - t) x + t e and predicts e - x (Liu et al. 2022;
Lipman et al. 2022); references join the sequence as they are. Prompts go through the tokenizer and the template that
the finished model will use.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from headrace.catalog import TextSettings
from headrace.flow.conventions import CONVENTIONS
from headrace.flow.denoise import denoise
from headrace.flow.latents import (
    draw_noise,
    from_tokens,
    picture_positions,
    reference_positions,
    text_positions,
    to_tokens,
)
from headrace.flow.references import tensor_to_image
from headrace.flow.schedule import schedule
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import LanguageModelConfig, TransformerConfig
from headrace.nn.language_model import LanguageModel
from headrace.nn.transformer import Transformer
from headrace.text.tokens import PromptTokenizer, load_tokenizer
from headrace.train import run, shards
from headrace.train.export import BASE_GUIDANCE, BASE_STEPS, ModelSettings
from headrace.train.loop import Loop, learn
from headrace.train.samples import Kind, Samples
from headrace.train.scores import append_scores
from headrace.train.tokenizer import learn_tokenizer, save_tokenizer
from headrace.world.captions import LANGUAGES
from headrace.world.tasks import TASKS, sample, say

ADAM_ONLY = ("embed_tokens", "img_in", "txt_in", "time_in", "modulation", "final_layer")
"""Embeddings and the layers at the network's ends, which Muon does not suit."""

SAMPLES_FOR_TOKENIZER = 20_000

PREVIEW_PROMPTS = (
    "a rocket on a purple background",
    "a cat on a yellow background",
    "a small fish on a red background",
    "three stars on a blue background",
    "two red apples on a white background",
    "a penguin on a striped orange and grey background",
    "a crown on a background that fades from black to pink",
    "a medium-sized ghost on a #2E86DE background",
    "a cat left of a dog, green background",
    "a star above a house on a blue background",
    "an owl between a banana and a guitar on a white background",
    "a sunflower in the top left corner on a turquoise background",
    "a waving robot on a green background",
    'a frog on a brown background with the white text "HELLO" at the top',
    "une pomme à droite d'une banane sur un fond rose",
    'the red text "42" on a yellow background',
)


@dataclass(frozen=True)
class TransformerTraining:
    """A run. ``sizes`` are (width, height) of targets, the first being the model's default.

    After every ``main_size_steps`` steps with pictures of that size comes one with another of the sizes, in turn.
    ``time_mean`` and ``time_deviation`` are of the normal distribution whose sigmoid is the time. ``empty_share``: how
    often the caption is replaced by nothing, so that guidance against the empty prompt works. Every ``score_every``
    steps, a multiple of the loop's ``save_every``, the model is scored on ``score_pictures`` pictures of each suite.
    """

    transformer: TransformerConfig
    language_model: LanguageModelConfig
    text: TextSettings
    sizes: tuple[tuple[int, int], ...]
    main_size_steps: int
    loop: Loop
    time_mean: float
    time_deviation: float
    empty_share: float
    preview_steps: int
    score_every: int
    score_pictures: int


class Network(nn.Module):
    """What is trained: prompt tokens and a noisy latent to the velocity."""

    def __init__(self, config: TransformerTraining) -> None:
        super().__init__()
        self.layers = config.text.layers
        self.transformer = Transformer(config.transformer)
        model = config.language_model
        self.language_model = LanguageModel(model, layers=max(self.layers), norm=max(self.layers) == model.num_layers)
        # Every block starts as the identity and the velocity at zero (Peebles and Xie 2022, "adaLN-Zero").
        for name, parameter in self.transformer.named_parameters():
            if "modulation" in name or "final_layer" in name:
                nn.init.zeros_(parameter)

    def context(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) -> (B, L, context width)."""
        return self.language_model.hidden_states(token_ids, mask, self.layers)

    def forward(
        self, latent: Tensor, times: Tensor, token_ids: Tensor, mask: Tensor, references: Tensor, where: Positions
    ) -> Tensor:
        """latent (B, N, C), times (B,), token_ids and mask (B, L), references (B, M, C) -> velocity (B, N, C)."""
        return velocity(self.transformer, latent, times, self.context(token_ids, mask), references, where)


class Positions(NamedTuple):
    """Where the tokens of a batch lie: of the picture (N, 4), and of the references (M, 4)."""

    picture: Tensor
    references: Tensor


class Batch(NamedTuple):
    """One step's samples: latent, noise (B, N, C); times (B,); token_ids, mask (B, L); references (B, M, C)."""

    latent: Tensor
    noise: Tensor
    times: Tensor
    token_ids: Tensor
    mask: Tensor
    references: Tensor


def velocity(
    transformer: Transformer, latent: Tensor, times: Tensor, context: Tensor, references: Tensor, where: Positions
) -> Tensor:
    """latent (B, N, C), times (B,), context (B, L, width), references (B, M, C) -> velocity (B, N, C)."""
    shown = references.shape[1] > 0
    return transformer(
        latent,
        where.picture,
        times,
        context,
        text_positions(context.shape[1]),
        references=references if shown else None,
        reference_ids=where.references if shown else None,
    )


def train(
    config: TransformerTraining,
    folder: Path,
    samples: Sequence[Samples],
    tokenizer: PromptTokenizer,
    autoencoder: Autoencoder,
    *,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Trains to the end and leaves the state and pictures in ``folder``; see `loop.learn`.

    samples: for each of ``config.sizes``, those to learn from at that size.
    """
    torch.manual_seed(config.loop.seed)
    network = Network(config)
    learn_pictures(
        network,
        functools.partial(_loss, network),
        config,
        ModelSettings("sprite-base", BASE_STEPS, BASE_GUIDANCE, distilled=False, default_size=config.sizes[0]),
        folder,
        samples,
        tokenizer,
        autoencoder,
        settings=dataclasses.asdict(config),
        resume=resume,
        report=report,
    )


def learn_pictures(
    network: Network,
    loss: Callable[[Batch, Positions], Tensor],
    config: TransformerTraining,
    model: ModelSettings,
    folder: Path,
    samples: Sequence[Samples],
    tokenizer: PromptTokenizer,
    autoencoder: Autoencoder,
    *,
    settings: Mapping[str, object],
    resume: bool,
    report: Callable[[str], None],
) -> None:
    """Trains a network on batches of the samples by ``loss``; draws `PREVIEW_PROMPTS` at every save, and scores it.

    config: what batches and previews are drawn by. model: what it becomes. The rest as for `loop.learn`.
    """

    def losses(step: int) -> list[shards.Loss]:
        some = samples[size_index(config, step)]
        kind = kind_of(config, some, step)
        where = positions_of(some, kind)
        batch = draw_batch(config, some, kind, tokenizer, step)
        parts = zip(*(tensor.chunk(config.loop.shards) for tensor in batch), strict=True)
        return [functools.partial(with_task, kind.task, Batch(*part), where) for part in parts]

    def with_task(task: str, batch: Batch, where: Positions) -> tuple[Tensor, dict[str, float]]:
        value = loss(batch, where)
        return value, {name: value.item() if name == task else math.nan for name in TASKS}

    def look(step: int, average: Mapping[str, Tensor]) -> None:
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(average)
        pictures = preview(averaged, config, tokenizer, autoencoder, PREVIEW_PROMPTS)
        run.save_grid(pictures, folder / "pictures" / f"{step:06}.png")
        if step % config.score_every == 0:
            append_scores(
                folder, step, averaged, autoencoder, tokenizer.tokenizer, config.text, model, config.score_pictures
            )

    learn(
        network,
        losses,
        config.loop,
        folder,
        adam_only=ADAM_ONLY,
        settings=settings,
        resume=resume,
        report=report,
        on_save=look,
    )


def _loss(network: Network, batch: Batch, where: Positions) -> Tensor:
    times = batch.times[:, None, None]
    noisy = (1 - times) * batch.latent + times * batch.noise
    with torch.autocast("cpu", torch.bfloat16):
        found = network(noisy, batch.times, batch.token_ids, batch.mask, batch.references, where)
    return (found.float() - (batch.noise - batch.latent)).square().mean()


def positions_of(samples: Samples, kind: Kind) -> Positions:
    """Where the tokens of samples of this kind lie."""
    grids = samples.reference_grids(kind)
    return Positions(
        picture_positions(*samples.target_grid()), reference_positions(grids) if grids else torch.zeros(0, 4)
    )


def size_index(config: TransformerTraining, step: int) -> int:
    """Which of ``config.sizes`` the pictures of this step have."""
    period = config.main_size_steps + 1
    if len(config.sizes) == 1 or step % period != config.main_size_steps:
        return 0
    return 1 + step // period % (len(config.sizes) - 1)


def kind_of(config: TransformerTraining, samples: Samples, step: int) -> Kind:
    """The kind of a step's samples: by lot, as often as there are samples of it."""
    chance = random.Random(f"kind/{config.loop.seed}/{step}")
    return chance.choices(list(samples.seeds), [len(seeds) for seeds in samples.seeds.values()])[0]


def draw_batch(
    config: TransformerTraining, samples: Samples, kind: Kind, tokenizer: PromptTokenizer, step: int
) -> Batch:
    """The samples of one step, all of one kind: a pure function of the run's seed and the step."""
    generator = run.step_generator(config.loop.seed, step)
    seeds = samples.seeds[kind]
    chosen = torch.randint(len(seeds), (config.loop.batch,), generator=generator).numpy()
    latent, references = samples.latents(kind, chosen)
    noise = torch.randn(latent.shape, generator=generator)
    # Times are spread evenly over the batch rather than drawn one by one, which calms the loss.
    even = (torch.arange(config.loop.batch) + torch.rand(config.loop.batch, generator=generator)) / config.loop.batch
    times = torch.sigmoid(config.time_mean + config.time_deviation * torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    chance = random.Random(f"wording/{config.loop.seed}/{step}")
    prompts = [
        "" if chance.random() < config.empty_share else _worded(int(seed), samples.size, chance)
        for seed in seeds[chosen]
    ]
    return Batch(latent, noise, times, *tokenize(tokenizer, prompts), references)


def _worded(seed: int, size: tuple[int, int], chance: random.Random) -> str:
    """What the sample asks for, in any language and wording."""
    asked = dataclasses.replace(sample(seed, *size), language=chance.choice(tuple(LANGUAGES)))
    return say(asked, chance.getrandbits(48))


def prepare_tokenizer(folder: Path, config: TransformerTraining) -> PromptTokenizer:
    """The tokenizer in ``folder``; where there is none, it is learned from the first samples' captions."""
    file = folder / "tokenizer.json"
    if not file.exists():
        captions = (sample(seed).caption for seed in range(SAMPLES_FOR_TOKENIZER))
        save_tokenizer(learn_tokenizer(captions, config.language_model.vocab_size), folder)
    return load_tokenizer(file, config.text)


def trained(config: TransformerTraining, folder: Path) -> Network:
    """The network in a run folder, by the moving average of its weights."""
    network = Network(config).eval().requires_grad_(False)
    network.load_state_dict(run.read_average(folder))
    return network


def tokenize(tokenizer: PromptTokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> token ids and mask, each (B, L)."""
    tokens = [tokenizer(prompt) for prompt in prompts]
    return torch.cat([one.ids for one in tokens]), torch.cat([one.mask for one in tokens])


@torch.no_grad()
def preview(
    network: Network,
    config: TransformerTraining,
    tokenizer: PromptTokenizer,
    autoencoder: Autoencoder,
    prompts: Sequence[str],
) -> list[Image.Image]:
    """One picture a prompt, with seeds 0, 1, ...; without guidance."""
    width, height = (side // 16 for side in config.sizes[0])
    where = Positions(picture_positions(height, width), torch.zeros(0, 4))
    token_ids, mask = tokenize(tokenizer, prompts)
    none = torch.zeros(len(prompts), 0, autoencoder.config.token_channels)
    convention = CONVENTIONS["diffusers"]
    shape = (autoencoder.config.token_channels, height, width)
    noise = torch.cat([draw_noise(seed, shape, convention, torch.zeros(0)) for seed in range(len(prompts))])

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        times = torch.full((len(prompts),), sigma)
        return network(latent, times, token_ids, mask, none, where)

    latent = to_tokens(noise)
    for step in denoise(velocity, latent, schedule(height * width, config.preview_steps), convention, torch.float32):
        latent = step.latent
    decoded = autoencoder.decode(from_tokens(latent, height, width))
    return [tensor_to_image(picture[None], convention.rounds_pixels) for picture in decoded]
