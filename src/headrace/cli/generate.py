"""`headrace generate`."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.editing import editing_options, report_references, report_source
from headrace.cli.graphics import step_viewer
from headrace.cli.marking import marking_options
from headrace.cli.options import checkpoint_options, device_options
from headrace.cli.prompts import STANDARD, prompt_argument, read_prompt
from headrace.cli.terminal import is_terminal, printable, progress_bar
from headrace.cli.upsampling import Upsampling, check_after, check_before, rewritten, upsampling_options
from headrace.errors import RequestError
from headrace.memory.process import peak_bytes
from headrace.memory.sizes import parse_bytes
from headrace.pictures import check_output, picture_format, write_file
from headrace.provenance.metadata import check_prompt_fits
from headrace.recipe import (
    check_count,
    check_guidance,
    check_seed,
    check_steps,
    draw_seed,
    parse_size,
    taken_steps,
)

if TYPE_CHECKING:
    from headrace.cli.editing import OpenedReference
    from headrace.cli.marking import Marking
    from headrace.pipeline import Picture, Step

_FILE = click.Path(path_type=Path)


@click.command()
@prompt_argument
@click.option(
    "-o",
    "--output",
    type=_FILE,
    metavar="FILE",
    help="Where to write: .png, .jpg or .webp, or - for a PNG on standard output. With -n, the seed is added to each "
    "name. Default: headrace-SEED.png, or a new name where that is taken.",
)
@click.option(
    "--ref",
    "references",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A reference picture. Given again for more: image 1, image 2, ... of the prompt, in this order.",
)
@marking_options
@editing_options
@upsampling_options
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="PLACE[:STRENGTH]",
    help="A LoRA: a file, a folder, a hub id or owner/name/FILE. Default strength: 1. Given again for more.",
)
@click.option(
    "--size", metavar="WxH", help="Multiples of 16. Default: the source's own, the first reference's or the model's."
)
@click.option("--steps", type=int, metavar="N", help="Default: the model's.")
@click.option(
    "--guidance",
    type=float,
    metavar="G",
    help="How strongly to follow the prompt; without effect on distilled models. Default: the model's.",
)
@click.option("--seed", type=int, metavar="S", help="Drawn, and printed, when not given.")
@click.option("-n", "--count", type=int, default=1, metavar="COUNT", help="So many pictures, with seeds S, S+1, ...")
@click.option("--model", default="sprite", show_default=True, metavar="NAME|FOLDER|FILE|HUB_ID")
@checkpoint_options
@device_options
@click.option(
    "--convention",
    type=click.Choice(["diffusers", "comfy", "bfl"]),
    default="diffusers",
    show_default=True,
    help="Whose noise and rounding to reproduce.",
)
@click.option("--preview", is_flag=True, help="Show every step in the terminal.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print files, seeds, timings in seconds and peak memory as JSON instead."
)
def generate(
    prompt: str | None,
    output: Path | None,
    prompt_file: Path | None,
    references: list[OpenedReference],
    marking: Marking,
    editing: dict[str, Any],
    upsampling: Upsampling,
    loras: tuple[str, ...],
    size: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int | None,
    count: int,
    model: str,
    autoencoder: str | None,
    text_encoder: str | None,
    tokenizer: str | None,
    variant: str | None,
    precision: str,
    text_precision: str | None,
    device: str,
    memory: str | None,
    host_memory: str | None,
    convention: str,
    preview: bool,
    as_json: bool,
) -> None:
    """Make pictures from PROMPT, and from reference pictures; a PROMPT of - is read from standard input.

    \b
    headrace generate "a red apple on a blue background" -o apple.png
    headrace generate "image 1 beside image 2" --ref a.png --ref b.jpg --model klein-4b
    headrace generate "a cat" --model klein-4b --lora style.safetensors:0.8
    headrace generate "a red door" --image house.jpg --mask door.png --model klein-4b
    headrace generate "a cat in the rain" --upsample --model dev
    """
    text = read_prompt(prompt, prompt_file)
    if size is not None:
        parse_size(size)
    if steps is not None:
        check_steps(steps)
    if guidance is not None:
        check_guidance(guidance)
    budget = None if memory is None else parse_bytes(memory)
    host_budget = None if host_memory is None else parse_bytes(host_memory)
    first = check_seed(draw_seed() if seed is None else seed)
    seeds = range(first, check_seed(first + check_count(count) - 1) + 1)
    if output == STANDARD and (as_json or count > 1):
        raise RequestError("Standard output takes one picture and nothing else; name a file with -o.")
    if output == STANDARD and sys.stdout is None:
        raise RequestError("Standard output is closed; name a file with -o.")
    targets = {seed: _target(output, seed, count) for seed in seeds}
    if output not in (None, STANDARD) and not marking.private:
        check_prompt_fits(text, output)

    started = time.monotonic()
    from headrace.checkpoints import open_checkpoint
    from headrace.checkpoints.lora_choice import choose_loras

    checkpoint = open_checkpoint(
        model, variant=variant, autoencoder=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer
    )

    for chosen in choose_loras(loras, checkpoint.transformer_config, checkpoint.name):
        click.echo(printable(chosen.report()), err=True)

    if len(references) > checkpoint.reference_limit:
        raise RequestError(
            f"{len(references)} references were given; this model takes at most {checkpoint.reference_limit}."
        )
    if upsampling.own or upsampling.checked:
        from headrace.checkpoints.writer import open_writer

        if open_writer(checkpoint).eyes is None and upsampling.checked:
            raise RequestError(
                f"{checkpoint.name}'s language model cannot see, so it checks nothing; FLUX.2-dev's can."
            )

    # What can be refused without computing has been; only now is torch imported.
    from headrace.pipeline import Pipeline

    pipeline = Pipeline(
        checkpoint, precision, device, text_precision=text_precision, memory=budget, host_memory=host_budget
    )
    for note in checkpoint.notes:
        click.echo(note, err=True)
    opened = time.monotonic()

    references_seen = [picture for _, picture in references]
    given, text = text, rewritten(text, upsampling, pipeline, references_seen, first)
    if output not in (None, STANDARD) and not marking.private:
        check_prompt_fits(text, output)
    if upsampling.checked:
        check_before(pipeline, text, references_seen)

    images: list[dict[str, str | int]] = []
    writing = 0.0
    total = taken_steps(steps or checkpoint.steps, 1.0 if editing["strength"] is None else editing["strength"])
    show = step_viewer(sys.stderr) if preview and is_terminal(sys.stderr) else None
    bar = progress_bar("steps", total=count * total) if show is None else nullcontext((int, click.echo))
    with bar as (advance, say):

        def on_step(step: Step) -> None:
            if show is None:
                advance(len(step.recipes))
            else:
                show(step)

        pictures = pipeline.stream(
            text,
            count=count,
            seed=first,
            references=references_seen,
            loras=loras,
            size=size,
            steps=steps,
            guidance=guidance,
            convention=convention,
            on_step=on_step,
            **editing,
        )
        if upsampling.checked:
            made_all = list(pictures)
            check_after(pipeline, made_all)
            pictures = iter(made_all)
        for picture in pictures:
            made = time.monotonic()
            recipe = picture.recipe
            if not (images or as_json):
                report_references(references, recipe.references)
                if recipe.edit is not None:
                    report_source(recipe.edit, editing["image"].size)
            target = _write(picture, targets[recipe.seed], marking)
            writing += time.monotonic() - made
            images.append({"path": str(target), "seed": recipe.seed, "width": recipe.width, "height": recipe.height})
            if target == STANDARD:
                if seed is None:
                    click.echo(f"seed {recipe.seed}", err=True)
            elif not as_json:
                say(f"wrote {target} (seed {recipe.seed}, {recipe.width}x{recipe.height})")
    if as_json:
        timings = {"open": opened - started, "generate": time.monotonic() - opened - writing, "write": writing}
        report = {"images": images, "timings": timings, "peak_memory_bytes": peak_bytes()}
        click.echo(json.dumps(report if text == given else {**report, "prompt": text}))


def _target(output: Path | None, seed: int, count: int) -> Path:
    """Where the picture with this seed goes, checked."""
    if output is None:
        return check_output(_unused(Path(f"headrace-{seed}.png")))
    if output == STANDARD:
        return output
    return check_output(output if count == 1 else output.with_stem(f"{output.stem}-{seed}"))


def _unused(path: Path) -> Path:
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


def _write(picture: Picture, target: Path, marking: Marking) -> Path:
    data, notes = marking.encode(picture, "PNG" if target == STANDARD else picture_format(target))
    for note in notes:
        click.echo(note, err=True)
    if target == STANDARD:
        sys.stdout.buffer.write(data)
    else:
        write_file(target, data)
    return target
