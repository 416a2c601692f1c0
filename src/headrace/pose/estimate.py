"""People seen in a photo, with BlazePose's two networks: where people are, then the keypoints of each.

The networks are those inside the registry's package mediapipe 0.10.21 (Apache-2.0), which is not imported: only its two
files are read, and run by `ai-edge-litert`. What is computed around them follows mediapipe's graphs
`pose_detection_cpu.pbtxt` and `pose_landmark_by_roi_cpu.pbtxt` for a single picture (V. Bazarevsky et al., "BlazePose",
2020).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.errors import RequestError
from headrace.pose.keypoints import Part, Person, Poses

Floats = NDArray[np.floating[Any]]

_DETECTOR = Path("pose_detection", "pose_detection.tflite")
_LANDMARKS = Path("pose_landmark", "pose_landmark_full.tflite")

_DETECTOR_SIDE, _LANDMARK_SIDE = 224, 256
# Of the detector's grids: the pixels between anchors, and how many anchors a place has.
_GRIDS = ((8, 2), (16, 2), (32, 6))
_BOX_POINTS = 6
_DETECTION_CONFIDENCE, _LARGEST_OVERLAP, _PRESENCE, _VISIBILITY = 0.5, 0.3, 0.5, 0.5
# The square around a person is so much larger than the circle that the detector gives.
_MARGIN = 1.25
_HEATMAP_KERNEL, _HEATMAP_CONFIDENCE = 7, 0.5

# Where the points of COCO-18 are among BlazePose's; the neck, which it has not, is the middle of the shoulders.
_NECK = -1
_FROM_BLAZEPOSE = (0, _NECK, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_SHOULDERS = 11, 12
_LANDMARK_COUNT = 33


@dataclass(frozen=True)
class _Region:
    """A square of the photo, turned: its middle and side in pixels, its angle in radians."""

    x: float
    y: float
    side: float
    angle: float


def estimate_poses(photo: Image.Image, name: str) -> Poses:
    """The people in an RGB photo, the surest first, on a canvas of its size.

    name: of the photo, for errors. Raises RequestError where nobody is seen, or the estimator is not installed.
    """
    detector, landmarks = _open_networks()
    seen = (_keypoints(landmarks, photo, region) for region in _find_people(detector, photo))
    people = tuple(Person(body) for body in seen if body is not None and any(body))
    if not people:
        raise RequestError(f"Nobody is seen in the {name}; choose a photo that shows a person larger, or more of them.")
    return Poses(photo.width, photo.height, people)


def _open_networks() -> tuple[Any, Any]:
    """The detector and the landmark network, ready to run."""
    package = importlib.util.find_spec("mediapipe")
    folders = [Path(place, "modules") for place in (package.submodule_search_locations or ())] if package else []
    found = [folder for folder in folders if (folder / _DETECTOR).is_file() and (folder / _LANDMARKS).is_file()]
    if importlib.util.find_spec("ai_edge_litert") is None or not found:
        raise RequestError(
            "Seeing people in a photo needs two packages: pip install 'headrace[pose]', and for the networks "
            "pip install --no-deps mediapipe==0.10.21."
        )
    from ai_edge_litert.interpreter import Interpreter

    networks = [Interpreter(str(found[0] / file), num_threads=1) for file in (_DETECTOR, _LANDMARKS)]
    for network in networks:
        network.allocate_tensors()
    return networks[0], networks[1]


def _run(network: Any, pixels: Floats) -> list[Floats]:
    """The results for one picture (H, W, 3), in the network's order."""
    network.set_tensor(network.get_input_details()[0]["index"], pixels[np.newaxis])
    network.invoke()
    return [network.get_tensor(detail["index"])[0] for detail in network.get_output_details()]


def _find_people(network: Any, photo: Image.Image) -> list[_Region]:
    """The squares in which people are, the surest first."""
    whole = _Region(photo.width / 2, photo.height / 2, max(photo.size), 0.0)
    boxes, logits = _run(network, _cut(photo, whole, _DETECTOR_SIDE, repeats_edges=False) * 2 - 1)
    scores = 1 / (1 + np.exp(-np.clip(logits[:, 0], -50, 50)))
    sure = np.flatnonzero(scores >= _DETECTION_CONFIDENCE)
    sure = sure[np.argsort(-scores[sure], kind="stable")]
    # (x, y) of a box's middle and its (width, height), then of four points, in parts of the detector's picture.
    places = boxes[sure].reshape(len(sure), _BOX_POINTS, 2) / _DETECTOR_SIDE
    places[:, [0, *range(2, _BOX_POINTS)]] += _anchors()[sure, np.newaxis]
    return [_region(points, photo) for points in _merged(places, scores[sure])]


