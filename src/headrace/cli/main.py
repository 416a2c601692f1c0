"""`headrace`: finds the command, and turns whatever ends it into an exit code and one sentence."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import warnings

import click

from headrace import __version__
from headrace.cli.terminal import is_terminal, printable
from headrace.errors import HeadraceError, RequestError

# One line each for `--help`, so that it need not import them.
COMMANDS = {
    "generate": "Make pictures from a prompt, and from reference pictures.",
    "chat": "Make pictures line by line, each from a prompt and from those before it.",
    "upsample": "Rewrite a prompt into a richer one.",
    "verify": "Say where a picture came from, and what of that holds.",
    "reproduce": "Make a picture again from the recipe in its file, and compare.",
    "pose": "Draw the pose of people from keypoints or a photo.",
    "plan": "Say what a model needs and how it fits into memory, before anything is loaded.",
    "models": "List the models Headrace knows, with sizes and licences.",
    "inspect": "Say what a model file or folder holds.",
    "convert": "Write a model in another precision or layout.",
    "run": "Run a ComfyUI workflow without ComfyUI.",
    "templates": "List workflows that are ready to run, and write one.",
    "serve": "Make pictures for others, over HTTP.",
    "keys": "Make, list and revoke the keys of a server.",
    "credits": "Grant and show the credits of a server's keys.",
    "jobs": "Look at a server's jobs; cancel, repeat or delete them.",
    "train": "Train a model from scratch.",
    "eval": "Score a model on the drawn world.",
    "bench": "Measure this machine, and what Headrace does on it.",
    "doctor": "Say whether this machine computes what it should, and how fast.",
}

TRACEBACK_SWITCH = "HEADRACE_TRACEBACK"


class _Commands(click.Group):
    """The commands, each imported from its own file when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"headrace.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """As click does, but for Ctrl-C: it would end the line of the terminal's ^C where there is no terminal too."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if is_terminal(sys.stderr):
                click.echo(err=True)
            raise click.Abort from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 2 the request was wrong, 1 anything else. HEADRACE_TRACEBACK=1 shows where an internal "
    "error came from.",
)
@click.version_option(__version__, prog_name="headrace", message="%(prog)s %(version)s")
def cli() -> None:
    """Run the FLUX.2 family of image models on the machine you have."""


def main() -> int:
    """Run the command line on `sys.argv`. Returns 0 when done, 2 when the request was wrong, 1 for anything else."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is unfinished is cleared away first
    warnings.showwarning = _show_warning
    if not sys.warnoptions:  # what headrace warns about is for its user; what its libraries do is for its developers
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"headrace\b")
    try:
        code = cli.main(prog_name="headrace", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "headrace"
        return _end(2, f"{error.format_message().rstrip('.')} (see {command} --help).")
    except click.ClickException as error:
        return _end(2, error.format_message())
    except RequestError as error:
        return _end(2, str(error))
    except HeadraceError as error:
        return _end(1, str(error))
    except (click.Abort, KeyboardInterrupt):
        return _end(1, "Stopped; nothing unfinished was written.")
    except BrokenPipeError:
        # Whoever read standard output has gone.
        _give_up_output()
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK_SWITCH):
            raise
        if isinstance(error, OSError) and error.strerror:  # a file, or standard output, that the system refuses
            _give_up_output()
            place = error.filename or "Standard input or output"
            return _end(1, f"{place} cannot be read or written ({error.strerror.lower()}).")
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        return _end(1, f"Something in Headrace went wrong ({detail}); {TRACEBACK_SWITCH}=1 shows where.")
    return code if isinstance(code, int) else 0


def _give_up_output() -> None:
    """Lets what is still buffered go nowhere; otherwise Python complains when it flushes at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"headrace: {printable(str(message))}", err=True)


def _end(code: int, sentence: str) -> int:
    with contextlib.suppress(OSError):  # the exit code still says it where standard error cannot be written
        click.echo(f"headrace: {printable(sentence)}", err=True)
    return code
