"""`headrace upsample`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from headrace.cli.options import device_options
from headrace.cli.prompts import prompt_argument, read_prompt
from headrace.cli.upsampling import asked, edited, written
from headrace.memory.sizes import parse_bytes
from headrace.pictures import open_picture
from headrace.recipe import check_seed
from headrace.text.endpoint import parse_endpoint

_FILE = click.Path(path_type=Path)


@click.command()
@prompt_argument
@click.option(
    "--ref", "references", type=_FILE, multiple=True, metavar="FILE", help="A reference picture; given again for more."
)
@click.option("--model", default="sprite", show_default=True, metavar="NAME|FOLDER|HUB_ID")
@click.option("--text-encoder", metavar="FILE|FOLDER", help="Instead of the model's own.")
@click.option(
    "--upsample-with",
    metavar="URL[#MODEL]",
    help="Ask a service with OpenAI's chat completions instead of the model; its key is HEADRACE_UPSAMPLE_KEY's.",
)
@click.option("--edit-prompt", is_flag=True, help="Open the rewritten prompt in $EDITOR before it is printed.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Which words are drawn.")
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print the prompt before and after as JSON.")
def upsample(
    prompt: str | None,
    prompt_file: Path | None,
    references: tuple[Path, ...],
    model: str,
    text_encoder: str | None,
    upsample_with: str | None,
    edit_prompt: bool,
    seed: int,
    precision: str,
    text_precision: str | None,
    device: str,
    memory: str | None,
    host_memory: str | None,
    as_json: bool,
) -> None:
    """Rewrite PROMPT into a richer one, and print it.

    \b
    headrace upsample "a cat in the rain" --model dev --memory 24GB
    headrace upsample "put her into image 2" --ref her.png --ref street.jpg --model dev
    headrace upsample "a cat" --upsample-with https://openrouter.ai/api/v1

    FLUX.2-dev's language model looks at the references; klein's reads the prompt alone. sprite's does not write.
    """
    text = read_prompt(prompt, prompt_file)
    check_seed(seed)
    endpoint = None if upsample_with is None else parse_endpoint(upsample_with)
    budget = None if memory is None else parse_bytes(memory)
    host_budget = None if host_memory is None else parse_bytes(host_memory)
    pictures = [open_picture(path) for path in references]
    if endpoint is not None:
        used = asked(text, endpoint, pictures)
    else:
        from headrace.checkpoints import open_checkpoint
        from headrace.checkpoints.writer import open_writer

        checkpoint = open_checkpoint(model, text_encoder=text_encoder)
        open_writer(checkpoint)

        # What can be refused without computing has been; only now is torch imported.
        from headrace.pipeline import Pipeline

        pipeline = Pipeline(
            checkpoint, precision, device, text_precision=text_precision, memory=budget, host_memory=host_budget
        )
        used = written(text, pipeline, pictures, seed)
    if edit_prompt:
        used = edited(used)
    click.echo(json.dumps({"prompt": text, "upsampled": used}, ensure_ascii=False) if as_json else used)
