"""`headrace train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from headrace.train.loop import Loop

_FOLDER = click.Path(path_type=Path, file_okay=False)
_TOKENIZER = "tokenizer"


@click.group()
def train() -> None:
    """Train a model from scratch, on scenes that Headrace draws itself.

    \b
    headrace train autoencoder runs/autoencoder
    headrace train transformer runs/transformer --autoencoder runs/autoencoder
    headrace train export runs/transformer --autoencoder runs/autoencoder --output my-model
    """


@train.command()
@click.argument("folder", type=_FOLDER)
@click.option("--resume", is_flag=True, help="Go on from where the run in FOLDER was cut off, to the same bits.")
@click.option("--steps", type=click.IntRange(1), help="Default: as sprite was trained.")
@click.option("--decay", type=click.IntRange(1), help="Over how many of the last steps the rate falls to nothing.")
@click.option("--seed", type=click.IntRange(0), help="Default: sprite's.")
def autoencoder(folder: Path, resume: bool, steps: int | None, decay: int | None, seed: int | None) -> None:
    """Train the autoencoder, with state, log and result in FOLDER."""
    import torch

    from headrace.train.autoencoder import AutoencoderTraining, decibels, finish, train

    torch.set_num_threads(1)
    default = AutoencoderTraining()
    config = replace(default, loop=_changed(default.loop, steps, decay, seed))
    train(config, folder, resume=resume, report=click.echo)
    click.echo(f"held-out pictures: {decibels(finish(folder, config)):.2f} dB")


@train.command()
@click.argument("folder", type=_FOLDER)
@click.option("--autoencoder", "autoencoder_folder", type=_FOLDER, required=True, help="A finished autoencoder's run.")
@click.option("--resume", is_flag=True, help="Go on from where the run in FOLDER was cut off, to the same bits.")
@click.option("--scenes", type=click.IntRange(1), default=16_000, show_default=True, help="So many are encoded first.")
@click.option("--steps", type=click.IntRange(1), help="Default: as sprite was trained.")
@click.option("--decay", type=click.IntRange(1), help="Over how many of the last steps the rate falls to nothing.")
@click.option("--seed", type=click.IntRange(0), help="Default: sprite's.")
def transformer(
    folder: Path,
    autoencoder_folder: Path,
    resume: bool,
    scenes: int,
    steps: int | None,
    decay: int | None,
    seed: int | None,
) -> None:
    """Train the transformer and its text encoder, with state, log and pictures in FOLDER."""
    import torch

    from headrace.train.autoencoder import AutoencoderTraining, finish
    from headrace.train.latents import encode_scenes
    from headrace.train.transformer import TransformerTraining, prepare_tokenizer, train

    torch.set_num_threads(1)
    default = TransformerTraining()
    config = replace(default, loop=_changed(default.loop, steps, decay, seed))
    decoder = finish(autoencoder_folder, AutoencoderTraining())
    tokenizer = prepare_tokenizer(folder / _TOKENIZER, config)
    latents = [
        encode_scenes(decoder, scenes, (width, height), folder / f"latents-{scenes}-{width}x{height}.npy")
        for width, height in config.sizes
    ]
    train(config, folder, latents, tokenizer, decoder, resume=resume, report=click.echo)


@train.command()
@click.argument("folder", type=_FOLDER)
@click.option("--autoencoder", "autoencoder_folder", type=_FOLDER, required=True, help="The autoencoder's run.")
@click.option("--output", type=_FOLDER, required=True, help="Where the model goes.")
@click.option("--name", default="sprite", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="The model's default when used.")
def export(folder: Path, autoencoder_folder: Path, output: Path, name: str, steps: int) -> None:
    """Write the model trained in FOLDER in diffusers' layout, in bf16, for `--model`."""
    from headrace.train.autoencoder import AutoencoderTraining, finish
    from headrace.train.export import ModelSettings, export
    from headrace.train.transformer import TransformerTraining, prepare_tokenizer, trained

    config = TransformerTraining()
    export(
        output,
        trained(config, folder),
        finish(autoencoder_folder, AutoencoderTraining()),
        prepare_tokenizer(folder / _TOKENIZER, config).tokenizer,
        config.text,
        ModelSettings(name, steps, guidance=1.0, distilled=True, default_size=config.sizes[0]),
    )
    click.echo(f"wrote {output}")


def _changed(loop: Loop, steps: int | None, decay: int | None, seed: int | None) -> Loop:
    return replace(loop, steps=steps or loop.steps, decay=decay or loop.decay, seed=loop.seed if seed is None else seed)
