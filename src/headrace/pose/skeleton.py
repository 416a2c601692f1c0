"""OpenPose's skeleton of a body: its keypoints, limbs and colours, and how these are drawn.

Names and order are those of COCO-18; the drawing is that of `open_pose/util.py` in controlnet_aux 0.0.10, which
OpenPose conditioning is trained on, with smoothed edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

KEYPOINTS = (
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
)
"""COCO-18. A figure faces us: its right is on the left of the picture."""

LIMBS = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)
"""The keypoints that each limb joins, in the order in which OpenPose draws them."""

COLORS: tuple[RGB, ...] = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)
"""Of the joints in the order of `KEYPOINTS`, and, darkened to 60 %, of the limbs in the order of `LIMBS`."""

LIMB_BRIGHTNESS = 0.6

FINE = 4
"""Pictures are drawn so many times larger and reduced, which smooths their edges."""


def draw_body(pen: ImageDraw.ImageDraw, points: Sequence[Point | None], radius: float) -> None:
    """Draws one body: limbs first, then joints. radius: of the joints, and half the width of the limbs.

    points: in the order of `KEYPOINTS`; None for what is not seen, whose limbs are left out.
    """
    for (first, second), color in zip(LIMBS, COLORS, strict=False):
        start, end = points[first], points[second]
        if start is not None and end is not None:
            red, green, blue = (round(channel * LIMB_BRIGHTNESS) for channel in color)
            pen.polygon(_limb(start, end, radius), fill=(red, green, blue))
    for point, color in zip(points, COLORS, strict=True):
        if point is not None:
            draw_dot(pen, point, radius, color)


def draw_dot(pen: ImageDraw.ImageDraw, point: Point, radius: float, color: RGB) -> None:
    """A filled circle."""
    pen.ellipse((point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius), fill=color)


def enlarged(image: Image.Image) -> Image.Image:
    """The picture `FINE` times larger, to be drawn on and reduced with `Image.Resampling.BOX`."""
    return image.resize((image.width * FINE, image.height * FINE), Image.Resampling.NEAREST)


def _limb(start: Point, end: Point, radius: float) -> list[Point]:
    """The ellipse whose long axis goes from joint to joint."""
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    half = math.dist(start, end) / 2
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    cosine, sine = math.cos(angle), math.sin(angle)
    outline = []
    for step in range(36):
        along, across = half * math.cos(step * math.tau / 36), radius * math.sin(step * math.tau / 36)
        outline.append((middle[0] + along * cosine - across * sine, middle[1] + along * sine + across * cosine))
    return outline
