"""Poses: every kind of keypoints file to one skeleton, drawn as published; people seen in photos; clear refusals."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Run
from headrace.errors import RequestError
from headrace.pose import draw_poses, estimate, open_poses, read_poses
from headrace.pose.skeleton import COLORS, KEYPOINTS, LIMBS

DATA = Path(__file__).parent / "data" / "pose"

# A person of 18 points, no two in one place.
BODY = [(float(20 + 11 * index % 97), float(10 + 7 * index)) for index in range(18)]
COCO_17 = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # of COCO-18
SHOULDER_MIDDLE = ((BODY[2][0] + BODY[5][0]) / 2, (BODY[2][1] + BODY[5][1]) / 2)
WITH_MIDDLE = (BODY[0], SHOULDER_MIDDLE, *BODY[2:])


def flat(points: list[tuple[float, float]], confidence: float = 1.0) -> list[float]:
    return [value for x, y in points for value in (x, y, confidence)]


def body_25() -> list[tuple[float, float]]:
    """BODY's points where OpenPose's BODY_25 has them, with a middle of the hips and feet."""
    return [*BODY[:8], (1.0, 1.0), *BODY[8:], *[(2.0, 2.0)] * 6]


def coco(points: list[tuple[float, float]] = BODY) -> list[tuple[float, float]]:
    return [points[index] for index in COCO_17]


FILES: dict[str, tuple[Any, Any]] = {
    "BODY_25": ({"people": [{"pose_keypoints_2d": flat(body_25())}], "canvas_width": 200, "canvas_height": 150}, BODY),
    "COCO-18": ({"people": [{"pose_keypoints_2d": flat(BODY)}]}, BODY),
    "frames": ([{"people": [{"pose_keypoints_2d": flat(BODY)}], "canvas_height": 150, "canvas_width": 200}], BODY),
    "parts": (
        {
            "people": [{"pose_keypoints_2d": flat([(x / 200, y / 150) for x, y in BODY])}],
            "canvas_width": 200,
            "canvas_height": 150,
        },
        BODY,
    ),
    "COCO": ({"annotations": [{"keypoints": flat(coco(), 2)}], "images": [{"width": 200, "height": 150}]}, WITH_MIDDLE),
    "COCO results": ([{"keypoints": flat(coco(), 0.9)}], WITH_MIDDLE),
    "MMPose": ({"instances": [{"keypoints": coco(), "keypoint_scores": [0.8] * 17}]}, WITH_MIDDLE),
    "DWPose": (
        {"instance_info": [{"keypoints": [*coco(), *[(5.0, 5.0)] * 116], "keypoint_scores": [1] * 133}]},
        WITH_MIDDLE,
    ),
    "one person": ({"keypoints": flat(coco())}, WITH_MIDDLE),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_is_the_same_person(kind: str) -> None:
    document, expected = FILES[kind]
    (person,) = read_poses(json.dumps(document), kind, (200, 150)).people
    assert np.allclose(person.body, expected)
    assert (len(person.face), len(person.left_hand), len(person.right_hand)) == (
        (68, 21, 21) if kind == "DWPose" else (0, 0, 0)
    )


def test_what_an_estimator_is_not_sure_of_is_not_there() -> None:
    points = flat(BODY)
    points[2] = points[3 * 4 + 2] = 0.04
    (person,) = read_poses(json.dumps({"people": [{"pose_keypoints_2d": points}]}), "a", (200, 150)).people
    assert [index for index, point in enumerate(person.body) if point is None] == [0, 4]
    scores = [0.9] * 17
    scores[5] = 0.29  # a shoulder, and with it the neck
    document = {"keypoints": coco(), "keypoint_scores": scores}
    (person,) = read_poses(json.dumps(document), "a", (200, 150)).people
    assert [KEYPOINTS[index] for index, point in enumerate(person.body) if point is None] == ["neck", "left shoulder"]


def test_a_canvas_is_scaled_as_far_as_it_fits() -> None:
    document = json.dumps({"people": [{"pose_keypoints_2d": flat(BODY)}], "canvas_width": 200, "canvas_height": 150})
    assert read_poses(document, "a").people[0].body == tuple(BODY)
    poses = read_poses(document, "a", (400, 400))
    assert (poses.width, poses.height) == (400, 400)
    assert np.allclose(poses.people[0].body, [(2 * x, 2 * y + 50) for x, y in BODY])


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.tuples(st.integers(2, 500), st.integers(2, 300))), min_size=18, max_size=18),
        min_size=1,
        max_size=4,
    ).filter(lambda people: any(map(any, people)))
)
def test_what_is_written_as_openpose_is_read_again(people: list[list[tuple[int, int] | None]]) -> None:
    document = {
        "people": [
            {"pose_keypoints_2d": [value for point in person for value in ((*point, 1.0) if point else (0, 0, 0))]}
            for person in people
        ],
        "canvas_width": 512,
        "canvas_height": 320,
    }
    poses = read_poses(json.dumps(document), "a")
    assert read_poses(json.dumps(poses.as_openpose()), "b") == poses
    assert [list(person.body) for person in poses.people] == people


def test_the_drawing_is_the_published_one() -> None:
    """Beside what controlnet_aux 0.0.10 drew of two people with hands and face, without smooth edges, at 512x512."""
    poses = open_poses(DATA / "people.json")
    drawn = np.asarray(draw_poses(poses), np.int16)
    published = np.asarray(Image.open(DATA / "people.png").convert("RGB"), np.int16)
    difference = np.abs(drawn - published).max(axis=2)
    lit = published.any(axis=2)
    # Away from edges, where the published drawing has one colour around a pixel, so has ours.
    flat_colour = np.ones_like(lit)
    for axis in (0, 1):
        for shift in (-1, 1):
            flat_colour &= (np.roll(published, shift, axis) == published).all(axis=2)
    assert lit[flat_colour].sum() > 2000
    assert (difference[flat_colour & lit] <= 2).mean() > 0.95
    assert (difference[flat_colour] > 2).mean() < 0.004
    assert abs(drawn.sum() / published.sum() - 1) < 0.05


def test_joints_and_limbs_have_their_colours_and_grow_with_the_picture() -> None:
    apart = [(60.0 + 90 * (index % 6), 60.0 + 120 * (index // 6)) for index in range(18)]
    for scale in (0.5, 1.0, 2.0):
        points = [(x * scale, y * scale) for x, y in apart]
        size = round(640 * scale), round(512 * scale)
        poses = read_poses(json.dumps({"people": [{"pose_keypoints_2d": flat(points)}]}), "a", size)
        pixels = np.asarray(draw_poses(poses))
        for (x, y), color in zip(points, COLORS, strict=True):
            assert tuple(pixels[round(y), round(x)]) == color
        only = read_poses(
            json.dumps({"people": [{"pose_keypoints_2d": flat([points[0]]) + [0.0] * 51}]}), "a", size
        )  # fmt: skip
        area = np.asarray(draw_poses(only))[:, :, 0].sum() / 255  # of the nose, which is red
        assert area == pytest.approx(np.pi * (4 * scale) ** 2, rel=0.15)
    assert len(LIMBS) == 17


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("no json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "no kind that is read"),
        ("[]", "no kind that is read"),
        ('[{"people": 3}]', "no kind that is read"),
        ('{"people": []}', "nobody"),
        ('{"instances": []}', "nobody"),
        (json.dumps({"people": [{"pose_keypoints_2d": flat(BODY, 0.0)}]}), "nobody"),
        (json.dumps({"people": [{"pose_keypoints_2d": flat(BODY)}]}), "give a size"),
        ('{"people": ["a"]}', "where a person should be"),
        (json.dumps({"people": [{"pose_keypoints_2d": flat(BODY[:5])}]}), "5 points of a body"),
        (json.dumps({"people": [{"pose_keypoints_2d": flat(BODY), "hand_left_keypoints_2d": [1, 1, 1]}]}), "of a hand"),
        (json.dumps({"people": [{"pose_keypoints_2d": flat(BODY), "face_keypoints_2d": [1, 1, 1] * 99}]}), "of a face"),
        ('{"people": [{"pose_keypoints_2d": [1, 2]}]}', "no point"),
        ('{"people": [{"pose_keypoints_2d": "abc"}]}', "no point"),
        ('{"people": [{"pose_keypoints_2d": [NaN, 2, 1]}]}', "no point"),
        ('{"people": [{"pose_keypoints_2d": [1e300, 2, 1]}]}', "no point"),
        ('{"people": [{"pose_keypoints_2d": {"a": 1}}]}', "no point"),
        ('{"keypoints": [[1, 2], [3]]}', "no point"),
        ('{"keypoints": [[1, 2]], "keypoint_scores": [1, 2]}', "no point"),
        (json.dumps({"people": [{}] * 101}), "at most 100"),
        (
            json.dumps({"people": [{"pose_keypoints_2d": flat(BODY)}], "canvas_width": 9e5, "canvas_height": 9e5}),
            "up to 4 megapixels",
        ),
    ],
)
def test_what_is_no_pose_is_one_sentence(document: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_poses(document, "a.json")
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["people", "keypoints", "instances", "annotations", "images", "pose_keypoints_2d", "scores"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_whatever_the_json_it_is_people_or_a_refusal(document: Any) -> None:
    with contextlib.suppress(RequestError):
        assert read_poses(json.dumps(document), "a", (64, 64)).people


# The command


def test_a_keypoints_file_is_drawn_and_printed(headrace: Run, tmp_path: Path) -> None:
    result = headrace("pose", DATA / "people.json", "-o", "pose.png", "--size", "320x256", "--json")
    assert (result.returncode, result.stderr) == (0, "wrote pose.png (2 people, 320x256)\n")
    with Image.open(tmp_path / "pose.png") as image:
        assert image.size == (320, 256)
        again = draw_poses(read_poses(result.stdout, "stdout"))
        assert np.abs(np.asarray(again, np.int16) - np.asarray(image, np.int16)).mean() < 0.1
    refused = headrace("pose", DATA / "people.json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Name a picture with -o" in refused.stderr


def test_generate_takes_a_pose_as_the_first_reference(headrace: Run, tmp_path: Path, tiny_model: Any) -> None:
    from headrace.editing import pixel_hash
    from headrace.provenance import read_recipe

    Image.new("RGB", (32, 48), "red").save(tmp_path / "a.png")
    result = headrace(
        "generate", "image 2 in the pose of image 1", "--model", tiny_model("klein"), "--device", "cpu",
        "--pose", DATA / "people.json", "--ref", "a.png", "--size", "64x64", "--steps", "1", "-o", "b.png",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        f"image 1: {DATA / 'people.json'}, used at 64x64",
        "image 2: a.png, used at 32x48",
    ]
    records = read_recipe(tmp_path / "b.png").references
    assert records[0].sha256 == pixel_hash(draw_poses(open_poses(DATA / "people.json", (64, 64))))


# Photos


class Network:
    """Stands in for a network: gives `results`, and keeps what it was given."""

    def __init__(self, *results: np.ndarray[Any, Any]) -> None:
        self.results, self.given = results, np.empty(0)

    def get_input_details(self) -> list[dict[str, int]]:
        return [{"index": 0}]

    def get_output_details(self) -> list[dict[str, int]]:
        return [{"index": index} for index in range(len(self.results))]

    def set_tensor(self, index: int, values: np.ndarray[Any, Any]) -> None:
        self.given = values

    def invoke(self) -> None:
        """Everything is known already."""

    def get_tensor(self, index: int) -> np.ndarray[Any, Any]:
        return self.results[index][np.newaxis].astype(np.float32)


def blazepose(places: np.ndarray[Any, Any], sure: float = 9.0) -> Network:
    landmarks = np.zeros((39, 5))
    landmarks[:33, :2] = places * 256
    landmarks[:, 3] = 5
    return Network(
        landmarks.ravel(), np.array([sure]), np.zeros(1), np.full((64, 64, 39), -9.0), np.zeros(1),
    )  # fmt: skip


def detector(people: list[tuple[int, tuple[float, float], tuple[float, float], float]]) -> Network:
    """People by the anchor that sees them, the middle of the hips and the point above, in the photo's square."""
    boxes, logits = np.zeros((2254, 12)), np.full((2254, 1), -9.0)
    anchors = estimate._anchors()
    for anchor, hips, top, logit in people:
        for column, place in ((0, hips), (4, hips), (6, top)):
            boxes[anchor, column : column + 2] = (np.array(place) - anchors[anchor]) * 224
        boxes[anchor, 2:4] = 60
        logits[anchor] = logit
    return Network(boxes, logits)


