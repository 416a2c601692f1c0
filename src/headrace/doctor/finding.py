"""What a check found, and how a check that fails becomes a finding too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from headrace.errors import HeadraceError

Unit = Literal["", "dB", "values", "threads", "bytes", "bytes/s", "FLOP/s"]

# Signal to noise must reach its bound; everything else that is counted must not exceed it.
AT_LEAST: frozenset[Unit] = frozenset({"dB"})


@dataclass(frozen=True)
class Subject:
    """What is looked at: `device` and `precision` are empty where it has none."""

    what: str
    device: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Finding:
    """One row of the report.

    figure, bound: in `unit`, None where there is none; a dB is 10 log10 of signal over noise, infinite where there is
    no noise. remark: of a finding that is not ok, one sentence that says what to do.
    """

    subject: Subject
    ok: bool
    figure: float | None = None
    unit: Unit = ""
    bound: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Check:
    """Something to be looked at, which may give several findings."""

    subject: Subject
    run: Callable[[], Iterable[Finding]]

    def findings(self) -> Iterator[Finding]:
        """What `run` finds; where it raises, what it found until then and one finding that says so."""
        try:
            yield from self.run()
        except Exception as error:
            yield Finding(self.subject, ok=False, remark=_sentence(error))


def told(subject: Subject, remark: str) -> Finding:
    """A fact, which cannot be wrong."""
    return Finding(subject, ok=True, remark=remark)


def measured(subject: Subject, figure: float, unit: Unit, remark: str = "") -> Finding:
    """A figure without a bound."""
    return Finding(subject, ok=True, figure=figure, unit=unit, remark=remark)


def judged(subject: Subject, figure: float, unit: Unit, bound: float, remedy: str, remark: str = "") -> Finding:
    """A figure with its bound. remedy: what to do where it is not kept; remark: what to know where it is."""
    ok = figure >= bound if unit in AT_LEAST else figure <= bound
    return Finding(subject, ok, figure, unit, bound, remark if ok else remedy)


def _sentence(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "There was not enough memory; close other programs and run headrace doctor again."
    detail = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"The check itself failed ({detail})."
