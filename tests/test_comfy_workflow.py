"""Workflows as ComfyUI's page saves them, turned into the API format that the page itself would send."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfy_pages import draw_page, random_api
from conftest import Run
from headrace.comfy.graph import check
from headrace.comfy.prompts import choose, fill_in
from headrace.comfy.workflow import Workflow, assign, read_workflow
from headrace.comfy.workflow import settings as settable
from headrace.errors import RequestError

DATA = Path(__file__).parent / "data" / "comfy"
SHARED = Path(__file__).parents[2] / "shared" / "conformance" / "comfy_templates"
LOCAL = sorted(SHARED.glob("image_flux2*.json")) + sorted(SHARED.glob("older/*.json"))

Document = dict[str, Any]


def read(document: object) -> Workflow:
    return read_workflow(json.dumps(document).encode(), "test.json")


def converted(document: object) -> Document:
    return {
        key: (node["class_type"], node["inputs"])
        for key, node in json.loads(json.dumps(read(document).graph.to_api())).items()
    }


def without_titles(api: Document) -> Document:
    return {key: (node["class_type"], node["inputs"]) for key, node in api.items()}


@pytest.mark.parametrize("expected", sorted(DATA.glob("*.api.json")), ids=lambda path: path.name)
def test_templates_become_what_the_page_sends(expected: Path) -> None:
    saved = json.loads((DATA / expected.name.replace(".api.json", ".json")).read_text())
    assert converted(saved) == without_titles(json.loads(expected.read_text()))
    check(read(saved).graph)


@pytest.mark.parametrize("path", LOCAL or [pytest.param(None, marks=pytest.mark.skip("no ../shared"))], ids=str)
def test_every_local_template_is_read(path: Path) -> None:
    workflow = read_workflow(path.read_bytes(), path.name)
    graph = check(workflow.graph)
    assert [node.class_type for node in graph.nodes.values()][-1] == "SaveImage"
    # Whatever is loaded, the template says where to get.
    named = {file.name for file in workflow.graph.files}
    folders = {"UNETLoader": "unet_name", "CLIPLoader": "clip_name", "VAELoader": "vae_name"}
    loaded = {n.inputs[folders[n.class_type]] for n in graph.nodes.values() if n.class_type in folders}
    assert loaded <= named
    expanded = SHARED / "api_expanded" / f"{path.stem}.api.json"
    if expanded.exists() and path.parent == SHARED:
        assert converted(json.loads(path.read_text())) == without_titles(json.loads(expanded.read_text()))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 14))
def test_however_a_graph_is_drawn_it_comes_back(seed: int, size: int, changes: int) -> None:
    draw = random.Random(seed)
    api = random_api(draw, size)
    document, paths = draw_page(api, draw, changes)
    moved = {
        paths[key]: (
            node["class_type"],
            {
                name: [paths[value[0]], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        )
        for key, node in api.items()
    }
    assert converted(document) == moved
    assert converted(api) == without_titles(api)


# Single rules, each as ComfyUI's page (ComfyUI_frontend 1.58) carries it out.


def drawn(key: int, kind: str, values: Any = (), inputs: Document | None = None, outputs: int = 1, **more: Any) -> Any:
    """A node; `inputs`: link by name; a name with a star is a widget's."""
    slots = [
        {"name": name.strip("*"), "type": TYPES.get(name, "*"), "link": link}
        | ({"widget": {"name": name.strip("*")}} if name.endswith("*") else {})
        for name, link in (inputs or {}).items()
    ]
    types = OUTPUTS.get(kind, ["*"] * outputs)
    return {
        "id": key,
        "type": kind,
        "mode": 0,
        "inputs": slots,
        "outputs": [{"name": name, "type": name} for name in types],
        "widgets_values": list(values) if isinstance(values, tuple) else values,
    } | more


TYPES = {
    "image": "IMAGE", "images": "IMAGE", "model": "MODEL", "clip": "CLIP", "samples": "LATENT", "conditioning":
    "CONDITIONING", "width*": "INT", "value*": "INT", "text*": "STRING", "on_false": "MODEL", "on_true": "MODEL",
}  # fmt: skip
OUTPUTS = {
    "LoadImage": ["IMAGE", "MASK"], "ImageScaleBy": ["IMAGE"], "UNETLoader": ["MODEL"], "CLIPLoader": ["CLIP"],
    "LoraLoaderModelOnly": ["MODEL"], "PrimitiveInt": ["INT"], "GetImageSize": ["INT", "INT", "INT"],
    "CLIPTextEncode": ["CONDITIONING"], "EmptyFlux2LatentImage": ["LATENT"],
}  # fmt: skip

