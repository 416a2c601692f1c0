"""Group nodes ("workflow>name"), which ComfyUI's page had before sub-graphs: their inner nodes in their place.

A group is a list of nodes under `extra.groupNodes`, with links between their places in it and, as `external`, outputs
that are linked inside and show outside all the same. What an instance has, it has in the order in which the page
(ComfyUI_frontend 1.58) goes through the inner nodes: their widgets, their inputs that nothing inside is linked to, and
their outputs that nothing inside takes; last come inputs that once were widgets. A group inside another is one more
node of it, with what it shows itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from headrace.comfy.saved import SavedGraph, SavedGroup, SavedLink, SavedNode, SavedWorkflow, Slot, with_targets
from headrace.comfy.specs import SPECS, NodeSpec
from headrace.comfy.widgets import own_values
from headrace.errors import RequestError

PREFIXES = "workflow>", "workflow/"
MAX_DEPTH = 16
# Nodes and links of all groups, unfolded, and what of it is looked at on the way.
MAX_SIZE = 100_000
_REROUTE, _PRIMITIVE = "Reroute", "PrimitiveNode"


@dataclass(frozen=True)
class _Value:
    """An entry of `widgets_values`: the widget's name, and the place of an inner node and its widget that it is of.

    name: None for what only the page uses. controlled: an entry follows that says what becomes of it after a run.
    """

    name: str | None
    place: int = 0
    inner: str = ""
    controlled: bool = False


@dataclass
class _Face:
    """What a node shows to the group around it, or a group outside.

    inputs: by name, the place of an inner node, its input and the type. outputs: in order, place, output and type.
    """

    values: list[_Value] = field(default_factory=list)
    inputs: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    outputs: list[tuple[int, int, str]] = field(default_factory=list)
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

    def saved(self, values: list[object]) -> Iterator[tuple[_Value, object]]:
        """Every widget with its entry of `widgets_values`, None where there is none."""
        left = iter(values)
        for entry in self.values:
            yield entry, next(left, None)
            if entry.controlled:
                next(left, None)

    def __len__(self) -> int:
        return len(self.values) + len(self.inputs) + len(self.outputs)


def group_of(node: SavedNode) -> str | None:
    """The name of the group that a node is an instance of."""
    return node.type[len(PREFIXES[0]) :] if node.type.startswith(PREFIXES) else None


def ungrouped(workflow: SavedWorkflow) -> SavedWorkflow:
    """The workflow with the inner nodes of its groups, each called `instance:place`, instead of their instances.

    An instance that is muted or bypassed stays. Raises RequestError where a group is not defined, has a node of a class
    whose inputs are not known, where groups stand in each other more than MAX_DEPTH deep, or where there are more than
    MAX_SIZE nodes and links.
    """
    groups = _Groups(workflow.groups)
    definitions = {name: groups.unfolded(graph) for name, graph in workflow.definitions.items()}
    return replace(workflow, graph=groups.unfolded(workflow.graph), definitions=definitions)


class _Groups:
    def __init__(self, groups: Mapping[str, SavedGroup]) -> None:
        self._groups = groups
        self._faces: dict[str, _Face] = {}
        self._size = 0

    def unfolded(self, graph: SavedGraph) -> SavedGraph:
        """The graph without instances of groups."""
        for _ in range(MAX_DEPTH + 1):
            instances = {node.id: node for node in graph.nodes.values() if node.runs and group_of(node) is not None}
            if not instances:
                return graph
            graph = self._unfolded_once(graph, instances)
        raise RequestError(f"The workflow's group nodes stand in each other more than {MAX_DEPTH} deep.")

    def _unfolded_once(self, graph: SavedGraph, instances: Mapping[str, SavedNode]) -> SavedGraph:
        nodes = {key: node for key, node in graph.nodes.items() if key not in instances}
        links = dict(graph.links)
        outgoing: dict[str, list[str]] = {}
        for key, link in graph.links.items():
            outgoing.setdefault(link.origin, []).append(key)
        for instance in instances.values():
            name = group_of(instance) or ""
            group, face = self._group(name), self._face(name, 0)
            self._count(len(group.nodes) + len(group.links))
            nodes |= {inner.id: inner for inner in self._inner_nodes(instance, group, face)}
            for number, link in enumerate(group.links):
                key = f"{instance.id}:{number}"
                links[key] = replace(link, origin=f"{instance.id}:{link.origin}", target=f"{instance.id}:{link.target}")
            for key in outgoing.get(instance.id, ()):
                number = graph.links[key].origin_slot
                if number < len(face.outputs):
                    place, slot, _ = face.outputs[number]
                    links[key] = replace(links[key], origin=f"{instance.id}:{place}", origin_slot=slot)
        return with_targets(replace(graph, nodes=nodes, links=links))

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_SIZE:
            raise RequestError(f"The workflow's group nodes unfold to more than {MAX_SIZE:,} nodes and links.")

    def _group(self, name: str) -> SavedGroup:
        if name not in self._groups:
            raise RequestError(
                f'The workflow has the group node "{name[:80]}" without saying what is in it: open it in the ComfyUI '
                "it is from, convert the group to nodes, and save it again."
            )
        return self._groups[name]

    def _inner_nodes(self, instance: SavedNode, group: SavedGroup, face: _Face) -> Iterator[SavedNode]:
        """The nodes of one instance, with its values and what it is linked to."""
        values: dict[int, dict[str, object]] = {}
        for entry, value in face.saved(instance.values if isinstance(instance.values, list) else []):
            if entry.name is not None and value is not None:
                values.setdefault(entry.place, {})[entry.inner] = value
        linked: dict[int, dict[str, str]] = {}
        for link_number, link in enumerate(group.links):
            target = group.nodes[int(link.target)]
            if link.target_slot < len(target.inputs):
                name = target.inputs[link.target_slot].name
                linked.setdefault(int(link.target), {})[name] = f"{instance.id}:{link_number}"
        outer = {slot.name: slot for slot in instance.inputs}
        plain = [slot for slot in instance.inputs if not slot.widget]
        for number, (name, (place, inner, _)) in enumerate(face.inputs.items()):
            slot = outer.get(name) or (plain[number] if number < len(plain) else None)
            if slot is not None and slot.link is not None:
                linked.setdefault(place, {})[inner] = slot.link
        for place, node in enumerate(group.nodes):
            yield replace(
                node,
                id=f"{instance.id}:{place}",
                inputs=tuple(self._linked(node, linked.get(place, {}))),
                values=self._values(node, values.get(place, {})),
                named_values={},
            )

    def _linked(self, node: SavedNode, links: Mapping[str, str]) -> Iterator[Slot]:
        for slot in node.inputs:
            yield replace(slot, link=links.get(slot.name))
        missing = links.keys() - {slot.name for slot in node.inputs}
        if not missing or not _is_known(node):
            return
        shown = self._shown(node, 0)
        widgets = {entry.name for entry in shown.values}
        for name in missing:
            if name in widgets:
                yield Slot(name, _widget_type(node, name), links[name], True)
            elif name in shown.inputs:
                yield Slot(name, shown.inputs[name][2], links[name])

    def _values(self, node: SavedNode, given: Mapping[str, object]) -> list[object] | dict[str, object]:
        saved = node.values if isinstance(node.values, list) else []
        if node.type == _PRIMITIVE:
            return [given["value"]] if "value" in given else saved
        if group_of(node) is not None:
            made: list[object] = []
            for entry, value in self._shown(node, 0).saved(saved):
                made += [given.get(entry.name or "", value), *([None] if entry.controlled else [])]
            return made
        return {**own_values(node)[0], **given} if node.type in SPECS else node.values

    def _shown(self, node: SavedNode, depth: int) -> _Face:
        """What an inner node shows, which is known."""
        name = group_of(node)
        face = _face_of(SPECS[node.type]) if name is None else self._face(name, depth)
        self._count(len(face))
        return face

    def _face(self, name: str, depth: int) -> _Face:
        if name not in self._faces:
            if depth > MAX_DEPTH:
                raise RequestError(
                    f"The workflow's group nodes stand in each other more than {MAX_DEPTH} deep, or in themselves."
                )
            group = self._group(name)
            self._faces[name] = _face(name, group, lambda node: self._shown(node, depth + 1))
        return self._faces[name]


def _face_of(spec: NodeSpec) -> _Face:
    """What a node of a known class shows."""
    widgets = [entry for entry in spec.inputs if entry.is_widget]
    return _Face(
        [_Value(entry.name, controlled=entry.control) for entry in widgets]
        + [_Value(None) for entry in spec.inputs if entry.upload],
        {entry.name: (0, entry.name, entry.type) for entry in spec.inputs if not entry.is_widget},
        [(0, number, output.type) for number, output in enumerate(spec.outputs)],
    )


def _is_known(node: SavedNode) -> bool:
    return node.type in SPECS or group_of(node) is not None


def _widget_type(node: SavedNode, name: str) -> str:
    known = SPECS[node.type].input(name) if node.type in SPECS else None
    return "*" if known is None else known.type


def _face(name: str, group: SavedGroup, shown: Callable[[SavedNode], _Face]) -> _Face:
    face = _Face()
    into: dict[tuple[int, int], SavedLink] = {(int(link.target), link.target_slot): link for link in group.links}
    taken = {(int(link.origin), link.origin_slot) for link in group.links}
    fed: dict[int, SavedLink] = {}
    for link in group.links:
        fed.setdefault(int(link.origin), link)
    converted: list[_Value] = []
    for place, node in enumerate(group.nodes):
        if node.type == _PRIMITIVE:
            _show_primitive(face, group, place, fed.get(place))
        elif node.type == _REROUTE:
            _show_reroute(face, group, place, into, taken)
        elif _is_known(node):
            inner = shown(node)
            converted += _show_inputs(face, group, place, inner, into)
            for number, (_, _, kind) in enumerate(inner.outputs):
                if group.shows(place, number, hidden=(place, number) in taken):
                    face.outputs.append((place, number, kind))
        elif node.type not in ("Note", "MarkdownNote"):
            raise RequestError(
                f'The group node "{name[:80]}" has {node.type[:80]} inside, which Headrace does not have, so that '
                "nothing tells which of its values is which: replace that node."
            )
    for entry in converted:
        node = group.nodes[entry.place]
        made = face.name(node, entry.inner, group.custom_name(entry.place, entry.inner))
        face.inputs[made] = entry.place, entry.inner, _widget_type(node, entry.inner)
        face.values.append(replace(entry, name=made))
    return face


def _show_inputs(
    face: _Face, group: SavedGroup, place: int, inner: _Face, into: Mapping[tuple[int, int], SavedLink]
) -> Iterator[_Value]:
    """Shows a node's widgets and inputs; yields those widgets that became inputs, which the group has at its end."""
    node = group.nodes[place]
    slots = {slot.name: number for number, slot in enumerate(node.inputs)}
    for entry in inner.values:
        if entry.name is None:
            face.values.append(_Value(None))
        elif not (entry.name in slots and node.inputs[slots[entry.name]].widget):
            made = face.name(node, entry.name, group.custom_name(place, entry.name))
            face.values.append(_Value(made, place, entry.name, entry.controlled))
        elif (place, slots[entry.name]) not in into:
            yield _Value(entry.name, place, entry.name)
    widgets = {entry.name for entry in inner.values}
    links = [(name, kind) for name, (_, _, kind) in inner.inputs.items() if name not in widgets]
    for number, (name, kind) in enumerate(links):
        if (place, slots.get(name, number)) not in into and group.shows_input(place, name):
            face.inputs[face.name(node, name, group.custom_name(place, name))] = place, name, kind


def _show_primitive(face: _Face, group: SavedGroup, place: int, link: SavedLink | None) -> None:
    """link: the first that it feeds; one that feeds nothing inside is not shown."""
    if link is None:
        return
    made = face.name(group.nodes[place], "value", group.custom_name(place, "value"))
    target = group.nodes[int(link.target)]
    inner = target.inputs[link.target_slot].name if link.target_slot < len(target.inputs) else ""
    kind = _widget_type(target, inner)
    face.values.append(_Value(made, place, "value", controlled=kind in ("INT", "COMBO")))
    if group.shows(place, 0, hidden=True):
        face.outputs.append((place, 0, kind))


def _show_reroute(
    face: _Face,
    group: SavedGroup,
    place: int,
    into: Mapping[tuple[int, int], SavedLink],
    taken: set[tuple[int, int]],
) -> None:
    node = group.nodes[place]
    kind = node.outputs[0] if node.outputs else "*"
    shown = group.shows(place, 0, hidden=(place, 0) in taken)
    if (place, 0) not in into:
        own = node.inputs[0].name if node.inputs else ""
        face.inputs[face.name(node, kind, group.custom_name(place, kind))] = place, own, kind
    if shown:
        face.outputs.append((place, 0, kind))
