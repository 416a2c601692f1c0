"""Poses: COCO-18 keypoints invented joint by joint, and drawn as `headrace.pose` draws them.

Poses are made in figure units: the neck is the origin, x points to the right of the picture, y down, and a figure that
stands is about one unit tall.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from headrace.pose.skeleton import FINE, KEYPOINTS, draw_body, enlarged
from headrace.world.scene import Box, Point, Pose, Skeleton

TORSO = 0.30
"""From the neck to the middle of the hips, in figure units."""

_SHOULDER, _HIP = (0.12, 0.02), (0.075, TORSO)
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.165, 0.155, 0.19, 0.19
_HEAD = {"nose": (0.0, -0.17), "eye": (0.05, -0.205), "ear": (0.115, -0.185)}

POSES: dict[str, tuple[float, ...]] = {
    "standing": (14, 8, 14, 8, 5, 4, 5, 4),
    "waving": (16, 10, 112, 168, 5, 4, 5, 4),
    "arms up": (148, 166, 148, 166, 6, 4, 6, 4),
    "arms out": (88, 90, 88, 90, 9, 7, 9, 7),
    "hands on hips": (52, -48, 52, -48, 10, 6, 10, 6),
    "running": (58, 140, 46, -30, 62, 0, 14, 62),
    "jumping": (136, 150, 136, 150, 46, 22, 46, 22),
    "dancing": (132, 172, 52, -42, 48, -12, 6, 4),
}
"""Poses that can be asked for, right and left exchanged or not. The angles, in degrees outwards from hanging straight
down, are of right upper arm and forearm, left upper arm and forearm, right thigh and shin, left thigh and shin.
"""


def named_pose(chance: random.Random, name: str) -> Pose:
    """The pose of this name, no two quite alike. Raises KeyError for a name that is not in `POSES`."""
    angles = [angle + chance.uniform(-5, 5) for angle in POSES[name]]
    lean = chance.uniform(-4, 4) + (chance.choice((-8, 8)) if name in ("running", "dancing") else 0)
    return Pose(keypoints(angles, lean, chance.uniform(-6, 6), flipped=chance.random() < 0.5), name)


def any_pose(chance: random.Random) -> Pose:
    """A pose without a name: limbs anywhere they can go without crossing the body."""
    arms = [angle for _ in range(2) for angle in _bent(chance, chance.uniform(8, 165), (-75, 115))]
    legs = [angle for _ in range(2) for angle in _bent(chance, chance.triangular(2, 72, 8), (-45, 40))]
    return Pose(keypoints([*arms, *legs], chance.uniform(-16, 16), chance.uniform(-18, 18)))


def _bent(chance: random.Random, upper: float, bend: tuple[float, float]) -> tuple[float, float]:
    return upper, max(-60.0, min(178.0, upper + chance.triangular(*bend, 0)))


def keypoints(angles: Sequence[float], lean: float, nod: float, *, flipped: bool = False) -> tuple[Point, ...]:
    """Joint angles in degrees -> keypoints in figure units.

    angles: as those of `POSES`. lean: of the upper body, clockwise as seen; nod: of the head on top of that. flipped:
    right and left exchanged.
    """
    points: dict[str, Point] = {"neck": (0.0, 0.0)}
    for side, sign, arm, leg in (("right", -1, angles[0:2], angles[4:6]), ("left", 1, angles[2:4], angles[6:8])):
        shoulder = points[f"{side} shoulder"] = (sign * _SHOULDER[0], _SHOULDER[1])
        elbow = points[f"{side} elbow"] = _reach(shoulder, _UPPER_ARM, sign * arm[0])
        points[f"{side} wrist"] = _reach(elbow, _FOREARM, sign * arm[1])
        for part in ("eye", "ear"):
            points[f"{side} {part}"] = _turned((sign * _HEAD[part][0], _HEAD[part][1]), nod)
        # The upper body leans about the hips, which stay level.
        hip = points[f"{side} hip"] = _turned((sign * _HIP[0], _HIP[1]), -lean)
        knee = points[f"{side} knee"] = _reach(hip, _THIGH, sign * leg[0] - lean)
        points[f"{side} ankle"] = _reach(knee, _SHIN, sign * leg[1] - lean)
    points["nose"] = _turned(_HEAD["nose"], nod)
    upright = {name: _turned(point, lean) for name, point in points.items()}
    if flipped:
        other = {"right": "left", "left": "right"}
        upright = {
            " ".join(other.get(word, word) for word in name.split()): (-x, y) for name, (x, y) in upright.items()
        }
    return tuple(upright[name] for name in KEYPOINTS)


def _reach(start: Point, length: float, angle: float) -> Point:
    """The end of a limb: ``angle`` in degrees from straight down, towards the right of the picture."""
    return start[0] + length * math.sin(math.radians(angle)), start[1] + length * math.cos(math.radians(angle))


def _turned(point: Point, angle: float) -> Point:
    """Turned about the origin, clockwise as seen in the picture, by degrees."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return point[0] * cosine - point[1] * sine, point[0] * sine + point[1] * cosine


def moved(pose: Pose, scale: float, offset: Point) -> Pose:
    """The pose with every point times ``scale`` plus ``offset``."""
    points = (None if p is None else (p[0] * scale + offset[0], p[1] * scale + offset[1]) for p in pose.keypoints)
    return Pose(tuple(points), pose.name)


def extent(pose: Pose) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the points that are seen."""
    seen = [point for point in pose.keypoints if point is not None]
    xs, ys = [x for x, _ in seen], [y for _, y in seen]
    return min(xs), min(ys), max(xs), max(ys)


def skeleton_box(skeleton: Skeleton) -> Box:
    """A box that nothing of the drawn skeleton is outside of."""
    left, top, right, bottom = extent(skeleton.pose)
    margin = math.ceil(skeleton.radius) + 1
    return Box(
        math.floor(left) - margin, math.floor(top) - margin, math.ceil(right) + margin, math.ceil(bottom) + margin
    )


def paste_skeleton(image: Image.Image, skeleton: Skeleton) -> None:
    """Draws the skeleton over an RGB picture: limbs first, then joints, as OpenPose's own drawing does.

    Where two limbs cross, the later is on top; on the black canvas it is meant for this is the published convention.
    """
    box = skeleton_box(skeleton)
    region = image.crop((box.left, box.top, box.right, box.bottom))
    large = enlarged(region)
    points = [
        None if point is None else ((point[0] - box.left) * FINE, (point[1] - box.top) * FINE)
        for point in skeleton.pose.keypoints
    ]
    draw_body(ImageDraw.Draw(large), points, skeleton.radius * FINE)
    image.paste(large.resize(region.size, Image.Resampling.BOX), (box.left, box.top))