LATENT = drawn(2, "EmptyFlux2LatentImage", (64, 96, 1), {"width*": 1})
SUB = {
    "id": "sub",
    "inputs": [{"name": "width", "type": "INT", "linkIds": [1]}],
    "outputs": [{"name": "LATENT", "type": "LATENT", "linkIds": [2]}],
    "nodes": [LATENT],
    "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 2, "target_slot": 0},
        {"id": 2, "origin_id": 2, "origin_slot": 0, "target_id": -20, "target_slot": 0},
    ],
}
INNER = "5:2"


def page(*nodes: Any, links: list[list[int]] | None = None, subgraphs: tuple[Any, ...] = ()) -> Document:
    return {"nodes": list(nodes), "links": links or [], "definitions": {"subgraphs": list(subgraphs)}, "version": 0.4}


def instance(values: Any = (), **more: Any) -> Any:
    return drawn(5, "sub", values, **more)


@pytest.mark.parametrize(
    ("node", "width", "height"),
    [
        (instance((320,)), 320, 96),
        (instance(), 64, 96),
        (instance((None,)), 64, 96),
        (instance((320,), properties={"proxyWidgets": [["-1", "width"]]}), 320, 96),
        (instance((800, 960), properties={"proxyWidgets": [["2", "width"], ["2", "height"]]}), 800, 960),
        (instance((960, 800), properties={"proxyWidgets": [["2", "height"], ["2", "width"]]}), 800, 960),
        (instance((), properties={"proxyWidgets": [["2", "height"], ["2", "width"]]}), 64, 96),
        (instance((320,), properties={"proxyWidgets": ["junk", [["2"], 3], None]}), 320, 96),
        (
            instance(
                (320,),
                properties={"proxyWidgetErrorQuarantine": [{"originalEntry": ["-1", "width"], "hostValue": 768}]},
            ),
            768,
            96,
        ),
        (instance([], widgets_values_named={"width": 832}), 832, 96),
    ],
)
def test_the_values_that_an_instance_of_a_subgraph_keeps(node: Document, width: int, height: int) -> None:
    inputs = converted(page(node, subgraphs=(SUB,)))[INNER][1]
    assert (inputs["width"], inputs["height"]) == (width, height)


def test_values_of_instances_within_instances() -> None:
    outer = {
        "id": "outer",
        "inputs": [{"name": "w", "type": "INT", "linkIds": [1]}],
        "nodes": [drawn(9, "sub", (448,), {"width*": 1})],
        "links": [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 9, "target_slot": 0}],
    }
    for values, width in (((704,), 704), ((), 448)):
        document = page(drawn(5, "outer", values), subgraphs=(outer, SUB))
        assert converted(document)["5:9:2"][1]["width"] == width
    proxied = outer | {"inputs": [], "links": [], "nodes": [drawn(9, "sub", (448,))]}
    host = drawn(5, "outer", (736,), properties={"proxyWidgets": [["9", "width"]]})
    assert converted(page(host, subgraphs=(proxied, SUB)))["5:9:2"][1]["width"] == 736


def test_a_link_from_outside_comes_before_the_values_of_a_subgraph() -> None:
    five = instance((320,), inputs={"width*": 1})
    links = [[1, 1, 0, 5, 0]]
    linked = page(drawn(1, "PrimitiveInt", (512, "fixed")), five, links=links, subgraphs=(SUB,))
    assert converted(linked)[INNER][1]["width"] == ["1", 0]
    # What comes from nowhere leaves the inner widget as it is.
    muted = page(drawn(1, "PrimitiveInt", (512, "fixed"), mode=2), five, links=links, subgraphs=(SUB,))
    assert converted(muted)[INNER][1]["width"] == 64
    primitive = page(drawn(1, "PrimitiveNode", (512, "fixed")), five, links=links, subgraphs=(SUB,))
    assert converted(primitive)[INNER][1]["width"] == 512


def test_muted_and_bypassed_subgraphs_have_no_nodes() -> None:
    for mode in (2, 4):
        assert converted(page(instance((320,), mode=mode), subgraphs=(SUB,))) == {}


