"""Group nodes ("workflow>name"), which ComfyUI's page had before sub-graphs: their inner nodes in their place.

A group is a list of nodes under `extra.groupNodes`, with links between their places in it and, as `external`, outputs
that are linked inside and show outside all the same. What an instance has, it has in the order in which the page
(ComfyUI_frontend 1.58) goes through the inner nodes: their widgets, their inputs that nothing inside is linked to, and
their outputs that nothing inside takes; last come inputs that once were widgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from headrace.comfy.saved import SavedGraph, SavedGroup, SavedLink, SavedNode, Slot, with_targets
from headrace.comfy.specs import SPECS
from headrace.comfy.widgets import own_values
from headrace.errors import RequestError

PREFIXES = "workflow>", "workflow/"
# Nodes and links of all groups, unfolded.
MAX_SIZE = 100_000
_REROUTE, _PRIMITIVE = "Reroute", "PrimitiveNode"


@dataclass
class _Face:
    """What a group shows outside.

    widgets: for each of its values the place of an inner node and the widget there, None for what only the page uses.
    inputs: by name, the place of an inner node and its input. outputs: in order, the same for outputs.
    """

    widgets: list[tuple[int, str] | None] = field(default_factory=list)
    inputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    outputs: list[tuple[int, int]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)

    def name(self, node: SavedNode, own: str, custom: str | None) -> str:
        """What an input is called outside: as inside, or after its node where that is taken."""
        wanted = custom or own
        made = wanted
        if (node.type == _PRIMITIVE and node.title) or wanted in self.names:
            prefix = node.title or node.type
            wanted = made = f"{prefix} {own}"
            if wanted in self.names:
                made = f"{prefix} {self.names[wanted]} {own}"
        self.names[wanted] = self.names.get(wanted, 1) + 1
        return made


def group_of(node: SavedNode) -> str | None:
    """The name of the group that a node is an instance of."""
    return node.type[len(PREFIXES[0]) :] if node.type.startswith(PREFIXES) else None


def ungrouped(graph: SavedGraph, groups: Mapping[str, SavedGroup]) -> SavedGraph:
    """The graph with the inner nodes of its groups, each called `instance:place`, instead of their instances.

    An instance that is muted or bypassed stays. Raises RequestError where a group is not defined, has a node of a class
    whose inputs are not known, or where there are more than MAX_SIZE nodes and links.
    """
    instances = {node.id: node for node in graph.nodes.values() if node.runs and group_of(node) is not None}
    if not instances:
        return graph
    nodes = {key: node for key, node in graph.nodes.items() if key not in instances}
    links = dict(graph.links)
    outgoing: dict[str, list[str]] = {}
    for key, link in graph.links.items():
        outgoing.setdefault(link.origin, []).append(key)
    faces: dict[str, _Face] = {}
    size = 0
    for instance in instances.values():
        name = group_of(instance) or ""
        group = groups.get(name)
        if group is None:
            raise RequestError(
                f'The workflow has the group node "{name}" without saying what is in it: open it in the ComfyUI it is '
                "from, convert the group to nodes, and save it again."
            )
        size += len(group.nodes) + len(group.links)
        if size > MAX_SIZE:
            raise RequestError(f"The workflow's group nodes unfold to more than {MAX_SIZE:,} nodes and links.")
        face = faces[name] = faces.get(name) or _face(name, group)
        nodes |= {inner.id: inner for inner in _inner_nodes(instance, group, face)}
        for number, link in enumerate(group.links):
            key = f"{instance.id}:{number}"
            links[key] = replace(link, origin=f"{instance.id}:{link.origin}", target=f"{instance.id}:{link.target}")
        for key in outgoing.get(instance.id, ()):
            number = graph.links[key].origin_slot
            if number < len(face.outputs):
                place, slot = face.outputs[number]
                links[key] = replace(links[key], origin=f"{instance.id}:{place}", origin_slot=slot)
    return with_targets(replace(graph, nodes=nodes, links=links))


def _inner_nodes(instance: SavedNode, group: SavedGroup, face: _Face) -> Iterator[SavedNode]:
    """The nodes of one instance, with its values and what it is linked to."""
    values: dict[int, dict[str, object]] = {}
    saved = instance.values if isinstance(instance.values, list) else []
    for widget, value in zip(face.widgets, saved, strict=False):
        if widget is not None and value is not None:
            values.setdefault(widget[0], {})[widget[1]] = value
    linked: dict[int, dict[str, str]] = {}
    for link_number, link in enumerate(group.links):
        target = group.nodes[int(link.target)]
        if link.target_slot < len(target.inputs):
            name = target.inputs[link.target_slot].name
            linked.setdefault(int(link.target), {})[name] = f"{instance.id}:{link_number}"
    outer = {slot.name: slot for slot in instance.inputs}
    plain = [slot for slot in instance.inputs if not slot.widget]
    for number, (name, (place, inner)) in enumerate(face.inputs.items()):
        slot = outer.get(name) or (plain[number] if number < len(plain) else None)
        if slot is not None and slot.link is not None:
            linked.setdefault(place, {})[inner] = slot.link
    for place, node in enumerate(group.nodes):
        yield replace(
            node,
            id=f"{instance.id}:{place}",
            inputs=tuple(_linked(node, linked.get(place, {}))),
            values=_values(node, values.get(place, {})),
            named_values={},
        )


def _linked(node: SavedNode, links: Mapping[str, str]) -> Iterator[Slot]:
    for slot in node.inputs:
        yield replace(slot, link=links.get(slot.name))
    for name in links.keys() - {slot.name for slot in node.inputs}:
        known = SPECS[node.type].input(name) if node.type in SPECS else None
        if known is not None:
            yield Slot(name, known.type, links[name], known.is_widget)


def _values(node: SavedNode, given: Mapping[str, object]) -> list[object] | dict[str, object]:
    if node.type == _PRIMITIVE:
        saved = node.values if isinstance(node.values, list) else []
        return [given["value"]] if "value" in given else saved
    return {**own_values(node)[0], **given} if node.type in SPECS else node.values


def _face(name: str, group: SavedGroup) -> _Face:
    face = _Face()
    into: dict[tuple[int, int], SavedLink] = {(int(link.target), link.target_slot): link for link in group.links}
    taken = {(int(link.origin), link.origin_slot) for link in group.links}
    fed: dict[int, SavedLink] = {}
    for link in group.links:
        fed.setdefault(int(link.origin), link)
    converted: list[tuple[int, str]] = []
    for place, node in enumerate(group.nodes):
        if node.type == _PRIMITIVE:
            _show_primitive(face, group, place, fed.get(place))
        elif node.type == _REROUTE:
            _show_reroute(face, group, place, into, taken)
        elif node.type in SPECS:
            converted += _show_inputs(face, group, place, into)
            for number, _ in enumerate(SPECS[node.type].outputs):
                if group.shows(place, number, hidden=(place, number) in taken):
                    face.outputs.append((place, number))
        elif node.type not in ("Note", "MarkdownNote"):
            raise RequestError(
                f'The group node "{name}" has {node.type[:80]} inside, which Headrace does not have, so that nothing '
                "tells which of its values is which: replace that node."
            )
    for place, inner in converted:
        made = face.name(group.nodes[place], inner, group.custom_name(place, inner))
        face.inputs[made] = place, inner
        face.widgets.append((place, inner))
    return face


def _show_inputs(
    face: _Face, group: SavedGroup, place: int, into: Mapping[tuple[int, int], SavedLink]
) -> Iterator[tuple[int, str]]:
    """Shows a node's widgets and inputs; yields those widgets that became inputs, which the group has at its end."""
    node = group.nodes[place]
    slots = {slot.name: number for number, slot in enumerate(node.inputs)}
    for entry in SPECS[node.type].inputs:
        if entry.is_widget and not (entry.name in slots and node.inputs[slots[entry.name]].widget):
            face.name(node, entry.name, group.custom_name(place, entry.name))
            face.widgets += [(place, entry.name), *([None] if entry.control else [])]
        elif entry.is_widget and (place, slots[entry.name]) not in into:
            yield place, entry.name
    face.widgets += [None for entry in SPECS[node.type].inputs if entry.upload]
    links = [entry for entry in SPECS[node.type].inputs if not entry.is_widget]
    for number, entry in enumerate(links):
        if (place, slots.get(entry.name, number)) not in into and group.shows_input(place, entry.name):
            face.inputs[face.name(node, entry.name, group.custom_name(place, entry.name))] = place, entry.name


