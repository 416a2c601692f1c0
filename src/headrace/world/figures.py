"""Figures: characters drawn about the keypoints of a pose."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from headrace.pose.skeleton import KEYPOINTS
from headrace.world import skeletons
from headrace.world.colors import RGB
from headrace.world.scene import Box, Figure, Look, Point, Pose

_FINE = 3
"""Figures are drawn so many times larger and reduced, which smooths their edges."""

_OUTLINE = 0.011
"""Width of the line about each part, in figure units."""


@dataclass(frozen=True)
class Character:
    """What a character is drawn with: colours, and half the widths of arms and legs in figure units.

    body: of torso and arms, which a look's tint replaces. legs: which a look's lower replaces; None for the body's.
    skin: of head and hands; None for the body's. feet: None for the legs'.
    """

    body: RGB
    legs: RGB | None
    skin: RGB | None
    feet: RGB | None
    arm: float
    leg: float
    waist: float


CHARACTERS: dict[str, Character] = {
    "human": Character((52, 120, 210), (58, 64, 92), (246, 196, 156), (70, 50, 42), 0.040, 0.050, 0.095),
    "robot": Character((150, 164, 178), None, None, (80, 92, 108), 0.030, 0.036, 0.120),
    "bear": Character((150, 98, 58), None, None, None, 0.054, 0.060, 0.135),
    "rabbit": Character((226, 220, 224), None, None, None, 0.044, 0.052, 0.110),
    "astronaut": Character((240, 242, 246), None, None, (120, 128, 140), 0.056, 0.062, 0.130),
    "alien": Character((120, 84, 190), None, (136, 206, 92), (70, 50, 110), 0.036, 0.042, 0.090),
}
"""The characters that figures can be."""


@dataclass(frozen=True)
class _Part:
    """A polygon, or a line of round brush strokes, both ``radius`` thicker than the points, in one colour."""

    points: tuple[Point, ...]
    radius: float
    fill: RGB
    closed: bool = False
    outlined: bool = True


def place(character: str, look: Look, pose: Pose, cell: Box) -> Figure:
    """The character in this pose, given in any unit, as large as goes into the cell and in the middle of it."""
    left, top, right, bottom = _extent(character, look, pose)
    # Three pixels stay free for the rounding of the box and the smoothing of the edge.
    scale = min((cell.width - 3) / (right - left), (cell.height - 3) / (bottom - top))
    offset = cell.center[0] - scale * (left + right) / 2, cell.center[1] - scale * (top + bottom) / 2
    placed = skeletons.moved(pose, scale, offset)
    return Figure(character, look, placed, _box(character, look, placed))


def with_pose(figure: Figure, pose: Pose) -> Figure:
    """The figure's character and looks in a pose given in pixels."""
    return Figure(figure.character, figure.look, pose, _box(figure.character, figure.look, pose))


