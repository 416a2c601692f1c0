"""`headrace doctor`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.terminal import print_table, progress_bar, readable_bytes

if TYPE_CHECKING:
    from headrace.doctor.cases import CaseResult
    from headrace.doctor.finding import Finding, Unit


@click.command()
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder on the disk that models are read from; 450 MB are written there and deleted. Default: the "
    "hub's cache.",
)
@click.option(
    "--cases",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run a folder of reference cases instead: weights or how to draw them, inputs, and what the reference "
    "computed.",
)
@click.option("--json", "as_json", is_flag=True, help='Print {"findings": […]}, or {"cases": […]}, instead.')
@click.pass_context
def doctor(context: click.Context, models: Path | None, cases: Path | None, as_json: bool) -> None:
    """Say whether this machine computes what it should, and how fast its links are.

    \b
    headrace doctor
    headrace doctor --models /data/models --json > report.json
    headrace doctor --cases ./cases

    Every precision of every device is compared with fp32 on the CPU; a small model is read from disk within a budget;
    sprite makes a picture that is known. A dB is 10 log10 of signal over noise. Ends with exit code 1 where something
    is off.

    With --cases, what this machine computes in fp32 is compared with reference results, tensor by tensor. An error is
    the largest difference, relative to the reference's largest value.
    """
    if cases is not None:
        if models is not None:
            raise click.UsageError("--models and --cases do not go together")
        right = _run_cases(cases, as_json)
    else:
        right = _examine(models, as_json)
    if not right:
        context.exit(1)


def _examine(models: Path | None, as_json: bool) -> bool:
    from headrace.doctor.examine import checks

    findings: list[Finding] = []
    with checks(models) as to_run, progress_bar("checking", total=len(to_run)) as (advance, _):
        for check in to_run:
            findings += check.findings()
            advance(1)
    if as_json:
        click.echo(json.dumps({"findings": [_finding(finding) for finding in findings]}))
    else:
        print_table(
            ("check", "device", "precision", "figure", "bound", "", "remark"), [_cells(finding) for finding in findings]
        )
        off = sum(not finding.ok for finding in findings)
        click.echo()
        click.echo(f"{off} of {len(findings)} are off." if off else "All is right.")
    return all(finding.ok for finding in findings)


def _cells(finding: Finding) -> tuple[str, ...]:
    subject = finding.subject
    figure = "" if finding.figure is None else _readable(finding.figure, finding.unit)
    bound = "" if finding.bound is None else _readable(finding.bound, finding.unit)
    judgement = "" if finding.ok and finding.bound is None else "ok" if finding.ok else "OFF"
    return subject.what, subject.device, subject.precision, figure, bound, judgement, finding.remark


def _readable(figure: float, unit: Unit) -> str:
    if not math.isfinite(figure):
        return "equal" if figure > 0 and unit == "dB" else "no number"
    match unit:
        case "bytes" | "bytes/s":
            return readable_bytes(int(figure)) + unit.removeprefix("bytes")
        case "FLOP/s":
            return f"{figure / 1e12:.3g} TFLOP/s"
        case "dB":
            return f"{figure:.1f} dB"
        case _:
            return f"{figure:g} {unit}".rstrip()


def _finding(finding: Finding) -> dict[str, Any]:
    subject = finding.subject
    return {
        "what": subject.what,
        "device": subject.device or None,
        "precision": subject.precision or None,
        "ok": finding.ok,
        "figure": _number(finding.figure),
        "unit": finding.unit or None,
        "bound": finding.bound,
        "remark": finding.remark or None,
    }


def _run_cases(folder: Path, as_json: bool) -> bool:
    from headrace.doctor.cases import run_cases

    results = list(run_cases(folder))
    if as_json:
        click.echo(json.dumps({"cases": [_case(result) for result in results]}))
    else:
        print_table(
            ("case", "tensor", "error", ""),
            [(r.case, r.tensor, f"{r.error:.2e}", "ok" if r.passed else f"above {r.bound:.2e}") for r in results],
        )
    return all(result.passed for result in results)


def _case(result: CaseResult) -> dict[str, str | float | None]:
    return {"case": result.case, "tensor": result.tensor, "error": _number(result.error)}


def _number(figure: float | None) -> float | None:
    # JSON has no number for what an overflow leaves behind, nor for no noise at all; null stands for them.
    return None if figure is None or not math.isfinite(figure) else figure
