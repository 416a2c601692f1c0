"""A workflow as ComfyUI's page saves it: nodes as drawn, links by number, sub-graphs by id; parsed, not yet understood.

Both shapes of the format are read: version 0.4, where the links of the outermost graph are arrays `[id, origin, slot,
target, slot, type]`, and version 1, where they are objects as they are inside sub-graphs. Whatever is not there is
taken as empty, since every version of the page leaves out something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.comfy.graph import MAX_NODES
from headrace.comfy.specs import ANY
from headrace.errors import RequestError

MUTED, BYPASSED = 2, 4

# Where the links of a sub-graph end that come in and go out, unless it says otherwise.
_INPUT_NODE, _OUTPUT_NODE = "-10", "-20"

MAX_SLOTS = 1000


@dataclass(frozen=True)
class Slot:
    """An input of a node: the id of its link, if there is one; widget: whether it is also a widget."""

    name: str
    type: str
    link: str | None = None
    widget: bool = False


@dataclass(frozen=True)
class SavedNode:
    """A node as drawn. outputs: their types; values: `widgets_values`, an array or, from some packs, an object."""

    id: str
    type: str
    mode: int
    title: str
    inputs: tuple[Slot, ...]
    outputs: tuple[str, ...]
    values: list[Any] | dict[str, Any]
    named_values: dict[str, Any]
    properties: dict[str, Any]

    @property
    def runs(self) -> bool:
        return self.mode not in (MUTED, BYPASSED)


@dataclass(frozen=True)
class SavedLink:
    """From an output of the node `origin` to an input of the node `target`; slots count from 0."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class Boundary:
    """An input or output of a sub-graph, with the ids of its links inside."""

    name: str
    type: str
    links: tuple[str, ...]


@dataclass(frozen=True)
class SavedGraph:
    """The outermost graph or a sub-graph's definition, where links from around begin at `input_node`.

    targets: for each link that ends at a node's input, that node and input.
    """

    nodes: Mapping[str, SavedNode]
    links: Mapping[str, SavedLink]
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    input_node: str
    targets: Mapping[str, tuple[SavedNode, Slot]]


@dataclass(frozen=True)
class SavedGroup:
    """A group node's definition: its nodes, and links between their places. external: outputs that show outside.

    config: what somebody renamed or hid, by the place of the node.
    """

    nodes: tuple[SavedNode, ...]
    links: tuple[SavedLink, ...]
    external: frozenset[tuple[int, int]]
    config: Mapping[str, Any]

    def shows(self, place: int, output: int, hidden: bool) -> bool:
        """Whether an output of an inner node is one of the group's. hidden: unless said otherwise."""
        said = _object(_object(_object(self.config.get(str(place))).get("output")).get(str(output))).get("visible")
        return bool(said) if said is not None else not hidden or (place, output) in self.external

    def shows_input(self, place: int, name: str) -> bool:
        """Whether an input of an inner node that nothing inside is linked to is one of the group's."""
        return self._input(place, name).get("visible") is not False

    def custom_name(self, place: int, name: str) -> str | None:
        """What somebody called an input of an inner node."""
        custom = self._input(place, name).get("name")
        return custom if isinstance(custom, str) else None

    def _input(self, place: int, name: str) -> dict[str, Any]:
        return _object(_object(_object(self.config.get(str(place))).get("input")).get(name))


@dataclass(frozen=True)
class SavedWorkflow:
    graph: SavedGraph
    definitions: Mapping[str, SavedGraph]
    groups: Mapping[str, SavedGroup] = field(default_factory=dict)

    def all_nodes(self) -> Iterable[SavedNode]:
        for graph in (self.graph, *self.definitions.values()):
            yield from graph.nodes.values()


def parse(document: Mapping[str, Any]) -> SavedWorkflow:
    """Raises RequestError where the document is no such workflow, or larger than is read."""
    definitions: dict[str, SavedGraph] = {}
    pending = [document]
    nodes = 0
    while pending:
        for definition in _objects(_object(pending.pop().get("definitions")).get("subgraphs")):
            name = _key(definition.get("id"))
            if name is None or name in definitions:
                continue
            definitions[name] = _graph(definition)
            nodes += len(definitions[name].nodes)
            if nodes > MAX_NODES:
                raise RequestError(
                    f"The workflow's sub-graphs have more than {MAX_NODES:,} nodes, the most that are read."
                )
            pending.append(definition)
    groups = _object(_object(document.get("extra")).get("groupNodes"))
    return SavedWorkflow(_graph(document), definitions, {name: _group(_object(groups[name])) for name in groups})


def _group(document: Mapping[str, Any]) -> SavedGroup:
    """Links name places, and the type of what they carry; those that come from outside name no origin."""
    nodes = [_node({**node, "id": place}) for place, node in enumerate(_objects(document.get("nodes"))[:MAX_NODES])]
    links: dict[str, SavedLink] = {}
    for number, entry in enumerate(_list(document.get("links"))):
        if isinstance(entry, list) and len(entry) >= 4:
            _add_link(links, [number, *entry[:4]])
    places = {str(place) for place in range(len(nodes))}
    external = (entry[:2] for entry in _list(document.get("external")) if isinstance(entry, list) and len(entry) > 2)
    return SavedGroup(
        tuple(nodes),
        tuple(link for link in links.values() if {link.origin, link.target} <= places),
        frozenset((place, slot) for place, slot in external if type(place) is int and type(slot) is int),
        _object(document.get("config")),
    )


