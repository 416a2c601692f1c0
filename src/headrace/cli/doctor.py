"""`headrace doctor`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.terminal import print_table

if TYPE_CHECKING:
    from headrace.doctor import CaseResult


@click.command()
@click.option(
    "--cases",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A folder of reference cases: weights or how to draw them, inputs, and what the reference computed.",
)
@click.option("--json", "as_json", is_flag=True, help='Print {"cases": [{"case", "tensor", "error"}]} instead.')
@click.pass_context
def doctor(context: click.Context, cases: Path, as_json: bool) -> None:
    """Compare what this machine computes with reference results, tensor by tensor.

    An error is the largest difference, relative to the reference's largest value. Ends with exit code 1 where one is
    above its bound.
    """
    from headrace.doctor import run_cases

    results = list(run_cases(cases))
    if as_json:
        click.echo(json.dumps({"cases": [_row(result) for result in results]}))
    else:
        print_table(
            ("case", "tensor", "error", ""),
            [(r.case, r.tensor, f"{r.error:.2e}", "ok" if r.passed else f"above {r.bound:.2e}") for r in results],
        )
    if not all(result.passed for result in results):
        context.exit(1)


def _row(result: CaseResult) -> dict[str, str | float | None]:
    # JSON has no number for what an overflow leaves behind; null stands for it.
    error = result.error if math.isfinite(result.error) else None
    return {"case": result.case, "tensor": result.tensor, "error": error}
