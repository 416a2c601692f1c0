"""The prompt of a command: an argument, standard input, or a file, which may be a structured one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headrace.cli.options import with_options
from headrace.errors import RequestError
from headrace.pictures import read_file
from headrace.recipe import MAX_PROMPT_CHARACTERS, check_prompt
from headrace.structured import structured_prompt

STANDARD = Path("-")
MAX_PROMPT_BYTES = 4 * MAX_PROMPT_CHARACTERS + 8  # with a byte-order mark before it and line ends behind

_OPTIONS = (
    click.argument("prompt", required=False),
    click.option(
        "--prompt-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read the prompt from a file; - is standard input. A .json file has Black Forest Labs' fields.",
    ),
)


def prompt_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """PROMPT and --prompt-file."""
    return with_options(command, _OPTIONS)


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The one prompt that was given. Raises RequestError, or UsageError where there is none or two."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError(
            "Give a prompt, or a file that holds one with --prompt-file", click.get_current_context()
        )
    if prompt is not None and prompt != str(STANDARD):
        source, data = "the command line", os.fsencode(prompt)
    elif prompt_file is None or prompt_file == STANDARD:
        source, data = "standard input", _standard_input()
    else:
        source, data = str(prompt_file), read_file(prompt_file, "prompt file", MAX_PROMPT_BYTES)
    try:
        text = data.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"The prompt from {source} is not UTF-8 text.") from error
    if prompt_file is not None and prompt_file.suffix.lower() == ".json":
        text = structured_prompt(text, source)
    return check_prompt(text)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise RequestError("Standard input is closed; give the prompt itself, or a file with --prompt-file.")
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise RequestError(
            f"The prompt from standard input has more than {MAX_PROMPT_CHARACTERS:,} characters, the most that is read."
        )
    return data