def with_targets(graph: SavedGraph) -> SavedGraph:
    """The graph with `targets` as its nodes and links now are."""
    return replace(graph, targets=_targets(graph.nodes, graph.links))


def _graph(document: Mapping[str, Any]) -> SavedGraph:
    found = [_node(node) for node in _objects(document.get("nodes"))]
    if len(found) > MAX_NODES:
        raise RequestError(f"The workflow has {len(found):,} nodes; at most {MAX_NODES:,} are read.")
    nodes = {node.id: node for node in found}
    links: dict[str, SavedLink] = {}
    for entry in _list(document.get("links")):
        _add_link(links, entry)
    output_node = _key(_object(document.get("outputNode")).get("id")) or _OUTPUT_NODE
    return SavedGraph(
        nodes,
        links,
        _boundaries(document.get("inputs")),
        _outputs(document.get("outputs"), links, output_node),
        _key(_object(document.get("inputNode")).get("id")) or _INPUT_NODE,
        _targets(nodes, links),
    )


def _targets(nodes: Mapping[str, SavedNode], links: Mapping[str, SavedLink]) -> dict[str, tuple[SavedNode, Slot]]:
    """What the inputs say, or else the links themselves."""
    targets = {slot.link: (node, slot) for node in nodes.values() for slot in node.inputs if slot.link is not None}
    for key, link in links.items():
        target = nodes.get(link.target)
        if key not in targets and target is not None and link.target_slot < len(target.inputs):
            targets[key] = target, target.inputs[link.target_slot]
    return targets


def _outputs(value: object, links: Mapping[str, SavedLink], output_node: str) -> tuple[Boundary, ...]:
    """The outputs of a sub-graph, each with the links that it or they themselves name."""
    ends: dict[int, str] = {}
    for key, link in links.items():
        if link.target == output_node:
            ends.setdefault(link.target_slot, key)
    named = enumerate(_boundaries(value))
    return tuple(
        replace(entry, links=(*(key for key in entry.links if key in links), *([ends[n]] if n in ends else [])))
        for n, entry in named
    )


def _node(node: Mapping[str, Any]) -> SavedNode:
    key = _key(node.get("id"))
    if key is None or not isinstance(node.get("type"), str):
        raise RequestError("A node of the workflow has no id or no type: this is not a workflow as ComfyUI saves it.")
    properties = _object(node.get("properties"))
    title = node.get("title")
    values = node.get("widgets_values")
    return SavedNode(
        key,
        node["type"],
        node["mode"] if isinstance(node.get("mode"), int) else 0,
        title if isinstance(title, str) else "",
        tuple(_slot(slot) for slot in _objects(node.get("inputs"))[:MAX_SLOTS]),
        tuple(_type(slot.get("type")) for slot in _objects(node.get("outputs"))[:MAX_SLOTS]),
        values if isinstance(values, list | dict) else [],
        _object(node.get("widgets_values_named")),
        properties,
    )


def _slot(slot: Mapping[str, Any]) -> Slot:
    name = slot.get("name")
    return Slot(
        name if isinstance(name, str) else "",
        _type(slot.get("type")),
        _key(slot.get("link")),
        isinstance(slot.get("widget"), dict),
    )


def _add_link(links: dict[str, SavedLink], entry: object) -> None:
    if isinstance(entry, list) and len(entry) >= 5:
        key, origin, origin_slot, target, target_slot = entry[:5]
    elif isinstance(entry, dict):
        names = "id", "origin_id", "origin_slot", "target_id", "target_slot"
        key, origin, origin_slot, target, target_slot = (entry.get(name) for name in names)
    else:
        return
    name, source, sink = _key(key), _key(origin), _key(target)
    source_slot, sink_slot = _slot_number(origin_slot), _slot_number(target_slot)
    if name is None or source is None or sink is None or source_slot is None or sink_slot is None:
        return
    links[name] = SavedLink(source, source_slot, sink, sink_slot)


def _boundaries(value: object) -> tuple[Boundary, ...]:
    return tuple(
        Boundary(
            entry["name"] if isinstance(entry.get("name"), str) else "",
            _type(entry.get("type")),
            tuple(key for key in map(_key, _list(entry.get("linkIds"))) if key is not None),
        )
        for entry in _objects(value)[:MAX_SLOTS]
    )


def _type(value: object) -> str:
    """A slot's type; 0 and nothing stand for any, and a list of options for what is now called COMBO."""
    if isinstance(value, list):
        return "COMBO"
    return value if isinstance(value, str) and value else ANY


def _key(value: object) -> str | None:
    """An id, which is a number or text, as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value)


def _slot_number(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry for entry in _list(value) if isinstance(entry, dict)]
