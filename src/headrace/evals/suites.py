"""The suites: which samples of the world's evaluation side each asks for, and what it measures in the pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from headrace.evals.backgrounds import Backdrop, background_faults, read_background
from headrace.evals.lettering import Reading, read_text
from headrace.evals.poses import FAINT, keypoint_error, read_pose
from headrace.evals.references import edit_faults, own_faults, untouched_faults
from headrace.evals.scenes import count_faults, text_color_faults, text_faults, thing_faults
from headrace.evals.sprites import Canvas
from headrace.world import tasks
from headrace.world.draw import Pixels
from headrace.world.scene import Figure, Group, Text
from headrace.world.tasks import Sample

TOLERANCE = 5.0
"""How far a colour may be from the one asked for (CIEDE2000)."""

SHORT = 6
"""Words of up to so many letters are short; a text has at most 12."""


KEYPOINT_ERROR = 0.05
"""How far a pose's keypoints may be off on average, as a share of the shorter side."""


@dataclass(frozen=True)
class Shown:
    """A picture that was made for a sample, (height, width, 3), and the sample.

    round_trip: where the sample is an edit, the picture to be edited after a round trip through the autoencoder.
    """

    pixels: Pixels
    sample: Sample
    round_trip: Pixels | None = None

    @cached_property
    def backdrop(self) -> Backdrop:
        """The picture's background, read once for all measures."""
        return read_background(self.pixels)

    @cached_property
    def reading(self) -> Reading:
        """The word in the picture, where one was asked for; likewise."""
        return read_text(self.pixels, self.backdrop, self.text)

    @property
    def text(self) -> Text:
        """The one text that was asked for."""
        (text,) = self.sample.target.texts
        return text

    def canvas(self) -> Canvas:
        """The picture to look for things in; what is found may be painted out of it."""
        return Canvas(self.pixels, self.backdrop)


@dataclass(frozen=True)
class Measure:
    """One row of the table. goal: the share of pictures that is to be right; None where it is only reported.

    faults: what is wrong in a picture, empty where it is right.
    """

    name: str
    goal: float | None
    faults: Callable[[Shown], list[str]]


@dataclass(frozen=True)
class Suite:
    """Samples of one sort, and what is measured in the pictures made for them.

    topics: kinds of samples of the task (`headrace.world.tasks.sample`), in turn. fits: which of them are used.
    """

    name: str
    task: str
    topics: tuple[str | None, ...]
    measures: tuple[Measure, ...]
    language: str = "en"
    fits: Callable[[Sample], bool] = lambda _: True


def samples(suite: Suite, count: int, width: int, height: int, seed: int = 0) -> list[Sample]:
    """The suite's first ``count`` samples whose targets have this size, from ``seed`` on; none is for training."""
    return list(itertools.islice(_samples(suite, width, height, seed), count))


def _samples(suite: Suite, width: int, height: int, seed: int) -> Iterator[Sample]:
    for number, topic in zip(itertools.count(seed), itertools.cycle(suite.topics), strict=False):
        drawn = tasks.sample(number, width, height, side="eval", task=suite.task, kind=topic, language=suite.language)
        if suite.fits(drawn):
            yield drawn


def _things(shown: Shown) -> list[str]:
    return thing_faults(shown.canvas(), shown.sample.target)


def _count(shown: Shown) -> list[str]:
    (group,) = shown.sample.target.things
    assert isinstance(group, Group)
    return count_faults(shown.canvas(), group)


def _background(shown: Shown) -> list[str]:
    return background_faults(shown.backdrop, shown.sample.target.background, TOLERANCE)


def _text(shown: Shown) -> list[str]:
    return text_faults(shown.reading, shown.text)


def _text_color(shown: Shown) -> list[str]:
    return text_color_faults(shown.reading, shown.text, TOLERANCE)


def _own(shown: Shown) -> list[str]:
    return own_faults(shown.canvas(), shown.sample)


def _edit(shown: Shown) -> list[str]:
    assert shown.sample.edit is not None
    return edit_faults(shown.pixels, shown.backdrop, shown.sample.edit, TOLERANCE)


def _untouched(shown: Shown) -> list[str]:
    assert shown.sample.edit is not None
    assert shown.round_trip is not None
    return untouched_faults(shown.pixels, shown.backdrop, shown.sample.edit, shown.round_trip)


def _pose(shown: Shown) -> list[str]:
    (figure,) = shown.sample.target.things
    assert isinstance(figure, Figure)
    read, explained = read_pose(shown.canvas(), figure)
    if explained < FAINT:
        return [f"no {figure.character}"]
    off = keypoint_error(read, figure.pose) / min(shown.pixels.shape[:2])
    return [f"keypoints are off by {off:.1%} of the side"] if off > KEYPOINT_ERROR else []


def _scene(shown: Shown) -> list[str]:
    """Everything that a scene of objects and words is asked to show."""
    target = shown.sample.target
    canvas = shown.canvas()
    faults = background_faults(shown.backdrop, target.background, TOLERANCE)
    if len(target.things) == 1 and isinstance(group := target.things[0], Group) and len(group.boxes) > 1:
        faults += count_faults(canvas, group)
    else:
        faults += thing_faults(canvas, target)
    return faults + (text_faults(shown.reading, shown.text) if target.texts else [])


def _letters(sample: Sample) -> int:
    return sum(len(text.glyphs) for text in sample.target.texts)


_SCENES = ("object", "relation", "count", "corner", "text", "between")

SUITES: tuple[Suite, ...] = (
    Suite("object", "scene", ("object",), (Measure("object", 0.85, _things),)),
    Suite(
        "relation",
        "scene",
        ("relation", "between", "relation", "corner", "relation", "trio"),
        (Measure("relation", 0.80, _things),),
    ),
    Suite("count", "scene", ("count",), (Measure("count", 0.75, _count),), fits=lambda one: not one.target.texts),
    Suite("background", "scene", (None,), (Measure("background colour", 0.85, _background),)),
    Suite(
        "text",
        "scene",
        ("text",),
        (Measure("text, up to 6 letters", 0.60, _text), Measure("text colour", 0.85, _text_color)),
        fits=lambda one: _letters(one) <= SHORT,
    ),
    Suite(
        "long-text",
        "scene",
        ("text",),
        (Measure("text, 7 to 12 letters", None, _text),),
        fits=lambda one: _letters(one) > SHORT,
    ),
    Suite("reference", "combine", (None,), (Measure("own objects of references", 0.80, _own),)),
    Suite("edit", "edit", (None,), (Measure("edit done", None, _edit), Measure("rest untouched", 0.80, _untouched))),
    Suite("pose", "pose", (None,), (Measure("pose", 0.60, _pose),)),
    Suite("english", "scene", _SCENES, (Measure("whole scene in English", None, _scene),)),
    Suite("french", "scene", _SCENES, (Measure("whole scene in French", None, _scene),), language="fr"),
)
"""All suites, in the order of the table. "english" and "french" ask for the same scenes."""


def suite(name: str) -> Suite:
    """The suite called ``name``. Raises KeyError for one that is not in `SUITES`."""
    return {one.name: one for one in SUITES}[name]
