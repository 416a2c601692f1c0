"""People to a picture: on black, one after another, each with body, hands and face, as controlnet_aux 0.0.10 does."""

from __future__ import annotations

import colorsys

from PIL import Image, ImageDraw

from headrace.pose.keypoints import Part, Poses
from headrace.pose.skeleton import FINE, RGB, draw_body, draw_dot

HAND_EDGES = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))
"""From the wrist along each finger, thumb first."""

HAND_JOINT: RGB = (0, 0, 255)
FACE: RGB = (255, 255, 255)

# In pixels, for pictures whose shorter side has 512; they grow and shrink with it.
COMMON_SIDE = 512
_BODY_RADIUS, _HAND_WIDTH, _HAND_RADIUS, _FACE_RADIUS = 4.0, 2.0, 4.0, 3.0


def draw_poses(poses: Poses) -> Image.Image:
    """The picture of the people, RGB, of the size of `poses`."""
    large = Image.new("RGB", (poses.width * FINE, poses.height * FINE))
    pen, scale = ImageDraw.Draw(large), min(poses.width, poses.height) / COMMON_SIDE * FINE
    for person in poses.people:
        draw_body(pen, _finer(person.body), _BODY_RADIUS * scale)
        for hand in (person.left_hand, person.right_hand):
            _draw_hand(pen, _finer(hand), scale)
        for point in _finer(person.face):
            if point is not None:
                draw_dot(pen, point, _FACE_RADIUS * scale, FACE)
    return large.resize((poses.width, poses.height), Image.Resampling.BOX)


def _finer(part: Part) -> Part:
    """The points in the enlarged picture; a place is the middle of its pixel."""
    return tuple(None if point is None else ((point[0] + 0.5) * FINE, (point[1] + 0.5) * FINE) for point in part)


def _draw_hand(pen: ImageDraw.ImageDraw, points: Part, scale: float) -> None:
    if not points:
        return
    for index, (first, second) in enumerate(HAND_EDGES):
        start, end = points[first], points[second]
        if start is not None and end is not None:
            red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(index / len(HAND_EDGES), 1, 1))
            pen.line((start, end), fill=(red, green, blue), width=max(1, round(_HAND_WIDTH * scale)))
    for point in points:
        if point is not None:
            draw_dot(pen, point, _HAND_RADIUS * scale, HAND_JOINT)