def test_people_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (400, 300), "grey")  # in the middle of a square of 400
    hips, top = (0.5, 0.5), (0.75, 0.5)  # lying, the head to the right
    places = np.full((33, 2), 0.5)
    places[0] = 0.5, 0.3  # the nose, above the hips
    networks = detector([(900, hips, top, 3.0), (901, hips, top, 2.0)]), blazepose(places)
    monkeypatch.setattr(estimate, "_open_networks", lambda: networks)
    (person,) = estimate.estimate_poses(photo, "photo").people
    # The square has a side of 2 * 0.25 * 400 * 1.25 = 250 pixels; a fifth of it to the right of the middle.
    assert np.allclose(person.body[0], (250, 150), atol=1e-3)
    assert np.allclose(person.body[1], (200, 150), atol=1e-3)

    two = detector([(10, (0.3, 0.5), (0.3, 0.3), 3.0), (700, (0.7, 0.5), (0.7, 0.3), 4.0)])
    monkeypatch.setattr(estimate, "_open_networks", lambda: (two, blazepose(places)))
    people = estimate.estimate_poses(photo, "photo").people
    assert np.allclose([person.body[1] for person in people], [(280, 150), (120, 150)], atol=1e-3)


def test_nobody_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (40, 30))
    places = np.full((33, 2), 0.5)
    for networks in (
        (detector([]), blazepose(places)),
        (detector([(5, (0.5, 0.5), (0.5, 0.2), 3.0)]), blazepose(places, sure=0.1)),
        (detector([(5, (0.5, 0.5), (0.5, 0.2), 3.0)]), blazepose(places - 9)),
    ):
        monkeypatch.setattr(estimate, "_open_networks", lambda networks=networks: networks)
        with pytest.raises(RequestError, match="Nobody is seen"):
            estimate.estimate_poses(photo, "photo")


