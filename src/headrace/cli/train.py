"""`headrace train`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import with_options

if TYPE_CHECKING:
    from headrace.train.loop import Loop

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_TOKENIZER = "tokenizer"
_RUN_OPTIONS = (
    click.argument("folder", type=_FOLDER),
    click.option("--config", type=_FILE, help="A TOML file with all settings. Default: sprite's."),
    click.option("--resume", is_flag=True, help="Go on from where the run in FOLDER was cut off, to the same bits."),
    click.option("--steps", type=click.IntRange(1), help="Train so many, whatever the settings say."),
    click.option("--decay", type=click.IntRange(1), help="Over how many of the last steps the rate falls to nothing."),
)


@click.group()
def train() -> None:
    """Train a model from scratch, on scenes that Headrace draws itself.

    \b
    headrace train autoencoder runs/autoencoder
    headrace train transformer runs/transformer --autoencoder runs/autoencoder
    headrace train distill runs/distilled --base runs/transformer --autoencoder runs/autoencoder
    headrace train export runs/distilled --autoencoder runs/autoencoder --output my-model
    """


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every training takes beside the folder of its run."""
    return with_options(command, _RUN_OPTIONS)


_samples_option = click.option(
    "--samples",
    type=click.IntRange(1),
    default=32_000,
    show_default=True,
    help="So many are encoded first, and a quarter of that for each other size.",
)


@train.command()
@_run_options
def autoencoder(folder: Path, config: Path | None, resume: bool, steps: int | None, decay: int | None) -> None:
    """Train the autoencoder, with state, log and result in FOLDER."""
    import torch

    from headrace.train.autoencoder import AutoencoderTraining, decibels, finish, train
    from headrace.train.settings import SPRITE, read_settings

    torch.set_num_threads(1)
    settings = read_settings(config or SPRITE / "autoencoder.toml", AutoencoderTraining)
    train(replace(settings, loop=_changed(settings.loop, steps, decay)), folder, resume=resume, report=click.echo)
    click.echo(f"held-out pictures: {decibels(finish(folder)):.2f} dB")


@train.command()
@_run_options
@click.option("--autoencoder", "autoencoder_folder", type=_FOLDER, required=True, help="A finished autoencoder's run.")
@_samples_option
def transformer(
    folder: Path,
    config: Path | None,
    autoencoder_folder: Path,
    resume: bool,
    samples: int,
    steps: int | None,
    decay: int | None,
) -> None:
    """Train the transformer and its text encoder, with state, log and pictures in FOLDER."""
    import torch

    from headrace.train.autoencoder import finish
    from headrace.train.samples import encode_sizes
    from headrace.train.settings import SPRITE, read_settings
    from headrace.train.transformer import TransformerTraining, prepare_tokenizer, train

    torch.set_num_threads(1)
    settings = read_settings(config or SPRITE / "transformer.toml", TransformerTraining)
    settings = replace(settings, loop=_changed(settings.loop, steps, decay))
    decoder = finish(autoencoder_folder)
    tokenizer = prepare_tokenizer(folder / _TOKENIZER, settings)
    encoded = encode_sizes(decoder, samples, settings.sizes, folder)
    train(settings, folder, encoded, tokenizer, decoder, resume=resume, report=click.echo)


