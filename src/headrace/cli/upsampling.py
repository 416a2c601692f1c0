"""Options for a prompt that is rewritten before it is used, and for checking it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.options import with_options
from headrace.cli.terminal import printable, progress_bar
from headrace.errors import HeadraceError, RequestError
from headrace.recipe import check_prompt
from headrace.text.endpoint import Endpoint, parse_endpoint, upsample_with
from headrace.text.messages import MAX_TOKENS_OUT, TEMPERATURE, capped, system_message

if TYPE_CHECKING:
    from PIL import Image

    from headrace.pipeline import Picture, Pipeline

FLAGGED = (
    "the language model answers yes when asked whether {what} names or shows a copyrighted character, a brand or a "
    "public figure (see docs/upsampling.md)."
)

_OPTIONS = (
    click.option("--upsample", is_flag=True, help="Have the model's own language model write a richer prompt first."),
    click.option(
        "--upsample-with",
        metavar="URL[#MODEL]",
        help="Have it written by a service with OpenAI's chat completions instead; its key is HEADRACE_UPSAMPLE_KEY's.",
    ),
    click.option(
        "--edit-prompt", is_flag=True, help="Open the prompt, rewritten or not, in $EDITOR before it is used."
    ),
    click.option(
        "--check",
        is_flag=True,
        help="Ask FLUX.2-dev's language model about copyright and public figures; see the docs.",
    ),
)


@dataclass(frozen=True)
class Upsampling:
    """What is to be done to a prompt."""

    own: bool
    endpoint: Endpoint | None
    edited: bool
    checked: bool


def upsampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets them as `upsampling`."""

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        own, address = values.pop("upsample"), values.pop("upsample_with")
        if own and address is not None:
            raise RequestError("The prompt can be rewritten by --upsample or by --upsample-with, not by both.")
        endpoint = None if address is None else parse_endpoint(address)
        upsampling = Upsampling(own, endpoint, values.pop("edit_prompt"), values.pop("check"))
        command(**values, upsampling=upsampling)

    return with_options(gathered, _OPTIONS)


def rewritten(
    prompt: str, upsampling: Upsampling, pipeline: Pipeline, references: Sequence[Image.Image], seed: int
) -> str:
    """The prompt as it is to be used, which is shown on standard error where it is another."""
    used = prompt
    if upsampling.endpoint is not None:
        used = asked(prompt, upsampling.endpoint, references)
    elif upsampling.own:
        used = written(prompt, pipeline, references, seed)
    if used != prompt:
        show(used)
    return edited(used) if upsampling.edited else used


def written(prompt: str, pipeline: Pipeline, references: Sequence[Image.Image], seed: int) -> str:
    """The prompt as the model's own language model rewrites it."""
    with progress_bar("tokens", total=MAX_TOKENS_OUT) as (advance, _):
        return pipeline.upsample(prompt, references=references, seed=seed, on_token=lambda _: advance(1))


def asked(prompt: str, endpoint: Endpoint, references: Sequence[Image.Image]) -> str:
    """The prompt as a service rewrites it; as it was, with a warning, where that fails."""
    pictures = [capped(picture) for picture in references]
    try:
        return upsample_with(
            endpoint,
            prompt,
            pictures,
            system_message(bool(pictures)),
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS_OUT,
        )
    except HeadraceError as error:
        warnings.warn(f"{error} The prompt stays as it was.", stacklevel=1)  # the command shows what comes from here
        return prompt


def edited(prompt: str) -> str:
    """The prompt as it comes back from $EDITOR."""
    back = click.edit(prompt, extension=".txt")
    return prompt if back is None else check_prompt(back.strip("\r\n"))


def show(prompt: str) -> None:
    """The prompt on standard error, line by line."""
    click.echo("prompt: " + "\n".join(printable(line) for line in prompt.splitlines()), err=True)


def check_before(pipeline: Pipeline, prompt: str, references: Sequence[Image.Image]) -> None:
    """Raises RequestError where the language model objects to the prompt or a reference."""
    if pipeline.flags_prompt(prompt):
        raise RequestError(f"The prompt was not used: {FLAGGED.format(what='it')}")
    for number, reference in enumerate(references, start=1):
        if pipeline.flags_picture(reference):
            raise RequestError(f"Image {number} was not used: {FLAGGED.format(what='it')}")


def check_after(pipeline: Pipeline, pictures: Sequence[Picture]) -> None:
    """Raises RequestError where the language model objects to a finished picture; none is written then."""
    for picture in pictures:
        if pipeline.flags_picture(picture.image):
            raise RequestError(
                f"The picture with seed {picture.recipe.seed} was not written: {FLAGGED.format(what='it')}"
            )
