"""Trains the transformer together with its text encoder, by rectified flow on latents of drawn scenes.

For a latent x, noise e and a time t in 0..1 the network sees (1 - t) x + t e and predicts e - x (Liu et al. 2022;
Lipman et al. 2022). Prompts go through the tokenizer and the template that the finished model will use.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from headrace.catalog import TextSettings
from headrace.flow.conventions import CONVENTIONS
from headrace.flow.denoise import denoise
from headrace.flow.latents import draw_noise, from_tokens, picture_positions, text_positions, to_tokens
from headrace.flow.references import tensor_to_image
from headrace.flow.schedule import schedule
from headrace.nn.autoencoder import Autoencoder
from headrace.nn.config import LanguageModelConfig, TransformerConfig
from headrace.nn.language_model import LanguageModel
from headrace.nn.transformer import Transformer
from headrace.text.tokens import PromptTokenizer, load_tokenizer
from headrace.train import run, shards
from headrace.train.latents import Latents
from headrace.train.loop import Loop, learn
from headrace.train.tokenizer import learn_tokenizer, save_tokenizer
from headrace.world.captions import LANGUAGES, caption
from headrace.world.layout import scene

ADAM_ONLY = ("embed_tokens", "img_in", "txt_in", "time_in", "modulation", "final_layer")
"""Embeddings and the layers at the network's ends, which Muon does not suit."""

CAPTIONS_FOR_TOKENIZER = 20_000

PREVIEW_PROMPTS = (
    "a rocket on a purple background",
    "a cat on a yellow background",
    "an apple on a blue background",
    "a robot on a green background",
    "a castle on a pink background",
    "an owl on a white background",
    "a small fish on a red background",
    "a guitar on a black background",
    "a penguin on an orange background",
    "a sunflower on a turquoise background",
    "a frog on a brown background",
    "a crown on a grey background",
    "a cat left of a dog, green background",
    "a star above a house on a blue background",
    "an apple right of a banana on a pink background",
    "a medium-sized ghost on a #2E86DE background",
)

SPRITE = Loop(
    steps=2200,
    batch=64,
    warm_up=50,
    decay=1100,
    muon_rate=5e-3,
    adam_rate=2e-3,
    average_decay=0.996,
    save_every=100,
    log_every=25,
)
"""As the shipped weights were trained."""


