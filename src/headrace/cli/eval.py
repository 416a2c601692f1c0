"""`headrace eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.terminal import print_table, progress_bar
from headrace.errors import RequestError
from headrace.pictures import check_output, encode_picture, picture_format, write_file
from headrace.recipe import check_seed, parse_size

if TYPE_CHECKING:
    from headrace.evals.score import Score
    from headrace.evals.suites import Shown, Suite

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--model", default="sprite", show_default=True, metavar="NAME|FOLDER|FILE|HUB_ID")
@click.option("--suite", "names", multiple=True, metavar="NAME", help="Repeatable. Default: all of them.")
@click.option("--count", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Pictures a suite.")
@click.option("--precision", default="auto", show_default=True, metavar="NAME")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Default: the model's.")
@click.option("--guidance", type=float, metavar="G", help="Default: the model's.")
@click.option("--size", metavar="WxH", help="Default: the model's.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Of the first sample and picture.")
@click.option("--masked", is_flag=True, help="Edits: tell what is to change by a mask too, as generate --image --mask.")
@click.option(
    "--ground-truth",
    type=click.Choice(["drawn", "round-trip"]),
    help="Score the drawn pictures themselves, as they are or through the model's autoencoder: a check of the scorers.",
)
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write scores and failures as JSON.")
@click.option("--failures", type=_FILE, metavar="FILE", help="Write a sheet of pictures that are wrong, and why.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write every picture here."
)
def eval(  # noqa: A001
    model: str,
    names: tuple[str, ...],
    count: int,
    precision: str,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    seed: int,
    masked: bool,
    ground_truth: str | None,
    json_file: Path | None,
    failures: Path | None,
    output: Path | None,
) -> None:
    """Score a model on the drawn world: objects, relations, counts, colours, words, references, edits, poses.

    \b
    headrace eval --count 50
    headrace eval --model ./my-sprite --suite object --suite text --failures wrong.png
    headrace eval --ground-truth round-trip

    Prompts, combinations and words are those that training never shows. A score is the share of pictures that are
    right, told from their pixels alone, with its 95 % interval.
    """
    if failures is not None:
        check_output(failures)
    check_seed(seed)
    from headrace.evals.suites import SUITES

    chosen = _chosen(names, SUITES)
    from headrace.evals.pictures import RoundTrip, drawn, from_pipeline
    from headrace.evals.score import scores
    from headrace.evals.sheet import failure_sheet
    from headrace.pipeline import load

    pipeline = load(model, precision=precision)
    width, height = pipeline.checkpoint.default_size if size is None else parse_size(size)
    trip = RoundTrip(pipeline.checkpoint)
    if ground_truth is None:
        generate = from_pipeline(pipeline, seed=seed, steps=steps, guidance=guidance, masked=masked)
    else:
        generate = drawn if ground_truth == "drawn" else trip.targets
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)

    with progress_bar("pictures", len(chosen) * count) as (advance, _):

        def on_picture(suite: Suite, number: int, shown: Shown) -> None:
            advance(1)
            if output is not None:
                _write_picture(output / f"{suite.name}-{number:03d}.png", shown)

        found = scores(
            generate,
            chosen,
            count,
            width=width,
            height=height,
            seed=seed,
            round_trip=trip.edited,
            on_picture=on_picture,
        )
    _print(found)
    if json_file is not None:
        facts = {"model": model, "precision": pipeline.precision, "steps": steps, "guidance": guidance}
        run = {
            **facts,
            "masked": masked,
            "ground_truth": ground_truth,
            "size": [width, height],
            "seed": seed,
            "count": count,
        }
        write_file(json_file, json.dumps({**run, "scores": list(map(_as_json, found))}, indent=1).encode())
    if failures is not None:
        write_file(failures, encode_picture(failure_sheet(found), picture_format(failures), {}))


def _chosen(names: tuple[str, ...], suites: tuple[Suite, ...]) -> list[Suite]:
    by_name = {suite.name: suite for suite in suites}
    for name in names:
        if name not in by_name:
            raise RequestError(f"There is no suite {name!r}; there are {', '.join(by_name)}.")
    return [suite for suite in suites if not names or suite.name in names]


def _print(scores: list[Score]) -> None:
    from headrace.evals.score import paired_difference

    print_table(
        ("suite", "measure", "right", "share", "95 % interval", "goal"),
        [
            (
                score.suite,
                score.measure,
                f"{score.right}/{score.count}",
                f"{score.share:.1%}",
                "{:.1%} to {:.1%}".format(*score.interval),
                "" if score.goal is None else f"{score.goal:.0%}",
            )
            for score in scores
        ],
    )
    by_suite = {score.suite: score for score in scores}
    if "english" in by_suite and "french" in by_suite:
        less, reach = paired_difference(by_suite["french"], by_suite["english"])
        click.echo(f"French less English: {100 * less:+.1f} points, 95 % interval ±{100 * reach:.1f}")


def _as_json(score: Score) -> dict[str, object]:
    failures = [
        {"number": failure.number, "prompt": failure.shown.sample.caption, "faults": failure.faults}
        for failure in score.failures
    ]
    return {
        "suite": score.suite,
        "measure": score.measure,
        "right": score.right,
        "count": score.count,
        "share": score.share,
        "interval": score.interval,
        "goal": score.goal,
        "failures": failures,
    }


def _write_picture(path: Path, shown: Shown) -> None:
    from PIL import Image

    write_file(path, encode_picture(Image.fromarray(shown.pixels), "PNG", {}))
