"""Reading the pose of a drawn figure from pixels: the joint angles with which the figure explains them best."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace.evals.sprites import Canvas
from headrace.pose.skeleton import KEYPOINTS
from headrace.world import figures, skeletons
from headrace.world.scene import Box, Figure, Point, Pose

FAINT = 0.3
"""A figure that explains less than this of its own contrast with the background is not there."""

WELL = 0.93
"""From this share on limbs are only looked for near where they are."""

_SIZES = (0.8, 1.0, 1.25)

_LIMBS = {"right arm": (0, 1), "left arm": (2, 3), "right leg": (4, 5), "left leg": (6, 7)}
"""The angles of each limb among those of `headrace.world.skeletons.POSES`."""


@dataclass(frozen=True)
class _Posture:
    """A pose as its figure's joints: the neck and a figure unit in pixels, all angles in degrees."""

    neck: Point
    unit: float
    lean: float
    nod: float
    angles: tuple[float, ...]

    def pose(self) -> Pose:
        return skeletons.moved(Pose(skeletons.keypoints(self.angles, self.lean, self.nod)), self.unit, self.neck)


def read_pose(canvas: Canvas, figure: Figure) -> tuple[Pose, float]:
    """The pose in which this character explains the picture best, in pixels, and the share of its contrast explained.

    The search begins with the pose that is asked for and, where that does not explain it well, goes on from all poses
    that have a name.
    """
    sought = _Sought(canvas, figure)
    found = sought.refined(sought.placed([sought.asked], (*_SIZES, 0.9, 1.1)), (8.0, 4.0))
    if sought.explained(found) < WELL:
        other = sought.refined(sought.placed(_named(), _SIZES), (8.0, 4.0))
        found = max(found, other, key=sought.gain)
        for limb in _LIMBS.values():
            found = max([found, *_swung(found, limb)], key=sought.gain)
        found = sought.refined(found, (12.0, 6.0))
    found = sought.refined(found, (3.0,))
    return skeletons.moved(found.pose(), 1 / canvas.scale, (0, 0)), sought.explained(found)


def keypoint_error(read: Pose, asked: Pose) -> float:
    """The mean distance in pixels between keypoints that both have."""
    pairs = zip(read.keypoints, asked.keypoints, strict=True)
    return float(np.mean([math.dist(a, b) for a, b in pairs if a is not None and b is not None]))


class _Sought:
    """A figure to be found in a canvas, in coarse pixels."""

    def __init__(self, canvas: Canvas, figure: Figure) -> None:
        self.canvas = canvas
        self.character, self.look = figure.character, figure.look
        self.asked = _posture(skeletons.moved(figure.pose, canvas.scale, (0, 0)))
        self.squares = np.square(canvas.coarse - canvas.coarse_behind).sum(-1)

    def placed(self, postures: Sequence[_Posture], sizes: Sequence[float]) -> _Posture:
        """Whichever of the postures fits best where it fits best, in sizes relative to the one asked for."""
        best, best_merit = self.asked, -math.inf
        for posture, size in itertools.product(postures, sizes):
            tried = replace(posture, unit=size * self.asked.unit)
            figure = self._drawn(tried)
            found = self.canvas.match(np.asarray(figures.sprite(figure), np.float32))
            if found is not None and found[0] > best_merit:
                best_merit, left, top = found
                x, y = tried.neck
                best = replace(tried, neck=(x + left - figure.box.left, y + top - figure.box.top))
        return best

    def _drawn(self, posture: _Posture) -> Figure:
        """The figure in a box that has room for every character's head, hands and feet."""
        pose = posture.pose()
        left, top, right, bottom = skeletons.extent(pose)
        room = 0.25 * posture.unit
        box = Box(
            *(math.floor(edge - room) for edge in (left, top)), *(math.ceil(edge + room) for edge in (right, bottom))
        )
        return Figure(self.character, self.look, pose, box)

    def gain(self, posture: _Posture) -> float:
        """By how much the figure lowers the sum of squared differences to the picture."""
        return self._compared(posture)[0]

    def explained(self, posture: _Posture) -> float:
        """The gain as a share of the figure's contrast with the background, at most 1."""
        gain, contrast = self._compared(posture)
        return gain / max(1.0, contrast)

    def _compared(self, posture: _Posture) -> tuple[float, float]:
        figure = self._drawn(posture)
        box = figure.box
        height, width = self.squares.shape
        rows, columns = slice(max(0, box.top), min(height, box.bottom)), slice(max(0, box.left), min(width, box.right))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return -math.inf, 1.0
        rgba = np.asarray(figures.sprite(figure), np.float32)
        part = rgba[rows.start - box.top : rows.stop - box.top, columns.start - box.left : columns.stop - box.left]
        behind = self.canvas.coarse_behind[rows, columns]
        laid = part[..., 3:] / 255 * (part[..., :3] - behind)
        left = np.square(self.canvas.coarse[rows, columns] - behind - laid).sum()
        return float(self.squares[rows, columns].sum() - left), float(np.square(laid).sum())

    def refined(self, posture: _Posture, steps: Iterable[float]) -> _Posture:
        """The posture with every joint, its place and its size moved to where they fit better; steps in degrees."""
        best = self.gain(posture)
        for step in steps:
            for change in _changes(posture, step):
                tried = change(posture)
                gain = self.gain(tried)
                # Further the same way for as long as it helps.
                while gain > best:
                    posture, best = tried, gain
                    tried = change(posture)
                    gain = self.gain(tried)
        return posture


