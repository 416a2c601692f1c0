"""The files that pose estimators write: OpenPose's (BODY_25, COCO-18), COCO's 17 and 133 keypoints, several people.

| file | told by | people |
|---|---|---|
| OpenPose, and ControlNet's variant | `people`, or a list of such frames, of which the first counts | `pose_keypoints_2d` of 25 or 18, hands, face |
| COCO annotations and results | `annotations`, or a list of them | `keypoints` of 17; `face_kpts`, `lefthand_kpts`, `righthand_kpts` |
| MMPose, DWPose | `instances`, `instance_info`, or a list of instances | `keypoints` of 17 or 133 with `keypoint_scores` |
"""  # noqa: E501

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import RequestError
from headrace.pose.skeleton import KEYPOINTS, Point
from headrace.recipe import MAX_AREA

Part = tuple[Point | None, ...]

MAX_PEOPLE = 100
MAX_PLACE = 1e6

# What estimators are less sure of than this is not drawn: OpenPose's own threshold, and that of DWPose.
_OPENPOSE_CONFIDENCE, _COCO_CONFIDENCE = 0.05, 0.3

# Where the points of COCO-18 are in other orders; COCO has no neck, which is the middle of the shoulders.
_NECK = -1
_FROM_BODY_25 = (*range(8), *range(9, 19))
_FROM_COCO_17 = (0, _NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_COCO_SHOULDERS = 5, 6

_FACE_OF_133, _LEFT_HAND_OF_133, _RIGHT_HAND_OF_133 = slice(23, 91), slice(91, 112), slice(112, 133)
_COUNTS = {"hand": (21,), "face": (68, 70)}


@dataclass(frozen=True)
class Person:
    """Points in pixels, None for what is not seen. body: COCO-18. Hands: 21 points each, face: 68 or 70, or none."""

    body: Part
    left_hand: Part = ()
    right_hand: Part = ()
    face: Part = ()


@dataclass(frozen=True)
class Poses:
    """People on a canvas of width x height pixels."""

    width: int
    height: int
    people: tuple[Person, ...]

    def scaled(self, size: tuple[int, int]) -> Poses:
        """The same people as large as they can be in the middle of a canvas of this (width, height).

        Raises RequestError where that is empty or has more than 4 megapixels.
        """
        if min(size) < 1 or size[0] * size[1] > MAX_AREA:
            raise RequestError(f"A pose of {size[0]}x{size[1]} pixels cannot be drawn; give a size up to 4 megapixels.")
        scale = min(size[0] / self.width, size[1] / self.height)
        left, top = (size[0] - self.width * scale) / 2, (size[1] - self.height * scale) / 2
        return Poses(*size, tuple(_moved(person, scale, scale, left, top) for person in self.people))

    def as_openpose(self) -> dict[str, Any]:
        """The same as OpenPose writes it, in JSON types, with ControlNet's canvas size."""
        return {
            "version": 1.3,
            "people": [
                {
                    "pose_keypoints_2d": _flat(person.body),
                    "hand_left_keypoints_2d": _flat(person.left_hand),
                    "hand_right_keypoints_2d": _flat(person.right_hand),
                    "face_keypoints_2d": _flat(person.face),
                }
                for person in self.people
            ],
            "canvas_width": self.width,
            "canvas_height": self.height,
        }


def read_poses(document: str | bytes, name: str, size: tuple[int, int] | None = None) -> Poses:
    """The people in a keypoints file.

    name: of the file, for errors. size: (width, height) of the picture to be drawn, onto which the file's own canvas is
    scaled as far as it fits; by default that canvas. Places from 0 to 1 are parts of the canvas. Raises RequestError
    where it is no such file, has nobody in it or does not say how large its canvas is.
    """
    try:
        values = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The keypoints {name} are not JSON.") from error
    entries, canvas = _entries(values)
    if entries is None:
        raise RequestError(
            f"The keypoints {name} are of no kind that is read: OpenPose (BODY_25, COCO-18), COCO (17) or DWPose (133)."
        )
    if len(entries) > MAX_PEOPLE:
        raise RequestError(f"The keypoints {name} have {len(entries)} people; at most {MAX_PEOPLE} are drawn.")
    people = [_person(entry, name) for entry in entries]
    if not any(any(person.body) for person in people):
        raise RequestError(f"The keypoints {name} have nobody in them.")
    canvas = canvas or size
    if canvas is None:
        raise RequestError(f"The keypoints {name} do not say how large their canvas is; give a size.")
    if _are_parts(people):
        people = [_moved(person, *canvas, 0.0, 0.0) for person in people]
    return Poses(*canvas, tuple(people)).scaled(size or canvas)


def _entries(values: Any) -> tuple[list[Any] | None, tuple[int, int] | None]:
    """What a file has of each person, and the size of its canvas; None where it is no such file."""
    if isinstance(values, list) and values and isinstance(values[0], dict) and "people" in values[0]:
        values = values[0]
    if isinstance(values, list) and values:
        return (values if all(isinstance(entry, dict) and "keypoints" in entry for entry in values) else None), None
    if not isinstance(values, dict):
        return None, None
    if isinstance(values.get("people"), list):
        return values["people"], _canvas(values, "canvas_width", "canvas_height")
    if isinstance(values.get("annotations"), list):
        images = values.get("images")
        only = images[0] if isinstance(images, list) and len(images) == 1 and isinstance(images[0], dict) else {}
        return values["annotations"], _canvas(only, "width", "height")
    if "keypoints" in values:
        return [values], None
    for name in ("instances", "instance_info"):
        if isinstance(values.get(name), list):
            return _entries(values[name]) if values[name] else ([], None)
    return None, None


def _canvas(values: Mapping[str, Any], width: str, height: str) -> tuple[int, int] | None:
    sides = values.get(width), values.get(height)
    if all(isinstance(side, int | float) and 1 <= side <= MAX_PLACE for side in sides):
        return round(sides[0]), round(sides[1])  # type: ignore[arg-type]
    return None


def _person(entry: Any, name: str) -> Person:
    if not isinstance(entry, dict):
        raise RequestError(f"The keypoints {name} have {str(entry)[:40]!r} where a person should be.")
    if "pose_keypoints_2d" in entry:
        read = _reader(entry, _OPENPOSE_CONFIDENCE, name)
        return Person(
            _body(read("pose_keypoints_2d"), name),
            _checked(read("hand_left_keypoints_2d"), "hand", name),
            _checked(read("hand_right_keypoints_2d"), "hand", name),
            _checked(read("face_keypoints_2d"), "face", name),
        )
    scores = entry.get("keypoint_scores", entry.get("scores"))
    points = _points(entry.get("keypoints"), scores, _COCO_CONFIDENCE, name)
    if len(points) == 133:
        hands = points[_LEFT_HAND_OF_133], points[_RIGHT_HAND_OF_133]
        return Person(_body(points[:17], name), *hands, points[_FACE_OF_133])
    read = _reader(entry, _COCO_CONFIDENCE, name)
    return Person(
        _body(points, name),
        _checked(read("lefthand_kpts"), "hand", name),
        _checked(read("righthand_kpts"), "hand", name),
        _checked(read("face_kpts"), "face", name),
    )


def _reader(entry: Mapping[str, Any], least: float, name: str) -> Callable[[str], Part]:
    return lambda key: _points(entry.get(key), None, least, name)


def _points(values: Any, scores: Any, least: float, name: str) -> Part:
    """Points from x, y and confidence, flat or in groups, the confidences among them or beside."""
    if not values:
        return ()
    try:
        if isinstance(values[0], list | tuple):
            width = len(values[0])
            rows = [[float(value) for value in row] for row in values]
        else:
            width = 2 if isinstance(scores, list) and len(values) == 2 * len(scores) else 3
            flat = [float(value) for value in values]
            rows = [flat[start : start + width] for start in range(0, len(flat), width)]
        if width == 2 or (isinstance(scores, list) and len(scores) == len(rows)):
            sure = [1.0] * len(rows) if scores is None else [float(score) for score in scores]
            rows = [[*row[:2], confidence] for row, confidence in zip(rows, sure, strict=True)]
        if not all(len(row) == 3 and all(map(math.isfinite, row)) for row in rows):
            raise ValueError("not three finite numbers a point")
        if any(max(abs(row[0]), abs(row[1])) > MAX_PLACE for row in rows):
            raise ValueError("far outside of any picture")
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise RequestError(f"The keypoints {name} have something among their points that is no point.") from error
    return tuple((row[0], row[1]) if row[2] > least else None for row in rows)


def _body(points: Part, name: str) -> Part:
    """COCO-18 from whichever order has so many points."""
    if len(points) == len(KEYPOINTS) or not points:
        return points or (None,) * len(KEYPOINTS)
    if len(points) == 25:
        return tuple(points[index] for index in _FROM_BODY_25)
    if len(points) == 17:
        first, second = (points[index] for index in _COCO_SHOULDERS)
        neck = None
        if first is not None and second is not None:
            neck = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
        return tuple(neck if index == _NECK else points[index] for index in _FROM_COCO_17)
    raise RequestError(f"The keypoints {name} have {len(points)} points of a body; 17, 18, 25 and 133 are known.")


def _checked(points: Part, part: str, name: str) -> Part:
    known = _COUNTS[part]
    if points and len(points) not in known:
        expected = " or ".join(map(str, known))
        raise RequestError(f"The keypoints {name} have {len(points)} points of a {part}; it has {expected}.")
    return points


def _moved(person: Person, across: float, down: float, left: float, top: float) -> Person:
    """The person with every place times (across, down) plus (left, top)."""

    def moved(part: Part) -> Part:
        return tuple(None if point is None else (point[0] * across + left, point[1] * down + top) for point in part)

    return Person(moved(person.body), moved(person.left_hand), moved(person.right_hand), moved(person.face))


def _are_parts(people: Sequence[Person]) -> bool:
    """Whether all places are from 0 to 1, and so parts of the canvas."""
    parts = [part for person in people for part in (person.body, person.left_hand, person.right_hand, person.face)]
    return all(0 <= place <= 1 for part in parts for point in part if point is not None for place in point)


def _flat(part: Part) -> list[float]:
    return [
        value
        for point in part
        for value in ((0.0, 0.0, 0.0) if point is None else (round(point[0], 2), round(point[1], 2), 1.0))
    ]