@dataclass(frozen=True)
class TransformerTraining:
    """A run. ``sizes`` are (width, height), the first being the model's default.

    After every ``main_size_steps`` steps with pictures of that size comes one with another of the sizes, in turn.
    ``time_mean`` and ``time_deviation`` are of the normal distribution whose sigmoid is the time. ``empty_share``: how
    often the caption is replaced by nothing, so that guidance against the empty prompt works.
    """

    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            context_in_dim=576,
            hidden_size=256,
            num_heads=4,
            depth=2,
            depth_single_blocks=6,
            axes_dim=(16, 16, 16, 16),
            guidance_embed=False,
        )
    )
    language_model: LanguageModelConfig = field(
        default_factory=lambda: LanguageModelConfig(
            vocab_size=686,
            hidden_size=192,
            intermediate_size=512,
            num_layers=4,
            num_heads=3,
            num_kv_heads=3,
            head_dim=64,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            qk_norm=True,
            tie_word_embeddings=True,
        )
    )
    text: TextSettings = field(default_factory=lambda: TextSettings("qwen", (2, 3, 4), "right", 96))
    sizes: tuple[tuple[int, int], ...] = ((128, 128), (160, 96), (96, 160))
    main_size_steps: int = 4
    loop: Loop = SPRITE
    time_mean: float = 0.8
    time_deviation: float = 1.2
    empty_share: float = 0.1
    preview_steps: int = 8


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

    def forward(self, latent: Tensor, positions: Tensor, times: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """latent (B, N, C), positions (N, 4), times (B,), token_ids and mask (B, L) -> velocity (B, N, C)."""
        text = text_positions(token_ids.shape[1])
        return self.transformer(latent, positions, times, self.context(token_ids, mask), text)


class Batch(NamedTuple):
    """One step's samples: latent, noise (B, N, C); times (B,); token_ids, mask (B, L)."""

    latent: Tensor
    noise: Tensor
    times: Tensor
    token_ids: Tensor
    mask: Tensor


def train(
    config: TransformerTraining,
    folder: Path,
    latents: Sequence[Latents],
    tokenizer: PromptTokenizer,
    autoencoder: Autoencoder,
    *,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Trains to the end and leaves the state and pictures in ``folder``; see `loop.learn`.

    latents: for each of ``config.sizes``, those of the scenes with seeds 0, 1, ... at that size.
    """
    torch.manual_seed(config.loop.seed)
    network = Network(config)

    def save_pictures(step: int, average: Mapping[str, Tensor]) -> None:
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(average)
        pictures = preview(averaged, config, tokenizer, autoencoder, PREVIEW_PROMPTS)
        run.save_grid(pictures, folder / "pictures" / f"{step:06}.png")

    learn(
        network,
        functools.partial(_losses, network, config, latents, tokenizer),
        config.loop,
        folder,
        adam_only=ADAM_ONLY,
        settings=dataclasses.asdict(config),
        resume=resume,
        report=report,
        on_save=save_pictures,
    )


def _losses(
    network: Network, config: TransformerTraining, latents: Sequence[Latents], tokenizer: PromptTokenizer, step: int
) -> list[shards.Loss]:
    which = size_index(config, step)
    width, height = config.sizes[which]
    sample = draw_batch(config, latents[which], (width, height), tokenizer, step)
    positions = picture_positions(height // 16, width // 16)
    parts = zip(*(tensor.chunk(config.loop.shards) for tensor in sample), strict=True)
    return [functools.partial(_loss, network, positions, Batch(*part)) for part in parts]


def _loss(network: Network, positions: Tensor, sample: Batch) -> tuple[Tensor, dict[str, float]]:
    times = sample.times[:, None, None]
    noisy = (1 - times) * sample.latent + times * sample.noise
    with torch.autocast("cpu", torch.bfloat16):
        velocity = network(noisy, positions, sample.times, sample.token_ids, sample.mask)
    return (velocity.float() - (sample.noise - sample.latent)).square().mean(), {}


def size_index(config: TransformerTraining, step: int) -> int:
    """Which of ``config.sizes`` the pictures of this step have."""
    period = config.main_size_steps + 1
    if len(config.sizes) == 1 or step % period != config.main_size_steps:
        return 0
    return 1 + step // period % (len(config.sizes) - 1)


def draw_batch(
    config: TransformerTraining, latents: Latents, size: tuple[int, int], tokenizer: PromptTokenizer, step: int
) -> Batch:
    """The samples of one step, pictures of one size: a pure function of the run's seed and the step."""
    generator = run.step_generator(config.loop.seed, step)
    chosen = torch.randint(len(latents), (config.loop.batch,), generator=generator)
    latent = torch.from_numpy(latents[chosen.numpy()]).float()
    noise = torch.randn(latent.shape, generator=generator)
    # Times are spread evenly over the batch rather than drawn one by one, which calms the loss.
    even = (torch.arange(config.loop.batch) + torch.rand(config.loop.batch, generator=generator)) / config.loop.batch
    times = torch.sigmoid(config.time_mean + config.time_deviation * torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    wording = random.Random(f"wording/{config.loop.seed}/{step}")
    prompts = [
        ""
        if wording.random() < config.empty_share
        else caption(scene(int(seed), *size), wording.getrandbits(48), language=wording.choice(tuple(LANGUAGES)))
        for seed in chosen
    ]
    token_ids, mask = tokenize(tokenizer, prompts)
    return Batch(latent, noise, times, token_ids, mask)


def prepare_tokenizer(folder: Path, config: TransformerTraining) -> PromptTokenizer:
    """The tokenizer in ``folder``; where there is none, it is learned from captions of the first scenes."""
    file = folder / "tokenizer.json"
    if not file.exists():
        captions = (
            caption(scene(seed), seed, language=language)
            for seed in range(CAPTIONS_FOR_TOKENIZER)
            for language in LANGUAGES
        )
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
    positions = picture_positions(height, width)
    token_ids, mask = tokenize(tokenizer, prompts)
    convention = CONVENTIONS["diffusers"]
    shape = (autoencoder.config.token_channels, height, width)
    noise = torch.cat([draw_noise(seed, shape, convention, torch.zeros(0)) for seed in range(len(prompts))])

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        times = torch.full((len(prompts),), sigma)
        return network(latent, positions, times, token_ids, mask)

    latent = to_tokens(noise)
    for step in denoise(velocity, latent, schedule(height * width, config.preview_steps), convention, torch.float32):
        latent = step.latent
    decoded = autoencoder.decode(from_tokens(latent, height, width))
    return [tensor_to_image(picture[None], convention.rounds_pixels) for picture in decoded]