PASSED = [
    # A picture through a bypassed node; the first of two conditionings; a model past the clip; nothing of the type.
    (drawn(2, "ImageScaleBy", ("area", 1), {"image": 1}, mode=4), "LoadImage", "SaveImage", "images", ["1", 0]),
    (drawn(2, "LoraLoaderModelOnly", ("a", 1), {"model": 1}, mode=4), "UNETLoader", "FluxKVCache", "model", ["1", 0]),
    (drawn(2, "GetImageSize", (), {"image": 1}, mode=4), "LoadImage", "PrimitiveInt", "value*", 7),
    (drawn(2, "Reroute", (), {"": 1}), "LoadImage", "SaveImage", "images", ["1", 0]),
    (drawn(2, "Reroute (rgthree)", (), {"": 1}), "LoadImage", "SaveImage", "images", ["1", 0]),
    (drawn(2, "LoadImage", ("a.png", "image"), {"image": 1}, mode=2), "LoadImage", "SaveImage", "images", None),
    (drawn(2, "MarkdownNote", ("x",), {"": 1}), "LoadImage", "SaveImage", "images", None),
]  # fmt: skip


@pytest.mark.parametrize(("node", "source", "sink", "name", "expected"), PASSED)
def test_what_passes_on(node: Document, source: str, sink: str, name: str, expected: object) -> None:
    last = drawn(3, sink, (7, "fixed") if sink == "PrimitiveInt" else ("prefix",), {name: 2})
    document = page(drawn(1, source, ("a.png",)), node, last, links=[[1, 1, 0, 2, 0], [2, 2, 0, 3, 0]])
    found = converted(document)
    assert set(found) == {"1", "3"}
    assert found["3"][1].get(name.strip("*")) == expected


def test_the_place_of_an_output_decides_what_a_bypassed_node_passes_on() -> None:
    switch = drawn(3, "ComfySwitchNode", (True,), {"on_false": 1, "on_true": 2}, mode=4)
    ends = [[1, 1, 0, 3, 0], [2, 2, 0, 3, 1], [3, 3, 0, 6, 0]]
    models = drawn(1, "UNETLoader", ("a",)), drawn(2, "UNETLoader", ("b",))
    document = page(*models, switch, drawn(6, "FluxKVCache", (), {"model": 3}), links=ends)
    assert converted(document)["6"][1] == {"model": ["1", 0]}


