"""Random workflows in the API format, and the same as somebody could have drawn them on ComfyUI's page."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from headrace.comfy.specs import ANY, SPECS, Input, NodeSpec

Source = tuple[str, int]

# Of these a link may lead through a node that is bypassed.
PASSING = {"MODEL": "LoraLoaderModelOnly", "CONDITIONING": "FluxGuidance", "IMAGE": "ImageScaleBy"}
FILES = {
    "diffusion_models": ["flux2_dev_fp8mixed.safetensors", "flux-2-klein-4b.safetensors"],
    "text_encoders": ["qwen_3_4b.safetensors", "mistral_3_small_flux2_bf16.safetensors"],
    "vae": ["flux2-vae.safetensors", "full_encoder_small_decoder.safetensors"],
    "loras": ["Flux_2-Turbo-LoRA_comfyui.safetensors", "Flux2TurboComfyv2.safetensors"],
    "input": ["handbag_white.png", "comfy_logo_blue.png"],
}
CLASSES = [name for name in SPECS if name not in ("ComfySwitchNode", "DisableNoise") and "GGUF" not in name]


def value_of(entry: Input, draw: random.Random) -> Any:
    if entry.type == "BOOLEAN":
        return draw.random() < 0.5
    # Numbers that the page leaves alone where a primitive gives them.
    if entry.type == "INT":
        least = max(int(entry.minimum or 0), -100)
        return draw.randrange(least, min(int(entry.maximum or 0), 2000) + 1, int(entry.grid))
    if entry.type == "FLOAT":
        return min(draw.randint(1, 6) / 2, entry.maximum or 0)
    if entry.options:
        return draw.choice(entry.options)
    if entry.folder:
        return draw.choice(FILES[entry.folder])
    # No braces or slashes, which the page takes for choices and comments, nor percent signs in file names.
    return draw.choice(["a cat", "", "left | right", "ünïcode 猫", "flux2", "two\nlines"])


def random_api(draw: random.Random, size: int) -> dict[str, dict[str, Any]]:
    """A graph of about `size` nodes in which every link fits."""
    nodes: dict[str, dict[str, Any]] = {}
    given: dict[str, list[Source]] = {}

    def add(class_type: str) -> str:
        inputs: dict[str, Any] = {}
        for entry in SPECS[class_type].inputs:
            if not entry.is_widget:
                inputs[entry.name] = list(source(entry.type))
            elif entry.type in ("INT", "FLOAT", "STRING") and given.get(entry.type) and draw.random() < 0.3:
                inputs[entry.name] = list(draw.choice(given[entry.type]))
            else:
                inputs[entry.name] = value_of(entry, draw)
        key = str(len(nodes) + 1)
        nodes[key] = {"class_type": class_type, "inputs": inputs}
        for number, output in enumerate(SPECS[class_type].outputs):
            given.setdefault(output.type, []).append((key, number))
        return key

    def source(kind: str) -> Source:
        if not given.get(kind) or draw.random() < 0.2:
            makers = [name for name in CLASSES if any(output.type == kind for output in SPECS[name].outputs)]
            # Nodes without links come first, so that this ends.
            makers.sort(key=lambda name: sum(not entry.is_widget for entry in SPECS[name].inputs))
            add(makers[0] if len(nodes) > size else draw.choice(makers[:2]))
        return draw.choice(given[kind])

    while len(nodes) < size:
        add(draw.choice(CLASSES))
    return nodes


@dataclass
class Drawn:
    """A node on the page. inputs: names and types of its slots, and whether they are widgets; feeds: a primitive's."""

    id: str
    type: str
    values: list[Any]
    inputs: dict[str, tuple[str, bool]]
    outputs: list[str]
    mode: int = 0
    feeds: str = ""


@dataclass
class Canvas:
    """Nodes, what each input is linked to, and the sub-graphs that stand among them."""

    nodes: dict[str, Drawn] = field(default_factory=dict)
    links: dict[tuple[str, str], Source] = field(default_factory=dict)
    definitions: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    last: int = 1000

    def new_id(self) -> str:
        self.last += 1
        return str(self.last)