@train.command()
@_run_options
@click.option("--base", "base_folder", type=_FOLDER, required=True, help="The run of the transformer to start from.")
@click.option("--autoencoder", "autoencoder_folder", type=_FOLDER, required=True, help="The autoencoder's run.")
@_samples_option
def distill(
    folder: Path,
    config: Path | None,
    base_folder: Path,
    autoencoder_folder: Path,
    resume: bool,
    samples: int,
    steps: int | None,
    decay: int | None,
) -> None:
    """Distil the transformer of a run for few steps without guidance, with state, log and pictures in FOLDER.

    Samples that were encoded for the base are taken from its folder.
    """
    import torch

    from headrace.train.autoencoder import finish
    from headrace.train.distill import Distillation, DistilledTraining, distil
    from headrace.train.run import described
    from headrace.train.samples import encode_sizes
    from headrace.train.settings import SPRITE, read_settings
    from headrace.train.transformer import TransformerTraining, prepare_tokenizer, trained

    torch.set_num_threads(1)
    settings = read_settings(config or SPRITE / "distillation.toml", Distillation)
    settings = replace(settings, loop=_changed(settings.loop, steps, decay))
    _, base = described(base_folder, TransformerTraining)
    decoder = finish(autoencoder_folder)
    tokenizer = prepare_tokenizer(base_folder / _TOKENIZER, base)
    shutil.copytree(base_folder / _TOKENIZER, folder / _TOKENIZER, dirs_exist_ok=True)
    distil(
        DistilledTraining(base, settings),
        folder,
        trained(base, base_folder),
        encode_sizes(decoder, samples, base.sizes, base_folder),
        tokenizer,
        decoder,
        resume=resume,
        report=click.echo,
    )


@train.command()
@click.argument("folder", type=_FOLDER)
@click.option("--autoencoder", "autoencoder_folder", type=_FOLDER, required=True, help="The autoencoder's run.")
@click.option("--output", type=_FOLDER, required=True, help="Where the model goes.")
@click.option("--name", default="sprite", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="The model's default. Default: the distilled one's, or 20.")
@click.option("--guidance", type=click.FloatRange(1), help="The model's default, where it is not distilled.  [4]")
def export(
    folder: Path, autoencoder_folder: Path, output: Path, name: str, steps: int | None, guidance: float | None
) -> None:
    """Write the model trained or distilled in FOLDER in diffusers' layout, in bf16, for `--model`."""
    from headrace.train.autoencoder import finish
    from headrace.train.distill import DistilledTraining
    from headrace.train.export import BASE_GUIDANCE, BASE_STEPS, ModelSettings, export
    from headrace.train.run import described, described_as_table
    from headrace.train.transformer import TransformerTraining, prepare_tokenizer, trained

    distilled = "distillation" in described_as_table(folder)[1]
    if distilled:
        whole = described(folder, DistilledTraining)[1]
        settings, least = whole.base, whole.distillation.steps
    else:
        settings, least = described(folder, TransformerTraining)[1], BASE_STEPS
    export(
        output,
        trained(settings, folder),
        finish(autoencoder_folder),
        prepare_tokenizer(folder / _TOKENIZER, settings).tokenizer,
        settings.text,
        ModelSettings(
            name,
            steps or least,
            guidance=1.0 if distilled else guidance or BASE_GUIDANCE,
            distilled=distilled,
            default_size=settings.sizes[0],
        ),
    )
    click.echo(f"wrote {output}")


@train.command()
@click.argument("model", default="sprite", metavar="NAME|FOLDER|HUB_ID")
@click.option("--output", type=click.Path(path_type=Path), help="Default: preview.safetensors beside the autoencoder.")
@click.option("--scenes", type=click.IntRange(8, 10_000), default=200, show_default=True, help="So many are fitted.")
@click.option("--size", default="128x128", show_default=True, metavar="WxH", help="Of the scenes.")
def preview(model: str, output: Path | None, scenes: int, size: str) -> None:
    """Fit the matrix with which MODEL's steps are shown, on its autoencoder."""
    from headrace.checkpoints import open_checkpoint
    from headrace.flow.preview import FILE, write_matrix
    from headrace.recipe import parse_size
    from headrace.train.preview import fit_preview

    checkpoint = open_checkpoint(model)
    fitted = fit_preview(checkpoint, scenes, parse_size(size))
    target = output or checkpoint.autoencoder.files[0].parent / FILE
    write_matrix(fitted.matrix, target)
    click.echo(f"wrote {target} ({fitted.decibels:.1f} dB at an eighth of the size, on scenes that were not fitted)")


def _changed(loop: Loop, steps: int | None, decay: int | None) -> Loop:
    return replace(loop, steps=steps or loop.steps, decay=decay or loop.decay)