def _show_primitive(face: _Face, group: SavedGroup, place: int, link: SavedLink | None) -> None:
    """link: the first that it feeds; one that feeds nothing inside is not shown."""
    if link is None:
        return
    face.name(group.nodes[place], "value", group.custom_name(place, "value"))
    target = group.nodes[int(link.target)]
    inner = target.inputs[link.target_slot].name if link.target_slot < len(target.inputs) else ""
    known = SPECS[target.type].input(inner) if target.type in SPECS else None
    face.widgets.append((place, "value"))
    if known is not None and known.type in ("INT", "COMBO"):
        face.widgets.append(None)  # what becomes of it after a run
    if group.shows(place, 0, hidden=True):
        face.outputs.append((place, 0))


def _show_reroute(
    face: _Face,
    group: SavedGroup,
    place: int,
    into: Mapping[tuple[int, int], SavedLink],
    taken: set[tuple[int, int]],
) -> None:
    node = group.nodes[place]
    shown = group.shows(place, 0, hidden=(place, 0) in taken)
    if (place, 0) not in into:
        own = node.inputs[0].name if node.inputs else ""
        kind = node.outputs[0] if node.outputs else "*"
        face.inputs[face.name(node, kind, group.custom_name(place, kind))] = place, own
    if shown:
        face.outputs.append((place, 0))
