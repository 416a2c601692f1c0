"""Scores of whatever makes pictures: right or wrong, suite by suite, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.evals.suites import SUITES, Measure, Shown, Suite, samples
from headrace.world.draw import Pixels, draw
from headrace.world.tasks import Sample

Z95 = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""

Generate = Callable[[Sequence[Sample]], Iterable[Pixels]]
"""Makes the picture of each sample, uint8 (height, width, 3), in their order."""


@dataclass(frozen=True)
class Failure:
    """A picture that is wrong, the number of its sample in the suite, and why."""

    number: int
    shown: Shown
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """How many of a suite's pictures are right by one measure, and those that are not."""

    suite: str
    measure: str
    goal: float | None
    right: int
    count: int
    failures: tuple[Failure, ...]

    @property
    def share(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share (Wilson)."""
        return wilson(self.right, self.count)


def scores(
    generate: Generate,
    suites: Sequence[Suite] = SUITES,
    count: int = 200,
    *,
    width: int = 128,
    height: int = 128,
    seed: int = 0,
    round_trip: Generate | None = None,
    on_picture: Callable[[Suite, int, Shown], None] = lambda *_: None,
) -> list[Score]:
    """Scores of ``generate`` on ``count`` pictures of each suite, in order; a suite may have more than one.

    generate: given a suite's samples, gives their pictures. width, height: of the pictures. seed: of the first sample
    of each suite. round_trip: given the samples of edits, gives the pictures to be edited as the autoencoder makes them
    again; without it they are taken as they are. on_picture: called with each picture and its number in the suite.
    """
    found: list[Score] = []
    for suite in suites:
        asked = samples(suite, count, width, height, seed)
        edits = [sample for sample in asked if sample.edit is not None]
        trips = iter([] if not edits else (round_trip or _as_they_are)(edits))
        failures: dict[str, list[Failure]] = {measure.name: [] for measure in suite.measures}
        for number, (sample, pixels) in enumerate(zip(asked, generate(asked), strict=True)):
            shown = Shown(pixels, sample, None if sample.edit is None else next(trips))
            on_picture(suite, number, shown)
            for measure in suite.measures:
                if faults := measure.faults(shown):
                    failures[measure.name].append(Failure(number, shown, tuple(faults)))
        found += [_score(suite, measure, count, failures[measure.name]) for measure in suite.measures]
    return found


def _score(suite: Suite, measure: Measure, count: int, failures: list[Failure]) -> Score:
    return Score(suite.name, measure.name, measure.goal, count - len(failures), count, tuple(failures))


def _as_they_are(edits: Sequence[Sample]) -> list[Pixels]:
    return [draw(sample.references[0]) for sample in edits]


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    z = Z95
    share = right / count
    middle = share + z**2 / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, (middle - reach) / (1 + z**2 / count)), min(1.0, (middle + reach) / (1 + z**2 / count))


def paired_difference(first: Score, second: Score) -> tuple[float, float]:
    """Share of the first less that of the second on the same scenes, and half of its 95 % interval.

    The interval is that of a mean of paired differences, each -1, 0 or 1.
    """
    wrong = [{failure.number for failure in score.failures} for score in (first, second)]
    differences = np.array([(number in wrong[1]) - (number in wrong[0]) for number in range(first.count)], float)
    return float(differences.mean()), float(Z95 * differences.std() / math.sqrt(first.count))