def _anchors() -> Floats:
    """(2254, 2): x and y of every anchor, in parts of the detector's picture."""
    grids = []
    for stride, count in _GRIDS:
        middles = (np.arange(_DETECTOR_SIDE // stride, dtype=np.float32) + 0.5) * stride / _DETECTOR_SIDE
        x, y = np.meshgrid(middles, middles)
        grids.append(np.stack([x.ravel(), y.ravel()], axis=1).repeat(count, axis=0))
    return np.concatenate(grids)


def _merged(places: Floats, scores: Floats) -> Iterator[Floats]:
    """One detection for each group that overlaps: the mean, weighted by score. `scores` falls."""
    left = np.arange(len(places))
    while len(left):
        overlaps = _overlap(places[left[0]], places[left]) > _LARGEST_OVERLAP
        overlaps[0] = True
        group = left[overlaps]
        yield np.average(places[group], axis=0, weights=scores[group])
        left = left[~overlaps]


def _overlap(one: Floats, others: Floats) -> Floats:
    """Intersection over union of a box with others."""
    low = np.maximum(one[0] - one[1] / 2, others[:, 0] - others[:, 1] / 2)
    high = np.minimum(one[0] + one[1] / 2, others[:, 0] + others[:, 1] / 2)
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    overlap: Floats = shared / (np.prod(one[1]) + np.prod(others[:, 1], axis=1) - shared)
    return overlap


def _region(points: Floats, photo: Image.Image) -> _Region:
    """The square around a person: about the middle of the hips, as large as the circle through the second point."""
    side = max(photo.size)
    x, y, top_x, top_y = (
        float(value) * side + offset
        for value, offset in zip(
            points[2:4].ravel(), ((photo.width - side) / 2, (photo.height - side) / 2) * 2, strict=True
        )
    )
    upright = math.atan2(top_y - y, top_x - x) + math.pi / 2
    return _Region(x, y, 2 * math.hypot(top_x - x, top_y - y) * _MARGIN, upright)


def _keypoints(network: Any, photo: Image.Image, region: _Region) -> Part | None:
    """COCO-18 of the person in a square of the photo, or None where there is none."""
    landmarks, presence, _, heatmaps, _ = _run(network, _cut(photo, region, _LANDMARK_SIDE, repeats_edges=True))
    if float(presence[0]) < _PRESENCE:
        return None
    values = landmarks.reshape(-1, 5)[:_LANDMARK_COUNT]
    places = _refined(values[:, :2] / _LANDMARK_SIDE, 1 / (1 + np.exp(-heatmaps)))
    cosine, sine = math.cos(region.angle), math.sin(region.angle)
    turned = (places - 0.5) @ np.array([[cosine, sine], [-sine, cosine]], np.float32) * region.side
    visible = 1 / (1 + np.exp(-values[:, 3])) >= _VISIBILITY
    points: list[tuple[float, float] | None] = []
    for (across, down), is_visible in zip(turned.tolist(), visible.tolist(), strict=True):
        x, y = region.x + across, region.y + down
        inside = 0 <= x < photo.width and 0 <= y < photo.height
        points.append((x, y) if is_visible and inside else None)
    first, second = (points[index] for index in _SHOULDERS)
    neck = None if first is None or second is None else ((first[0] + second[0]) / 2, (first[1] + second[1]) / 2)
    return tuple(neck if index == _NECK else points[index] for index in _FROM_BLAZEPOSE)


def _refined(places: Floats, heatmaps: Floats) -> Floats:
    """Places (33, 2) in 0..1, moved to the middle of what the heatmaps (h, w, 39) have around them."""
    height, width, _ = heatmaps.shape
    result, reach = places.copy(), _HEATMAP_KERNEL // 2
    for index, (x, y) in enumerate(places):
        column, row = int(x * width), int(y * height)
        if not (0 <= column < width and 0 <= row < height):
            continue
        rows = slice(max(0, row - reach), min(height, row + reach + 1))
        columns = slice(max(0, column - reach), min(width, column + reach + 1))
        heat = heatmaps[rows, columns, index]
        if heat.max() >= _HEATMAP_CONFIDENCE and heat.sum() > 0:
            down, across = np.mgrid[rows, columns]
            result[index] = (heat * across).sum() / heat.sum() / width, (heat * down).sum() / heat.sum() / height
    return result


def _cut(photo: Image.Image, region: _Region, side: int, *, repeats_edges: bool) -> Floats:
    """A region as (side, side, 3), 0 to 1. What is outside of the photo is as its edge, or black.

    Every pixel is mixed of the nearest four, places counting from a pixel's corner, and rounded to 8 bits, as mediapipe
    does on a CPU.
    """
    pixels = np.asarray(photo, np.float32)
    down, across = (grid * region.side / side - region.side / 2 for grid in np.mgrid[:side, :side])
    cosine, sine = math.cos(region.angle), math.sin(region.angle)
    if not repeats_edges:
        pixels = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    offset = 0 if repeats_edges else 1
    x = np.clip(region.x + across * cosine - down * sine + offset, 0, pixels.shape[1] - 1)
    y = np.clip(region.y + across * sine + down * cosine + offset, 0, pixels.shape[0] - 1)
    left, top = x.astype(int), y.astype(int)
    right, bottom = np.minimum(left + 1, pixels.shape[1] - 1), np.minimum(top + 1, pixels.shape[0] - 1)
    x_part, y_part = (x - left)[..., np.newaxis], (y - top)[..., np.newaxis]
    upper = pixels[top, left] * (1 - x_part) + pixels[top, right] * x_part
    lower = pixels[bottom, left] * (1 - x_part) + pixels[bottom, right] * x_part
    return np.asarray(np.round(upper * (1 - y_part) + lower * y_part) / 255, np.float32)