@functools.lru_cache(maxsize=256)
def sprite(figure: Figure) -> Image.Image:
    """The figure, RGBA, as large as its box."""
    box = figure.box
    picture = Image.new("RGBA", (box.width * _FINE, box.height * _FINE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    parts = tuple(_parts(figure.character, figure.look, figure.pose))
    line = _OUTLINE * _unit(figure.pose)
    for part in parts:
        points = [((x - box.left) * _FINE, (y - box.top) * _FINE) for x, y in part.points]
        if part.outlined:
            _paint(pen, points, (part.radius + line) * _FINE, _darker(part.fill), closed=part.closed)
        _paint(pen, points, part.radius * _FINE, part.fill, closed=part.closed)
    return picture.resize((box.width, box.height), Image.Resampling.BOX)


def _paint(pen: ImageDraw.ImageDraw, points: list[Point], radius: float, fill: RGB, *, closed: bool) -> None:
    if closed:
        pen.polygon(points, fill=fill)
        points = [*points, points[0]]
    if radius <= 0:
        return
    if len(points) > 1:
        pen.line(points, fill=fill, width=max(1, round(2 * radius)))
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _darker(color: RGB) -> RGB:
    red, green, blue = color
    return round(0.58 * red), round(0.58 * green), round(0.58 * blue)


def _lighter(color: RGB, share: float = 0.45) -> RGB:
    red, green, blue = (round(channel + share * (255 - channel)) for channel in color)
    return red, green, blue


def _unit(pose: Pose) -> float:
    """Pixels, or whatever the pose is given in, to a figure unit."""
    return math.dist(_at(pose, "neck"), _between(_at(pose, "right hip"), _at(pose, "left hip"))) / skeletons.TORSO


def _at(pose: Pose, name: str) -> Point:
    point = pose.keypoints[KEYPOINTS.index(name)]
    if point is None:
        raise ValueError(f"the pose of a figure lacks its {name}")
    return point


def _between(first: Point, second: Point, share: float = 0.5) -> Point:
    return first[0] + share * (second[0] - first[0]), first[1] + share * (second[1] - first[1])


def _extent(character: str, look: Look, pose: Pose) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of all that is drawn."""
    line = _OUTLINE * _unit(pose)
    edges = []
    for part in _parts(character, look, pose):
        xs, ys = [x for x, _ in part.points], [y for _, y in part.points]
        reach = part.radius + (line if part.outlined else 0)
        edges.append((min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach))
    lefts, tops, rights, bottoms = zip(*edges, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _box(character: str, look: Look, pose: Pose) -> Box:
    left, top, right, bottom = _extent(character, look, pose)
    # A brush is a pixel of the enlarged drawing wider than it says.
    return Box(*(math.floor(edge - 0.5) for edge in (left, top)), *(math.ceil(edge + 0.5) for edge in (right, bottom)))


def _parts(character: str, look: Look, pose: Pose) -> Iterator[_Part]:
    """From back to front."""
    style = CHARACTERS[character]
    unit = _unit(pose)
    body = style.body if look.tint is None else look.tint.rgb
    legs = look.lower.rgb if look.lower is not None else (body if style.legs is None else style.legs)
    skin = body if style.skin is None else style.skin
    neck = _at(pose, "neck")
    hips = _at(pose, "right hip"), _at(pose, "left hip")
    for side, hip in zip(("right", "left"), hips, strict=True):
        knee, ankle = _at(pose, f"{side} knee"), _at(pose, f"{side} ankle")
        toe = ankle[0] + (-0.035 if side == "right" else 0.035) * unit, ankle[1] + 0.01 * unit
        yield _Part((hip, knee, ankle), style.leg * unit, legs)
        yield _Part((ankle, toe), 1.05 * style.leg * unit, legs if style.feet is None else style.feet)
    yield from _torso(character, style, unit, neck, hips, pose, body)
    yield from _head(character, unit, pose, skin, body)
    for side in ("right", "left"):
        shoulder, elbow, wrist = (_at(pose, f"{side} {joint}") for joint in ("shoulder", "elbow", "wrist"))
        yield _Part((shoulder, elbow, wrist), style.arm * unit, body)
        yield _Part((wrist,), 1.15 * style.arm * unit, _hand(character, style, body))
        if character == "robot":
            for joint in (shoulder, elbow):
                yield _Part((joint,), 0.7 * style.arm * unit, _darker(body), outlined=False)


def _hand(character: str, style: Character, body: RGB) -> RGB:
    if style.skin is not None:
        return style.skin
    return _lighter(body, 0.25) if character in ("bear", "rabbit") else _shade(body, 0.78)


def _shade(color: RGB, share: float) -> RGB:
    red, green, blue = (round(share * channel) for channel in color)
    return red, green, blue


def _torso(
    character: str, style: Character, unit: float, neck: Point, hips: tuple[Point, Point], pose: Pose, body: RGB
) -> Iterator[_Part]:
    middle = _between(*hips)
    frame = _Frame.between(neck, middle, unit)
    chest = [_at(pose, f"{side} shoulder") for side in ("right", "left")]
    if character in ("bear", "rabbit"):
        yield _Part(frame.ellipse(0, 0.55 * skeletons.TORSO, style.waist, 0.60 * skeletons.TORSO), 0, body, closed=True)
        light = _lighter(body)
        yield _Part(
            frame.ellipse(0, 0.62 * skeletons.TORSO, 0.62 * style.waist, 0.115), 0, light, closed=True, outlined=False
        )
        return
    corners = (chest[0], chest[1], hips[1], hips[0])
    yield _Part(corners, 0.042 * unit, body, closed=True)
    if character == "robot":
        panel = (frame.at(-0.06, 0.09), frame.at(0.06, 0.09), frame.at(0.06, 0.19), frame.at(-0.06, 0.19))
        yield _Part(panel, 0.008 * unit, _darker(body), closed=True, outlined=False)
        for x, color in ((-0.035, (240, 80, 70)), (0.0, (250, 200, 60)), (0.035, (90, 210, 110))):
            yield _Part((frame.at(x, 0.14),), 0.014 * unit, color, outlined=False)
    if character == "astronaut":
        panel = (frame.at(-0.05, 0.13), frame.at(0.05, 0.13), frame.at(0.05, 0.19), frame.at(-0.05, 0.19))
        yield _Part(panel, 0.012 * unit, (70, 110, 190), closed=True, outlined=False)
        yield _Part((frame.at(0.05, 0.16),), 0.012 * unit, (230, 70, 60), outlined=False)


@dataclass(frozen=True)
class _Frame:
    """Coordinates of a part of the body: ``at(x, y)`` is in figure units across it and along it."""

    origin: Point
    along: Point
    unit: float

    @classmethod
    def between(cls, origin: Point, end: Point, unit: float) -> _Frame:
        length = math.dist(origin, end)
        return cls(origin, ((end[0] - origin[0]) / length, (end[1] - origin[1]) / length), unit)

    def at(self, x: float, y: float) -> Point:
        along_x, along_y = self.along
        return (
            self.origin[0] + self.unit * (x * along_y + y * along_x),
            self.origin[1] + self.unit * (-x * along_x + y * along_y),
        )

    def ellipse(self, x: float, y: float, half_width: float, half_height: float) -> tuple[Point, ...]:
        turns = [step * math.tau / 40 for step in range(40)]
        return tuple(self.at(x + half_width * math.cos(turn), y + half_height * math.sin(turn)) for turn in turns)


def _head(character: str, unit: float, pose: Pose, skin: RGB, body: RGB) -> Iterator[_Part]:
    nose, neck = _at(pose, "nose"), _at(pose, "neck")
    # From the nose downwards, so that y is negative above it, as in the picture.
    frame = _Frame.between(nose, neck, unit)
    dark = (38, 34, 40)

    def disc(x: float, y: float, radius: float, fill: RGB, *, outlined: bool = False) -> _Part:
        return _Part((frame.at(x, y),), radius * unit, fill, outlined=outlined)

    def oval(x: float, y: float, width: float, height: float, fill: RGB, *, outlined: bool = False) -> _Part:
        return _Part(frame.ellipse(x, y, width, height), 0, fill, closed=True, outlined=outlined)

    def line(points: Sequence[Point], radius: float, fill: RGB, *, outlined: bool = False) -> _Part:
        return _Part(tuple(frame.at(*point) for point in points), radius * unit, fill, outlined=outlined)

    def eyes(y: float, radius: float) -> Iterator[_Part]:
        for x in (-0.05, 0.05):
            yield disc(x, y, radius, dark)

    smile = [(-0.045, 0.045), (-0.02, 0.062), (0.02, 0.062), (0.045, 0.045)]
    if character == "human":
        hair = (92, 60, 40)
        yield oval(0, -0.035, 0.142, 0.145, hair, outlined=True)
        yield oval(0, 0.0, 0.128, 0.122, skin)
        yield oval(0, -0.118, 0.112, 0.048, hair)
        yield from eyes(-0.03, 0.017)
        yield disc(0, 0.008, 0.011, _shade(skin, 0.8))
        yield line(smile, 0.007, (150, 60, 50))
    elif character == "robot":
        yield line(((0, -0.13), (0, -0.19)), 0.010, _shade(body, 0.6))
        yield disc(0, -0.20, 0.026, (240, 80, 70), outlined=True)
        yield _Part(
            tuple(frame.at(x, y) for x, y in ((-0.11, -0.11), (0.11, -0.11), (0.11, 0.07), (-0.11, 0.07))),
            0.028 * unit,
            skin,
            closed=True,
        )
        for x in (-0.05, 0.05):
            yield disc(x, -0.035, 0.034, (250, 250, 250))
            yield disc(x, -0.035, 0.019, (40, 120, 220))
        yield line(((-0.05, 0.055), (0.05, 0.055)), 0.016, _shade(body, 0.45))
    elif character == "bear":
        for x in (-0.115, 0.115):
            yield disc(x, -0.125, 0.055, skin, outlined=True)
            yield disc(x, -0.125, 0.030, _lighter(skin))
        yield oval(0, -0.01, 0.150, 0.138, skin, outlined=True)
        yield oval(0, 0.045, 0.072, 0.058, _lighter(skin, 0.55))
        yield from eyes(-0.035, 0.018)
        yield oval(0, 0.018, 0.030, 0.020, dark)
        yield line(((-0.025, 0.062), (0, 0.07), (0.025, 0.062)), 0.006, dark)
    elif character == "rabbit":
        for x in (-0.06, 0.06):
            yield oval(x, -0.225, 0.040, 0.125, skin, outlined=True)
            yield oval(x, -0.220, 0.020, 0.092, (250, 178, 190))
        yield oval(0, -0.01, 0.132, 0.128, skin, outlined=True)
        yield from eyes(-0.03, 0.018)
        yield oval(0, 0.015, 0.020, 0.014, (240, 120, 140))
        yield line(((-0.035, 0.042), (0, 0.055), (0.035, 0.042)), 0.006, dark)
        yield oval(0, 0.068, 0.018, 0.020, (255, 255, 255))
    elif character == "astronaut":
        yield disc(0, -0.015, 0.158, skin, outlined=True)
        yield oval(0, 0.0, 0.118, 0.100, (36, 52, 92))
        yield oval(-0.045, -0.04, 0.035, 0.022, (150, 190, 240))
    elif character == "alien":
        for x in (-0.05, 0.05):
            yield line(((x, -0.14), (1.4 * x, -0.20)), 0.009, _shade(skin, 0.75))
            yield disc(1.4 * x, -0.205, 0.022, skin, outlined=True)
        yield oval(0, -0.03, 0.145, 0.150, skin, outlined=True)
        yield oval(0, 0.06, 0.085, 0.075, skin)
        for x in (-0.06, 0.06):
            yield oval(x, -0.03, 0.040, 0.050, dark)
            yield disc(x + 0.012, -0.05, 0.011, (255, 255, 255))
        yield line(((-0.03, 0.085), (0, 0.092), (0.03, 0.085)), 0.007, dark)