def draw_page(
    api: dict[str, dict[str, Any]], draw: random.Random, changes: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """The document that the page would save, and the id that each node has once sub-graphs are unfolded."""
    canvas = Canvas(paths={key: key for key in api})
    for key, node in api.items():
        spec = SPECS[node["class_type"]]
        inputs = {entry.name: (entry.type, entry.is_widget) for entry in spec.inputs}
        canvas.nodes[key] = Drawn(
            key, spec.class_type, saved_values(spec, node["inputs"], draw), inputs, [out.type for out in spec.outputs]
        )
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                canvas.links[key, name] = (value[0], value[1])
    for _ in range(changes):
        draw.choice([add_reroute, add_primitive, add_bypassed, add_clutter, fold])(canvas, draw)
    version = draw.choice([0.4, 1])
    document = {"nodes": list(saved_nodes(canvas)), "version": version, "extra": {}, "groups": []}
    number_links(canvas, document, arrays=version == 0.4)
    document["definitions"] = {"subgraphs": canvas.definitions}
    document["last_node_id"], document["last_link_id"] = canvas.last, 10_000
    draw.shuffle(document["nodes"])
    return document, canvas.paths


def saved_values(spec: NodeSpec, inputs: dict[str, Any], draw: random.Random) -> list[Any]:
    """`widgets_values`; what is linked keeps some value of its own."""
    values: list[Any] = []
    for slot in spec.widget_slots():
        if slot is None:
            values.append("image" if values and spec.class_type.startswith("LoadImage") else "fixed")
        elif isinstance(inputs[slot.name], list):
            values.append(value_of(slot, draw))
        else:
            values.append(inputs[slot.name])
    return values


def add_reroute(canvas: Canvas, draw: random.Random) -> None:
    if canvas.links:
        target = draw.choice(sorted(canvas.links))
        if canvas.nodes[canvas.links[target][0]].type == "PrimitiveNode":
            return
        node = Drawn(canvas.new_id(), "Reroute", [], {"": (ANY, False)}, [ANY])
        canvas.nodes[node.id] = node
        canvas.links[node.id, ""] = canvas.links[target]
        canvas.links[target] = (node.id, 0)


def add_bypassed(canvas: Canvas, draw: random.Random) -> None:
    through = [target for target in sorted(canvas.links) if kind_of(canvas, canvas.links[target]) in PASSING]
    if not through:
        return
    target = draw.choice(through)
    kind = kind_of(canvas, canvas.links[target])
    spec = SPECS[PASSING[kind]]
    inputs = {entry.name: (entry.type, entry.is_widget) for entry in spec.inputs}
    values = [value_of(entry, draw) for entry in spec.inputs if entry.is_widget]
    node = Drawn(canvas.new_id(), spec.class_type, values, inputs, [kind], mode=4)
    canvas.nodes[node.id] = node
    canvas.links[node.id, next(name for name, slot in inputs.items() if slot[0] == kind)] = canvas.links[target]
    canvas.links[target] = (node.id, 0)


def add_primitive(canvas: Canvas, draw: random.Random) -> None:
    """Moves a widget's value into a primitive."""
    node = draw.choice(list(canvas.nodes.values()))
    spec = SPECS.get(node.type)
    free = [
        (place, slot)
        for place, slot in enumerate(spec.widget_slots() if spec else ())
        if slot is not None and (node.id, slot.name) not in canvas.links and not slot.upload
    ]
    if free and node.mode == 0:
        place, slot = draw.choice(free)
        primitive = Drawn(
            canvas.new_id(), "PrimitiveNode", [node.values[place], "fixed"], {}, [slot.type], 0, slot.name
        )
        node.values = [*node.values[:place], value_of(slot, draw), *node.values[place + 1 :]]
        canvas.nodes[primitive.id] = primitive
        canvas.links[node.id, slot.name] = (primitive.id, 0)


def add_clutter(canvas: Canvas, draw: random.Random) -> None:
    """Notes, and nodes that are muted."""
    kind, mode = draw.choice([("Note", 0), ("MarkdownNote", 0), ("VAELoader", 2)])
    node = Drawn(canvas.new_id(), kind, ["flux2-vae.safetensors"], {}, ["VAE"] if kind == "VAELoader" else [], mode)
    canvas.nodes[node.id] = node


def fold(canvas: Canvas, draw: random.Random) -> None:
    """Puts some nodes into a sub-graph, with some of their widgets among its inputs."""
    inner = {key for key in canvas.nodes if draw.random() < 0.5}
    for (target, _), (source, _) in canvas.links.items():
        if canvas.nodes[source].type == "PrimitiveNode" and target in inner:
            inner.add(source)
    for (target, _), (source, _) in canvas.links.items():  # a primitive stays with all that it feeds
        if source in inner and canvas.nodes[source].type == "PrimitiveNode" and target not in inner:
            inner.discard(source)
            inner -= {other for (other, _), link in canvas.links.items() if link[0] == source}
    if not inner or any(
        canvas.nodes[source].type == "PrimitiveNode" and (target in inner) != (source in inner)
        for (target, _), (source, _) in canvas.links.items()
    ):
        return
    instance = Drawn(canvas.new_id(), f"definition-{canvas.last}", [], {}, [])
    inside = Canvas({key: canvas.nodes.pop(key) for key in sorted(inner, key=int)}, last=canvas.last)
    boundary: list[dict[str, Any]] = []
    outputs: dict[Source, int] = {}
    around: dict[tuple[str, str], Source] = {}
    keeps = draw.random() < 0.5  # the instance has the values of its widgets, as it has since some version
    for (target, name), source in list(canvas.links.items()):
        if target in inner:
            del canvas.links[target, name]
            if source[0] in inner:
                inside.links[target, name] = source
                continue
            entry = f"input_{len(boundary)}"
            kind, widget = inside.nodes[target].inputs[name]
            boundary.append({"name": entry, "type": kind, "id": entry})
            instance.inputs[entry] = (kind, widget)
            inside.links[target, name] = ("-10", len(boundary) - 1)
            around[instance.id, entry] = source
            if widget and keeps:
                instance.values.append(None)
        elif source[0] in inner:
            place = outputs.setdefault(source, len(outputs))
            canvas.links[target, name] = (instance.id, place)
    for node in list(inside.nodes.values()):
        spec = SPECS.get(node.type)
        if spec is None or node.mode != 0:
            continue
        for place, slot in enumerate(spec.widget_slots()):
            if slot is None or (node.id, slot.name) in inside.links or draw.random() < 0.8:
                continue
            entry = f"{slot.name}_{len(boundary)}"
            boundary.append({"name": entry, "type": slot.type, "id": entry})
            instance.inputs[entry] = (slot.type, True)
            inside.links[node.id, slot.name] = ("-10", len(boundary) - 1)
            if keeps:
                instance.values.append(node.values[place])
                node.values = [*node.values[:place], value_of(slot, draw), *node.values[place + 1 :]]
    instance.outputs = [kind_of(inside, source) for source in outputs]
    definition: dict[str, Any] = {
        "id": instance.type,
        "version": 1,
        "name": "sub-graph",
        "state": {"lastNodeId": canvas.last, "lastLinkId": 10_000, "lastGroupId": 0, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "inputNode": {"id": -10, "bounding": [0, 0, 10, 10]},
        "outputNode": {"id": -20, "bounding": [0, 0, 10, 10]},
        "inputs": boundary,
        "outputs": [
            {"id": f"output_{n}", "name": f"output_{n}", "type": instance.outputs[n]} for n in outputs.values()
        ],
        "widgets": [],
        "groups": [],
        "nodes": list(saved_nodes(inside)),
    }
    for source, place in outputs.items():
        inside.links["-20", str(place)] = source
    number_links(inside, definition, arrays=False)
    canvas.definitions.append(definition)
    canvas.nodes[instance.id] = instance
    canvas.links |= around
    for key, path in canvas.paths.items():
        if path.split(":")[0] in inner:
            canvas.paths[key] = f"{instance.id}:{path}"


def kind_of(canvas: Canvas, source: Source) -> str:
    return canvas.nodes[source[0]].outputs[source[1]] if source[0] in canvas.nodes else ANY


def saved_nodes(canvas: Canvas) -> Iterator[dict[str, Any]]:
    for node in canvas.nodes.values():
        slots = [
            {"name": name, "type": kind, "link": None, **({"widget": {"name": name}} if widget else {})}
            for name, (kind, widget) in node.inputs.items()
            if not widget or (node.id, name) in canvas.links
        ]
        yield {
            "id": int(node.id),
            "type": node.type,
            "pos": [0, 0],
            "size": [200, 100],
            "flags": {},
            "order": 0,
            "mode": node.mode,
            "inputs": slots,
            "outputs": [
                {"name": kind, "type": kind, "links": [], **({"widget": {"name": node.feeds}} if node.feeds else {})}
                for kind in node.outputs
            ],
            "properties": {},
            "widgets_values": node.values,
        }


def number_links(canvas: Canvas, document: dict[str, Any], *, arrays: bool) -> None:
    """Gives every link its id, and writes it wherever the format repeats it."""
    nodes = {str(node["id"]): node for node in document["nodes"]}
    document["links"] = []
    for entry in (*document.get("inputs", ()), *document.get("outputs", ())):
        entry["linkIds"] = []
    for number, ((target, name), (source, slot)) in enumerate(canvas.links.items(), 1):
        if target == "-20":
            place, kind = int(name), kind_of(canvas, (source, slot))
            document["outputs"][place]["linkIds"].append(number)
        else:
            names = [entry["name"] for entry in nodes[target]["inputs"]]
            place, kind = names.index(name), nodes[target]["inputs"][names.index(name)]["type"]
            nodes[target]["inputs"][place]["link"] = number
        if source == "-10":
            document["inputs"][slot]["linkIds"].append(number)
        else:
            nodes[source]["outputs"][slot]["links"].append(number)
        ends = number, int(source), slot, int(target), place, kind
        names_of_ends = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        document["links"].append(list(ends) if arrays else dict(zip(names_of_ends, ends, strict=True)))