def test_a_subgraph_may_hand_its_input_through() -> None:
    through = {
        "id": "sub",
        "inputs": [{"name": "x", "type": "IMAGE", "linkIds": [1]}],
        "outputs": [{"name": "y", "type": "IMAGE", "linkIds": [1]}],
        "nodes": [],
        "links": [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": -20, "target_slot": 0}],
    }
    last = drawn(3, "SaveImage", ("p",), {"images": 2})
    five = drawn(5, "sub", (), {"x": 1})
    document = page(
        drawn(1, "LoadImage", ("a",)), five, last, links=[[1, 1, 0, 5, 0], [2, 5, 0, 3, 0]], subgraphs=(through,)
    )
    assert converted(document)["3"][1]["images"] == ["1", 0]


def test_get_and_set_nodes_find_each_other_from_within_a_subgraph() -> None:
    inner = {"id": "sub", "nodes": [drawn(3, "GetNode", ("m",)), drawn(4, "FluxKVCache", (), {"model": 1})]}
    inner["links"] = [{"id": 1, "origin_id": 3, "origin_slot": 0, "target_id": 4, "target_slot": 0}]
    setter = drawn(2, "SetNode", ("m",), {"MODEL": 1})
    document = page(
        drawn(1, "UNETLoader", ("a",)), setter, drawn(5, "sub"), links=[[1, 1, 0, 2, 0]], subgraphs=(inner,)
    )
    assert converted(document)["5:4"][1] == {"model": ["1", 0]}


def grouped(**changes: Any) -> Document:
    """A group of words, noise and an empty latent, whose width became an input, and what its instance is linked to."""
    latent = drawn(3, "EmptyFlux2LatentImage", (64, 64, 1), {"width*": None})
    group = {
        "nodes": [
            drawn(10, "CLIPTextEncode", ("red",), {"clip": None}),
            drawn(11, "ConditioningZeroOut", (), {"conditioning": 5}),
            drawn(12, "RandomNoise", (5, "randomize")),
            latent,
        ],
        "links": [[0, 0, 1, 0, 5, "CONDITIONING"], [None, 0, 0, 0, 1, "CLIP"]],
        "external": [[0, 0, "CONDITIONING"]],
    }
    instance = drawn(9, "workflow>words", ("a cat", 7, "fixed", 128, 2, 64), {"clip": 1, "width*": 2}, outputs=4)
    document = page(
        drawn(1, "CLIPLoader", ("a", "flux2", "default")),
        drawn(2, "PrimitiveInt", (96, "fixed")),
        instance | changes.pop("instance", {}),
        drawn(4, "CFGGuider", (5,), {"positive": 3, "negative": 4}),
        drawn(5, "SamplerCustomAdvanced", (), {"noise": 6, "latent_image": 7}),
        links=[[1, 1, 0, 9, 0], [2, 2, 0, 9, 1], [3, 9, 0, 4, 0], [4, 9, 1, 4, 1], [6, 9, 2, 5, 0], [7, 9, 3, 5, 1]],
    )
    return document | {"extra": {"groupNodes": {"words": group | changes}}}


def crowded() -> Document:
    """Many instances of a group with many links."""
    document = grouped(links=[[0, 0, 1, 0]] * 1000)
    document["nodes"] += [drawn(100 + number, "workflow>words") for number in range(2000)]
    return document


def test_group_nodes_are_replaced_by_what_is_in_them() -> None:
    expected = {
        "9:0": ("CLIPTextEncode", {"text": "a cat", "clip": ["1", 0]}),
        "9:1": ("ConditioningZeroOut", {"conditioning": ["9:0", 0]}),
        "9:2": ("RandomNoise", {"noise_seed": 7}),
        "9:3": ("EmptyFlux2LatentImage", {"width": ["2", 0], "height": 128, "batch_size": 2}),
        "4": ("CFGGuider", {"cfg": 5, "positive": ["9:0", 0], "negative": ["9:1", 0]}),
        "5": ("SamplerCustomAdvanced", {"noise": ["9:2", 0], "latent_image": ["9:3", 0]}),
    }
    assert expected.items() <= converted(grouped()).items()
    assert expected.items() <= converted(grouped(instance={"type": "workflow/words"})).items()
    without = converted(grouped(external=[]))  # then the outputs move up
    assert without["4"][1] == {"cfg": 5, "positive": ["9:1", 0], "negative": ["9:2", 0]}
    assert set(converted(grouped(instance={"mode": 2}))) == {"1", "2", "4", "5"}


def test_primitives_and_reroutes_inside_a_group() -> None:
    group = {
        "nodes": [
            drawn(1, "PrimitiveNode", (64, "fixed"), outputs=1),
            drawn(2, "EmptyFlux2LatentImage", (16, 16, 1), {"width*": 1, "height*": 2}),
            drawn(3, "Reroute", (), {"": None}),
            drawn(4, "VAEDecode", (), {"samples": 3, "vae": None}),
        ],
        "links": [[0, 0, 1, 0, 1, "INT"], [0, 0, 1, 1, 1, "INT"], [2, 0, 3, 1, 1, "VAE"], [1, 0, 3, 0, 2, "LATENT"]],
    }
    group["nodes"][3]["inputs"][1]["link"] = 4
    instance = drawn(9, "workflow>decoded", (80, "fixed", 3), {"VAE": 1})
    document = page(drawn(1, "VAELoader", ("v",)), instance, links=[[1, 1, 0, 9, 0]])
    made = converted(document | {"extra": {"groupNodes": {"decoded": group}}})
    assert made["9:1"] == ("EmptyFlux2LatentImage", {"width": 80, "height": 80, "batch_size": 3})
    assert made["9:3"] == ("VAEDecode", {"samples": ["9:1", 0], "vae": ["1", 0]})


def doubled(levels: int) -> Document:
    """Groups of two of the group below."""
    document = grouped()
    groups = document["extra"]["groupNodes"]
    for level in range(levels):
        below = f"workflow>{level - 1 if level else 'words'}"
        groups[str(level)] = {"nodes": [drawn(1, below), drawn(2, below)], "links": []}
    document["nodes"].append(drawn(50, f"workflow>{levels - 1}"))
    return document


def test_groups_in_groups_and_in_sub_graphs() -> None:
    """The outer group shows the inner one's values where that stands, and then what it lacks."""
    document = grouped()
    inner = drawn(0, "workflow>words", ("old", 1, "fixed", 16, 1, 16), {"clip": None, "width*": None}, outputs=4)
    outer = {
        "nodes": [drawn(1, "FluxGuidance", (2.5,), {"conditioning": 1}), inner],
        "links": [[1, 0, 0, 0, 1, "CONDITIONING"]],
        "external": [],
    }
    document["extra"]["groupNodes"]["both"] = outer
    instance = drawn(9, "workflow>both", (6.5, "a cat", 7, "fixed", 128, 2, 64), {"clip": 1, "width*": 2}, outputs=4)
    document["nodes"][2] = instance
    expected = {
        "9:0": ("FluxGuidance", {"guidance": 6.5, "conditioning": ["9:1:0", 0]}),
        "9:1:0": ("CLIPTextEncode", {"text": "a cat", "clip": ["1", 0]}),
        "9:1:1": ("ConditioningZeroOut", {"conditioning": ["9:1:0", 0]}),
        "9:1:2": ("RandomNoise", {"noise_seed": 7}),
        "9:1:3": ("EmptyFlux2LatentImage", {"width": ["2", 0], "height": 128, "batch_size": 2}),
        "4": ("CFGGuider", {"cfg": 5, "positive": ["9:0", 0], "negative": ["9:1:1", 0]}),
        "5": ("SamplerCustomAdvanced", {"noise": ["9:1:2", 0], "latent_image": ["9:1:3", 0]}),
    }
    assert expected.items() <= converted(document).items()
    alone = drawn(9, "workflow>words", ("a cat", 7, "fixed", 128, 2, 64), outputs=4)
    folded = {"id": "folded", "inputs": [], "outputs": [], "nodes": [alone], "links": []}
    around = page(drawn(3, "folded"), subgraphs=(folded,)) | {"extra": grouped()["extra"]}
    assert converted(around)["3:9:2"] == ("RandomNoise", {"noise_seed": 7})


def test_a_primitives_number_suits_all_that_it_feeds() -> None:
    """As the page puts them, which was asked."""

    def fed(value: float, *targets: tuple[str, str]) -> list[Any]:
        nodes = [drawn(10 + n, kind, (), {f"{name}*": n}) for n, (kind, name) in enumerate(targets)]
        links = [[n, 1, 0, 10 + n, 0] for n in range(len(targets))]
        made = converted(page(drawn(1, "PrimitiveNode", (value, "fixed"), outputs=1), *nodes, links=links))
        return [made[str(10 + n)][1][name] for n, (_, name) in enumerate(targets)]

    latent, scheduler, grow = (
        ("EmptyFlux2LatentImage", "width"),
        ("Flux2Scheduler", "width"),
        ("VAEEncodeForInpaint", "grow_mask_by"),
    )
    assert fed(1000, scheduler, latent) == [1008, 1008]
    assert fed(-5, scheduler, latent) == [16, 16]
    assert fed(1000, latent, grow) == [64, 64]
    denoise, cfg, guidance, lora = (
        ("KSampler", "denoise"),
        ("CFGGuider", "cfg"),
        ("FluxGuidance", "guidance"),
        ("LoraLoaderModelOnly", "strength_model"),
    )
    assert fed(2.345, guidance, cfg) == [2.3, 2.3]
    assert fed(2.345, lora, guidance) == [2.4, 2.4]
    assert fed(2.345, lora, cfg) == [2.35, 2.4]
    assert fed(9.55, denoise, cfg) == [1, 1]


@pytest.mark.parametrize(
    ("kind", "name", "given", "expected"),
    [
        ("EmptyFlux2LatentImage", "width", 1000, 1008),
        ("EmptyFlux2LatentImage", "width", 999.4, 992),
        ("EmptyLatentImage", "width", 1004, 1008),
        ("Flux2Scheduler", "width", 1001, 1001),
        ("FluxGuidance", "guidance", 3.56, 3.6),
        ("BasicScheduler", "denoise", 1.234, 1.0),
        ("CFGGuider", "cfg", 2.345, 2.4),
        ("LoraLoaderModelOnly", "strength_model", 4.567, 4.57),
        ("EmptyFlux2LatentImage", "width", 7, 16),
        ("KSampler", "steps", 20_000, 10_000),
        ("RandomNoise", "noise_seed", 2**63 + 1, 2**63 + 1),
        ("CFGGuider", "cfg", "text", "text"),
    ],
)
def test_a_primitives_number_is_rounded_as_by_the_page(kind: str, name: str, given: Any, expected: Any) -> None:
    nodes = drawn(1, "PrimitiveNode", (given, "fixed"), outputs=1), drawn(2, kind, (), {f"{name}*": 1})
    assert converted(page(*nodes, links=[[1, 1, 0, 2, 0]]))["2"][1][name] == expected


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("ImageScaleToTotalPixels", ("lanczos", 1), ["lanczos", 1, 1]),
        ("KSampler", (5, "randomize", 20, 8, "euler", "simple", 1), [5, 20, 8, "euler", "simple", 1]),
        ("KSampler", (5, True, 20, 8, "euler", "simple", 1), [5, 20, 8, "euler", "simple", 1]),
        ("KSampler", (5, 20, 8, "euler", "simple", 1), [5, 20, 8, "euler", "simple", 1]),
        ("LoadImageMask", ("a.png", "red", "image"), ["a.png", "red"]),
        ("Flux2Scheduler", {"steps": 7, "width": 64}, [7, 64, 1024]),
        ("Flux2Scheduler", (None, 64), [20, 64, 1024]),
    ],
)
def test_what_values_by_position_mean(kind: str, values: Any, expected: list[Any]) -> None:
    assert list(converted(page(drawn(1, kind, values)))["1"][1].values()) == expected