def _changes(posture: _Posture, step: float) -> list[_Change]:
    far = step / 8
    moves = [_Change(x=x * far, y=y * far) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    moves += [_Change(larger=sign * step / 150) for sign in (1, -1)]
    for limb in _LIMBS.values():
        # The whole limb first, then its lower part.
        moves += [_Change(angles=dict.fromkeys(limb, sign * step)) for sign in (1, -1)]
        moves += [_Change(angles={limb[1]: sign * step}) for sign in (1, -1)]
    return moves + [_Change(lean=sign * step / 2) for sign in (1, -1)] + [_Change(nod=sign * step) for sign in (1, -1)]


@dataclass(frozen=True)
class _Change:
    """A small change of a posture: pixels, degrees, and a share of its size."""

    x: float = 0
    y: float = 0
    larger: float = 0
    lean: float = 0
    nod: float = 0
    angles: dict[int, float] | None = None

    def __call__(self, posture: _Posture) -> _Posture:
        angles = list(posture.angles)
        for index, turn in (self.angles or {}).items():
            angles[index] += turn
        return _Posture(
            (posture.neck[0] + self.x, posture.neck[1] + self.y),
            posture.unit * (1 + self.larger),
            posture.lean + self.lean,
            posture.nod + self.nod,
            tuple(angles),
        )


def _named() -> list[_Posture]:
    """The poses that have a name, also with right and left exchanged."""
    chance = random.Random(0)
    known = [_posture(skeletons.named_pose(chance, name)) for name in skeletons.POSES]
    return known + [replace(one, lean=-one.lean, nod=-one.nod, angles=_exchanged(one.angles)) for one in known]


def _swung(posture: _Posture, limb: tuple[int, int]) -> Iterator[_Posture]:
    """The posture with one limb anywhere that it can go."""
    arm = limb[0] < 4
    for upper in range(8, 176, 24) if arm else range(0, 76, 15):
        for bend in (-90, -45, 0, 45, 90) if arm else (-45, 0, 40):
            angles = list(posture.angles)
            angles[limb[0]], angles[limb[1]] = upper, upper + bend
            yield replace(posture, angles=tuple(angles))


def _exchanged(angles: tuple[float, ...]) -> tuple[float, ...]:
    return (*angles[2:4], *angles[0:2], *angles[6:8], *angles[4:6])


def _posture(pose: Pose) -> _Posture:
    """The joints of a pose that a figure can take; the inverse of `_Posture.pose`."""
    at = {name: point for name, point in zip(KEYPOINTS, pose.keypoints, strict=True) if point is not None}
    neck = at["neck"]
    hips = (at["right hip"][1] + at["left hip"][1]) / 2
    (right_x, right_y), (left_x, left_y) = at["right shoulder"], at["left shoulder"]
    lean = math.degrees(math.atan2(left_y - right_y, left_x - right_x))
    nose = at["nose"]
    angles = []
    for side, sign, joints, turned in (
        ("right", -1, ("shoulder", "elbow", "wrist"), lean),
        ("left", 1, ("shoulder", "elbow", "wrist"), lean),
        ("right", -1, ("hip", "knee", "ankle"), 0.0),
        ("left", 1, ("hip", "knee", "ankle"), 0.0),
    ):
        for start, end in itertools.pairwise(joints):
            (x1, y1), (x2, y2) = at[f"{side} {start}"], at[f"{side} {end}"]
            angles.append(sign * (math.degrees(math.atan2(x2 - x1, y2 - y1)) + turned))
    nod = math.degrees(math.atan2(nose[0] - neck[0], neck[1] - nose[1])) - lean
    return _Posture(neck, (hips - neck[1]) / skeletons.TORSO, lean, nod, tuple(angles))