def test_without_the_packages_they_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(estimate.importlib.util, "find_spec", lambda name: None)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"headrace\[pose\]"):
        open_poses(tmp_path / "a.png")


def test_a_region_is_cut_upright() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:20, 30:40] = 255
    photo = Image.fromarray(pixels)
    straight = estimate._cut(photo, estimate._Region(35, 15, 20, 0.0), 20, repeats_edges=True)
    assert straight[5:15, 5:15].min() == 1
    assert straight[:5].max() == 0
    turned = estimate._cut(photo, estimate._Region(35, 25, 40, np.pi / 2), 40, repeats_edges=True)
    # What is above the middle comes to the left when the square's top points to the right.
    rows, columns = np.nonzero(turned[:, :, 0] > 0.5)
    assert abs(rows.mean() - 20) <= 1
    assert abs(columns.mean() - 10) <= 1
    white = Image.new("RGB", (20, 20), "white")
    for repeats, value in ((True, 1), (False, 0)):
        beyond = estimate._cut(white, estimate._Region(0, 0, 20, 0.0), 20, repeats_edges=repeats)
        assert beyond[:9, :9].min() == beyond[:9, :9].max() == value


def test_the_estimator_sees_the_astronaut() -> None:
    """With the real networks, beside what mediapipe 0.10.21 itself answered."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("mediapipe", reason="the networks are inside this package")
    skimage = pytest.importorskip("skimage")
    photo = Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB")
    expected = json.loads((DATA / "astronaut.json").read_text())
    (person,) = estimate.estimate_poses(photo, "photo").people
    for name, place in expected.items():
        point = person.body[KEYPOINTS.index(name)]
        assert point is not None
        assert np.linalg.norm(np.subtract(point, place)) <= 0.02 * 512  # the person fills the picture