def test_classes_that_are_not_known() -> None:
    named = drawn(1, "Other", (1, "fixed", "a"), widgets_values_named={"n": 1, "control_after_generate": "fixed"})
    assert converted(page(named))["1"] == ("Other", {"n": 1})
    slots = drawn(1, "Other", (1, "fixed", "a"), {"seed*": None, "text*": None})
    assert converted(page(slots))["1"] == ("Other", {"seed": 1, "text": "a"})
    unnamed = read(page(drawn(1, "Other", (1, 2), {"text*": None})))
    assert [node.id for node in unnamed.unread] == ["1"]


def test_choices_in_prompts_follow_from_the_seed() -> None:
    def text(seed: int) -> str:
        encode = drawn(1, "CLIPTextEncode", ("a {red|green|blue|{old|new} {x}} cat // not this\nsits",))
        return converted(page(encode, drawn(2, "RandomNoise", (seed, "fixed"))))["1"][1]["text"]

    texts = {text(seed) for seed in range(60)}
    assert texts == {f"a {word} cat \nsits" for word in ("red", "green", "blue", "old x", "new x")}
    assert text(7) == text(7)
    assert choose(r"\{a|b\} } | /* c */ {d", random.Random(0)) == "{a|b} } |  d"
    assert choose("{" * 100_000, random.Random(0)) == ""


