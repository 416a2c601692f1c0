"""ComfyUI's API format: what is taken as it is, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.comfy.graph import Graph, Link, check, from_api
from headrace.comfy.specs import SPECS, WIDGET_TYPES
from headrace.errors import RequestError


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


def picture(**changes: Any) -> dict[str, Any]:
    """A workflow that scales a picture by a switch's choice, and saves it."""
    nodes = {
        "1": node("LoadImage", image="a.png"),
        "2": node("ImageScaleBy", image=["1", 0], upscale_method="area", scale_by=0.5),
        "3": node("PrimitiveBoolean", value=False),
        "4": node("ComfySwitchNode", switch=["3", 0], on_false=["1", 0], on_true=["2", 0]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="out"),
    }
    return nodes | changes


def checked(document: dict[str, Any], *only: str) -> Graph:
    return check(from_api(document), only)


def test_each_node_comes_after_what_it_is_linked_to() -> None:
    graph = checked(dict(reversed(picture().items())))
    seen: set[str] = set()
    for key, entry in graph.nodes.items():
        assert {link.node for _, link in entry.links()} <= seen
        seen.add(key)
    assert "5" in seen


def test_the_branch_a_switch_does_not_take_may_be_anything() -> None:
    missing = picture(**{"2": node("NoSuchNode", image=["9", 0])})
    assert set(checked(missing).nodes) == {"1", "3", "4", "5"}
    assert checked(missing).nodes["4"].inputs == {"switch": Link("3", 0), "on_false": Link("1", 0)}
    with pytest.raises(RequestError, match="linked to node 9, which is not there"):
        checked(missing | {"3": node("PrimitiveBoolean", value=True)})
    with pytest.raises(RequestError, match="on_true, to which nothing is linked"):
        checked(picture(**{"4": node("ComfySwitchNode", switch=True, on_false=["1", 0])}))


def test_values_get_the_type_of_their_input() -> None:
    scaled = node("ImageScale", image=["1", 0], upscale_method="area", width="64", height=48.0, crop="center")
    graph = checked(picture(**{"5": node("SaveImage", images=["6", 0], filename_prefix=7), "6": scaled}))
    assert (graph.nodes["6"].inputs["width"], graph.nodes["6"].inputs["height"]) == (64, 48)
    assert graph.nodes["5"].inputs["filename_prefix"] == "7"
    scale = node("ImageScaleBy", image=["1", 0], upscale_method="area", scale_by=1)
    assert isinstance(
        checked(picture(**{"2": scale, "3": node("PrimitiveBoolean", value=1)})).nodes["2"].inputs["scale_by"], float
    )


def test_what_older_workflows_cannot_know_gets_its_default() -> None:
    old = node("ImageScaleToTotalPixels", image=["1", 0], upscale_method="lanczos", megapixels=1)
    graph = checked(picture(**{"5": node("SaveImage", images=["6", 0], filename_prefix="a"), "6": old}))
    assert graph.nodes["6"].inputs["resolution_steps"] == 1


def test_only_the_outputs_that_were_asked_for_run() -> None:
    document = picture(**{"6": node("PreviewImage", images=["7", 0]), "7": node("NoSuchNode")})
    assert set(checked(document, "5").nodes) == {"1", "3", "4", "5"}
    with pytest.raises(RequestError, match="Node 7 is not one that saves pictures; those of this workflow: 5, 6"):
        checked(document, "7")
    with pytest.raises(RequestError, match="NoSuchNode"):
        checked(document)


def test_unknown_nodes_at_the_end_of_something_are_told_of() -> None:
    document = picture(**{"6": node("SaveImageExtended", images=["1", 0]), "7": node("Label")})
    with pytest.warns(UserWarning, match=r"Left out: node 6 \(SaveImageExtended\), .* \(use SaveImage\)\.") as told:
        assert set(checked(document).nodes) == {"1", "3", "4", "5"}
    assert len(told) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"5": node("NoSuchNode")}, r"Node 5 \(NoSuchNode\) is not one that Headrace runs\."),
        ({"5": node("LoadImage", image="b.png")}, "saves nothing"),
        ({"1": node("Flux2ProImageNode")}, "Flux2ProImageNode.*calls a service; a FLUX.2 template"),
        ({"1": node("KSampler (Efficient)", "My sampler")}, 'Node 1 .*"My sampler".*: use KSampler'),
        ({"1": node("LoadImage")}, r"Node 1 \(LoadImage\) has no value for its input image"),
        ({"5": node("SaveImage", filename_prefix="a")}, "has nothing linked to its input images"),
        ({"5": node("SaveImage", images="a.png", filename_prefix="a")}, "has to be linked to a node; it is 'a.png'"),
        ({"5": node("SaveImage", images=["1", 2], filename_prefix="a")}, "output 2 of node 1 .*, which has 2"),
        ({"5": node("SaveImage", images=["1", -1], filename_prefix="a")}, "output -1"),
        ({"5": node("SaveImage", images=["1", 1], filename_prefix="a")}, "takes IMAGE, but node 1 .* gives MASK"),
        ({"5": node("SaveImage", images=["3", 0], filename_prefix="a")}, "takes IMAGE, but node 3 .* gives BOOLEAN"),
        ({"1": node("ImageScaleBy", image=["4", 0], upscale_method="area", scale_by=1)}, "in a circle"),
        ({"3": node("PrimitiveBoolean", value="false")}, "value of node 3 .* has to be true or false; it is 'false'"),
        ({"3": node("PrimitiveBoolean", value=["3", 0])}, "in a circle"),
        ({"1": node("LoadImage", image={"a": 1})}, "has to be text; it is an object"),
        ({"1": node("LoadImage", image={"__value__": ["a"]})}, "has to be text; it is a list"),
    ],
)
def test_what_cannot_run_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        checked(picture(**changes))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (9.0, "from 0.01 to 8.0; it is 9.0"),
        (float("nan"), "has to be a number"),
        ("many", "has to be a number; it is 'many'"),
        (True, "has to be a number"),
        (10**400, "has to be a number; it is a number of more than 40 digits"),
    ],
)
def test_numbers_out_of_bounds_are_refused(value: object, words: str) -> None:
    scale = node("ImageScaleBy", image=["1", 0], upscale_method="area", scale_by=value)
    with pytest.raises(RequestError, match=words):
        checked(picture(**{"2": scale, "3": node("PrimitiveBoolean", value=True)}))


def test_the_api_format_survives_reading_and_writing() -> None:
    document = picture(**{"6": node("Other", "of a list", points={"__value__": [1, 2]}, one=[1], words=["a", "b"])})
    again = from_api(document).to_api()
    assert again["6"]["inputs"] == {
        "points": {"__value__": [1, 2]},
        "one": {"__value__": [1]},
        "words": {"__value__": ["a", "b"]},
    }
    assert {key: entry for key, entry in again.items() if key != "6"} == picture()


def test_the_specs_are_consistent() -> None:
    for spec in SPECS.values():
        names = [entry.name for entry in spec.inputs]
        assert len(set(names)) == len(names)
        for entry in spec.inputs:
            assert entry.is_widget == (entry.type in WIDGET_TYPES)
            if entry.options:
                assert entry.default in entry.options
            if entry.minimum is not None:
                assert entry.maximum is not None
                assert isinstance(entry.default, int | float)
                assert entry.minimum <= entry.default <= entry.maximum
    assert [entry and entry.name for entry in SPECS["LoadImageMask"].widget_slots()] == ["image", "channel", None]
    assert [entry and entry.name for entry in SPECS["KSampler"].widget_slots()] == [
        "seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise",
    ]  # fmt: skip