def test_a_prompt_that_a_subgraph_keeps_is_sent_as_it_is() -> None:
    encode = drawn(2, "CLIPTextEncode", ("inner",), {"text*": 1})
    sub = SUB | {"inputs": [{"name": "text", "type": "STRING", "linkIds": [1]}], "nodes": [encode]}
    assert converted(page(instance(("out {x|y} // z",)), subgraphs=(sub,)))[INNER][1]["text"] == "out {x|y} // z"


def test_file_names_take_values_of_nodes() -> None:
    nodes = (
        drawn(1, "KSamplerSelect", ("euler/a",), title="Sampler"),
        drawn(2, "PrimitiveFloat", (2.0,), properties={"Node name for S&R": "Number"}),
        drawn(3, "SaveImage", ("%Sampler.sampler_name%_%Number.value%_%None.x%_%date:yyyy%_%width%",), {"images": 1}),
    )
    assert converted(page(*nodes))["3"][1]["filename_prefix"] == "euler_a_2_%None.x%_%date:yyyy%_%width%"
    assert fill_in("%a.b%", lambda node, name: True) == "true"


def test_one_set_node_in_a_circle_of_links_is_one_sentence() -> None:
    nodes = drawn(1, "Reroute", (), {"": 1}), drawn(2, "SaveImage", ("p",), {"images": 1})
    with pytest.raises(RequestError, match="links run in a circle through node 1;"):
        read(page(*nodes, links=[[1, 1, 0, 1, 0]]))


def nested(levels: int, twice: bool) -> Document:
    """Sub-graphs in each other; the last in itself."""
    definitions = [
        {"id": f"d{n}", "nodes": [drawn(i, f"d{min(n + 1, levels - 1)}") for i in range(1, 3 if twice else 2)]}
        for n in range(levels)
    ]
    return page(drawn(1, "d0"), subgraphs=tuple(definitions))


def within(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "not a JSON object"),
        ({}, "neither the nodes"),
        ({"nodes": [{"id": 1}]}, "no id or no type"),
        ({"nodes": [{"id": 1, "type": "A", "inputs": 5, "mode": "x"}]}, None),
        (page(drawn(1, "workflow>my group")), 'group node "my group" without saying what is in it'),
        (crowded(), "unfold to more than 100,000 nodes and links"),
        (doubled(15), "unfold to more than 100,000 nodes and links"),
        (doubled(3), None),
        (grouped(nodes=[drawn(1, "Other")]), 'group node "words" has Other inside'),
        (grouped(nodes=[drawn(1, "workflow>words")]), "stand in each other more than 16 deep, or in themselves"),
        (grouped(nodes=[drawn(1, "workflow>none")]), 'group node "none" without saying what is in it'),
        (grouped(links=[[0, 0, 7, 0], ["x"], 5], nodes=5, external=[[1]], config=3), None),
        (nested(3, False), "32 deep, or in themselves"),
        (nested(40, True), "more than"),
        ({"nodes": [{"id": n, "type": "Note"} for n in range(10_001)]}, "10,001 nodes"),
        ({"1": {"class_type": "A", "inputs": []}}, "no inputs by name"),
        ({"1": {"class_type": 5}}, "no class_type"),
        ({"prompt": {"1": {"class_type": "A"}}}, None),
        ({"1": {"class_type": "A", "inputs": {"a": within(150)}}}, None),
        ({"1": {"class_type": "A", "inputs": {"a": within(300)}}}, "more than 200 deep"),
    ],
)
def test_what_is_no_workflow_is_one_sentence(document: Any, words: str | None) -> None:
    if words is None:
        json.dumps(read(document).graph.to_api(), indent=2)
        return
    with pytest.raises(RequestError, match=words) as error:
        read(document)
    assert str(error.value).count("\n") == 0


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore:Left out")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_workflows_are_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    """Any value of a workflow replaced by any other: no exception but RequestError, and no long wait."""
    draw = random.Random(data.draw(st.integers(0, 1000)))
    document: Any = grouped() if draw.random() < 0.3 else draw_page(random_api(draw, 5), draw, 6)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        place, key = document, None
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
                place[key] = data.draw(JUNK)
                break
            place = place[key]
    with contextlib.suppress(RequestError):
        workflow = read(document)
        workflow.graph.to_api()
        check(workflow.graph)


def test_long_ways_are_not_followed_for_ever() -> None:
    """Every reroute of a long row is read from: a quarter of the square of its length."""
    row = [drawn(1, "LoadImage", ("a",))] + [drawn(n, "Reroute", (), {"": n - 1}) for n in range(2, 2000)]
    links = [[n, n, 0, n + 1, 0] for n in range(1, 2000)]
    ends = [drawn(5000 + n, "PreviewImage", (), {"images": 5000 + n}) for n in range(1000)]
    links += [[5000 + n, 1999, 0, 5000 + n, 0] for n in range(1000)]
    with pytest.raises(RequestError, match="lead over more than"):
        read(page(*row, *ends, links=links))


def picture(path: Path, **texts: Any) -> Path:
    info = PngInfo()
    for name, value in texts.items():
        info.add_text(name, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_pictures_carry_workflows(tmp_path: Path) -> None:
    saved = page(
        drawn(
            1, "RandomNoise", (5, "randomize"), properties={"models": [{"name": "a", "url": "u", "directory": "vae"}]}
        )
    )
    prompt = {"1": {"class_type": "RandomNoise", "inputs": {"noise_seed": 4}}}
    both = read_workflow(picture(tmp_path / "a.png", prompt=prompt, workflow=saved).read_bytes(), "a.png")
    assert both.graph.nodes["1"].inputs == {"noise_seed": 4}
    assert both.saved == saved
    assert [file.url for file in both.graph.files] == ["u"]
    only = read_workflow(picture(tmp_path / "b.png", workflow=saved).read_bytes(), "b.png")
    assert only.graph.nodes["1"].inputs == {"noise_seed": 5}
    assert read_workflow(picture(tmp_path / "c.png", prompt=prompt).read_bytes(), "c.png").saved is None
    for texts, words in (
        ({}, "c.png carries no ComfyUI workflow"),
        ({"prompt": "x"}, "The prompt in c.png is not a ComfyUI workflow: it is not JSON"),
        ({"prompt": "{}"}, "not a ComfyUI workflow in the API format"),
    ):
        with pytest.raises(RequestError, match=words):
            read_workflow(picture(tmp_path / "c.png", **texts).read_bytes(), "c.png")


def test_values_are_set_by_id_title_or_class() -> None:
    graph = read_workflow((DATA / "image_flux2.json").read_bytes(), "x").graph
    assert assign(graph, "68:25.noise_seed=18446744073709551615").nodes["68:25"].inputs["noise_seed"] == 2**64 - 1
    titled = assign(graph, "clip text encode (positive prompt).text=a=b.c")
    assert titled.nodes["68:6"].inputs["text"] == "a=b.c"
    assert assign(graph, "PrimitiveBoolean.value=yes").nodes["68:94"].inputs["value"] is True
    assert assign(graph, "EmptyFlux2LatentImage.width=64").nodes["68:47"].inputs["width"] == 64
    assert ("68:90", "value") in {(setting.node.id, setting.input.name) for setting in settable(graph)}
    for assignment, words in (
        ("25.noise_seed", "is not NODE.INPUT=VALUE"),
        ("seed=1", "is not NODE.INPUT=VALUE"),
        ("nothing.value=1", "no node 'nothing'; --list"),
        ("PrimitiveInt.value=1", "several nodes .* by its id .68:90, 68:91"),
        ("68:25.seed=1", "'seed' .* cannot be set; what can: noise_seed"),
        ("68:22.model=1", "what can: nothing"),
        ("68:25.noise_seed=-1", "from 0 to"),
        ("68:25.noise_seed=one", "has to be a whole number; it is 'one'"),
        ("PrimitiveBoolean.value=maybe", "true or false; it is 'maybe'"),
        ("KSamplerSelect.sampler_name=none", "has to be one of euler,"),
    ):
        with pytest.raises(RequestError, match=words):
            assign(graph, assignment)


def test_run_prints_the_api_form(headrace: Run) -> None:
    template = DATA / "image_flux2_klein_text_to_image.json"
    result = headrace("run", template, "--to-api", "--set", "75:73.noise_seed=5")
    assert (result.returncode, result.stderr) == (0, "")
    nodes = json.loads(result.stdout)
    assert nodes["75:73"]["inputs"] == {"noise_seed": 5}
    again = headrace("run", "-", "--to-api", input=result.stdout)
    assert again.stdout == result.stdout
    unread = headrace("run", "-", "--to-api", input=json.dumps(page(drawn(1, "Other", (1,)))))
    assert unread.returncode == 0
    assert unread.stderr.startswith("headrace: The class of node 1 (Other) is not known, and its values")


def test_run_lists_what_can_be_set(headrace: Run) -> None:
    template = DATA / "image_flux2.json"
    lines = headrace("run", template, "--list").stdout.splitlines()
    assert lines[0].split() == ["node", "title", "input", "type", "value"]
    assert any(line.split() == ["68:25", "RandomNoise", "noise_seed", "INT", "342971778941390"] for line in lines)
    listed = json.loads(headrace("run", template, "--list", "--json").stdout)["settings"]
    assert {"node": "68:16", "input": "sampler_name", "value": "euler"}.items() <= next(
        row for row in listed if row["node"] == "68:16"
    ).items()


def test_run_refuses_in_one_sentence(headrace: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for arguments, words in (
        (["none.json", "--list"], "The workflow none.json does not exist."),
        (["bad.json", "--list"], "bad.json is not a ComfyUI workflow"),
        ([DATA / "image_flux2.json", "--to-api", "--set", "x"], "is not NODE.INPUT=VALUE"),
    ):
        result = headrace("run", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
