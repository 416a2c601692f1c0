"""A saved workflow to the graph that ComfyUI's page would send: sub-graphs unfolded, everything that only draws gone.

The rules are those of ComfyUI's own page (ComfyUI_frontend 1.58):

* A node gives its widgets' values, which `widgets_values` holds in order, and then its links, each followed to a node
  that computes something. A link that ends nowhere leaves the widget's value, if there is one.
* A bypassed node passes on the input at the place of the output if its type fits, else the first of that type; a muted
  one gives nothing.
* Reroutes and Get/Set pairs pass on, primitives give their value, notes vanish.
* Group nodes, which are older than sub-graphs, are replaced by what is in them (`headrace.comfy.groups`).
* A node inside a sub-graph gets the id `instance:inner`. What is linked to the sub-graph's input from outside comes
  first, then the value that the instance keeps for it, then the value of the first inner widget that it leads to.

Where the page loses what somebody drew, this does not: a primitive's value comes through reroutes and into sub-graphs,
a sub-graph may hand its input through, and a muted one inside another does not run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.comfy.graph import MAX_NODES, Graph, Link, ModelFile, Node
from headrace.comfy.groups import ungrouped
from headrace.comfy.prompts import choose, fill_in
from headrace.comfy.saved import BYPASSED, MUTED, Boundary, SavedGraph, SavedLink, SavedNode, SavedWorkflow, Slot
from headrace.comfy.specs import ANY, SPECS, Input
from headrace.comfy.widgets import (
    first_value,
    instance_slots,
    is_widget,
    known_inputs,
    own_values,
    proxies,
    rescued_values,
    rounded,
    shared,
    slots,
)
from headrace.errors import RequestError
from headrace.recipe import MAX_PROMPT_CHARACTERS

MAX_DEPTH = 32
# Links followed and nodes looked at, in all; a workflow of a thousand nodes takes some ten thousand.
MAX_HOPS = 1_000_000

_NOTES = frozenset({"Note", "MarkdownNote"})
_PASSING = frozenset({"Reroute", "Reroute (rgthree)", "SetNode"})
_PRIMITIVE, _GET, _SET = "PrimitiveNode", "GetNode", "SetNode"
_DRAWN_ONLY = _NOTES | _PASSING | {_PRIMITIVE, _GET}


@dataclass(frozen=True)
class _Scope:
    """The outermost graph, or one instance of a sub-graph.

    path: the ids of the instances around, each with a colon; slots: the instance's inputs in the definition's order;
    values: what the instance keeps for them, by their place; inner_values: the same for inner widgets that no input
    leads to, by node and then name.
    """

    graph: SavedGraph
    path: str = ""
    instance: SavedNode | None = None
    parent: _Scope | None = None
    slots: tuple[Slot, ...] = ()
    values: Mapping[int, Any] = field(default_factory=dict)
    inner_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Constant:
    """A value that stands where a link was; typed: put into the widget itself, as a primitive does."""

    value: Any
    typed: bool = False


@dataclass(frozen=True)
class Expansion:
    """The graph, and those of its nodes whose values are not all known, because nothing tells which is which."""

    graph: Graph
    unread: tuple[Node, ...]


def expand(saved: SavedWorkflow) -> Expansion:
    """Raises RequestError where sub-graphs or links run in circles, are too many, or are of a kind that is not read."""
    return _Expander(saved).run()


class _Expander:
    def __init__(self, saved: SavedWorkflow) -> None:
        self.saved = ungrouped(saved)
        self.children: dict[str, _Scope] = {}
        self.hops = 0

    def run(self) -> Expansion:
        scopes = list(self._scopes())
        nodes: dict[str, Node] = {}
        unread: list[Node] = []
        prompts: list[tuple[str, str]] = []
        seeds: list[int] = []
        for scope in scopes:
            for saved in scope.graph.nodes.values():
                if not saved.runs or saved.type in _DRAWN_ONLY or saved.type in self.saved.definitions:
                    continue
                node, complete, dynamic = self._node(scope, saved)
                nodes[node.id] = node
                if len(nodes) > MAX_NODES:
                    raise RequestError(f"The workflow unfolds to more than {MAX_NODES:,} nodes, the most that are run.")
                if not complete:
                    unread.append(node)
                prompts += ((node.id, name) for name in dynamic)
                controlled = (node.inputs.get(entry.name) for entry in known_inputs(saved) if entry.control)
                seeds += (value for value in controlled if isinstance(value, int))
        for key, name in prompts:
            # ComfyUI draws anew each time; here the same workflow gives the same picture.
            text = choose(nodes[key].inputs[name], random.Random(f"{seeds}:{key}"))
            nodes[key] = replace(nodes[key], inputs={**nodes[key].inputs, name: text})
        for key, node in nodes.items():
            prefix = node.inputs.get("filename_prefix")
            if node.class_type in SPECS and isinstance(prefix, str):
                filled = fill_in(prefix, self._value_named)
                nodes[key] = replace(node, inputs={**node.inputs, "filename_prefix": filled})
        return Expansion(Graph(nodes, files=tuple(_files(scopes))), tuple(unread))

    def _scopes(self) -> Iterator[_Scope]:
        """Every graph that runs, instances of sub-graphs after the graph that they stand in."""
        pending = [_Scope(self.saved.graph)]
        instances = 0
        while pending:
            scope = pending.pop()
            yield scope
            self._count(len(scope.graph.nodes))
            for node in scope.graph.nodes.values():
                if node.type in self.saved.definitions and node.runs:
                    instances += 1
                    if instances > MAX_NODES:
                        raise RequestError(f"The workflow has more than {MAX_NODES:,} sub-graphs within each other.")
                    pending.append(self._child(scope, node))

    def _child(self, scope: _Scope, instance: SavedNode) -> _Scope:
        path = f"{scope.path}{instance.id}:"
        if path not in self.children:
            if path.count(":") > MAX_DEPTH:
                raise RequestError(
                    f"The workflow's sub-graphs stand in each other more than {MAX_DEPTH} deep, or in themselves."
                )
            definition = self.saved.definitions[instance.type]
            values, inner_values = self._instance_values(scope, instance, definition)
            inputs = tuple(instance_slots(instance, definition))
            self.children[path] = _Scope(definition, path, instance, scope, inputs, values, inner_values)
        return self.children[path]

    # What an instance of a sub-graph keeps for its inputs.

    def _instance_values(
        self, scope: _Scope, instance: SavedNode, definition: SavedGraph
    ) -> tuple[dict[int, Any], dict[str, dict[str, Any]]]:
        saved = instance.values if isinstance(instance.values, list) else []
        rescued = rescued_values(instance)
        values: dict[int, Any] = {}
        position = 0
        for number, boundary in enumerate(definition.inputs):
            if not self._leads_to_widget(definition, boundary, MAX_DEPTH):
                continue
            value = saved[position] if position < len(saved) else instance.named_values.get(boundary.name)
            value = rescued.get(boundary.name, value)
            if value is not None:
                values[number] = value
            position += 1
        inner_values: dict[str, dict[str, Any]] = {}
        for position, (node, name) in enumerate(proxies(instance)):
            value = saved[position] if position < len(saved) else None
            if value is None:
                continue
            place = self._input_for(definition, node, name)
            if place is None:
                inner_values.setdefault(node, {})[name] = value
            else:
                values[place] = value
        # The graph around may itself keep values for this instance.
        outer = scope.inner_values.get(instance.id, {})
        values |= {n: outer[boundary.name] for n, boundary in enumerate(definition.inputs) if boundary.name in outer}
        return values, inner_values

    def _input_for(self, definition: SavedGraph, node: str, name: str) -> int | None:
        """The input of a sub-graph that leads to this widget of this inner node; -1 stands for the sub-graph itself."""
        for number, boundary in enumerate(definition.inputs):
            if node == "-1":
                if boundary.name == name:
                    return number
                continue
            for target, slot in self._targets(definition, boundary):
                if target.id == node and slot.name == name:
                    return number
        return None

    def _targets(self, graph: SavedGraph, boundary: Boundary) -> Iterator[tuple[SavedNode, Slot]]:
        for key in boundary.links:
            self._count()
            if key in graph.targets:
                yield graph.targets[key]

    def _leads_to_widget(self, graph: SavedGraph, boundary: Boundary, depth: int) -> bool:
        for target, slot in self._targets(graph, boundary):
            definition = self.saved.definitions.get(target.type)
            if definition is None:
                if is_widget(target, slot):
                    return True
            elif depth:
                inner = next((entry for entry in definition.inputs if entry.name == slot.name), None)
                if inner is not None and self._leads_to_widget(definition, inner, depth - 1):
                    return True
        return False

    def _default(self, scope: _Scope, number: int) -> Any:
        """The value of the first inner widget that an input of a sub-graph leads to; None where there is none."""
        for target, slot in self._targets(scope.graph, scope.graph.inputs[number]):
            if target.type in self.saved.definitions:
                child = self._child(scope, target)
                inner = next((n for n, entry in enumerate(child.graph.inputs) if entry.name == slot.name), None)
                if inner is not None:
                    value = child.values[inner] if inner in child.values else self._default(child, inner)
                    if value is not None:
                        return value
            elif is_widget(target, slot):
                return own_values(target)[0].get(slot.name)
        return None

    # Nodes and their links.

    def _node(self, scope: _Scope, saved: SavedNode) -> tuple[Node, bool, list[str]]:
        """The node as it runs, whether all of its values are known, and which of them are prompts with choices."""
        inputs, complete = own_values(saved)
        dynamic = {entry.name for entry in known_inputs(saved) if entry.dynamic_prompt}
        for name, value in scope.inner_values.get(saved.id, {}).items():
            if name in inputs:
                inputs[name] = value
                dynamic.discard(name)
        for slot in slots(saved):
            source = self._follow_input(scope, saved, slot) if slot.link is not None else None
            if isinstance(source, _Constant):
                known = SPECS[saved.type].input(slot.name) if saved.type in SPECS and source.typed else None
                inputs[slot.name] = source.value if known is None else rounded(known, source.value)
                if not source.typed:
                    dynamic.discard(slot.name)
            elif source is not None:
                inputs[slot.name] = source

        def is_prompt(name: str) -> bool:
            text = inputs.get(name)
            return isinstance(text, str) and len(text) <= MAX_PROMPT_CHARACTERS  # a longer one is refused when it runs

        title = saved.title or saved.type
        return Node(scope.path + saved.id, saved.type, inputs, title), complete, list(filter(is_prompt, dynamic))

    def _follow_input(self, scope: _Scope, node: SavedNode, slot: Slot) -> Link | _Constant | None:
        """Where the value of an input comes from: a node that runs, a constant, or nowhere."""
        wanted = slot.type
        seen: set[tuple[str, str, str]] = set()
        while True:
            self._count()
            place = (scope.path, node.id, slot.name)
            if place in seen:
                raise RequestError(
                    f"The workflow's links run in a circle through node {scope.path}{node.id}; cut one of them."
                )
            seen.add(place)
            link = scope.graph.links.get(slot.link) if slot.link is not None else None
            if link is None:
                return None
            inward = self._inward(scope, link)
            if inward is None:
                return None
            scope, link = inward
            if link.origin in scope.graph.nodes:
                node = scope.graph.nodes[link.origin]
                taken = self._take_output(scope, node, link.origin_slot, wanted)
                if not isinstance(taken, tuple):
                    return taken
                scope, node, slot, wanted = taken
                continue
            # The link comes in from around the sub-graph.
            instance, parent, number = scope.instance, scope.parent, link.origin_slot
            if (
                link.origin != scope.graph.input_node
                or instance is None
                or parent is None
                or number >= len(scope.slots)
            ):
                return None
            outer = scope.slots[number]
            if outer.link is None:
                value = scope.values[number] if number in scope.values else self._default(scope, number)
                return None if value is None else _Constant(value)
            scope, node, slot, wanted = parent, instance, outer, outer.type

    def _inward(self, scope: _Scope, link: SavedLink) -> tuple[_Scope, SavedLink] | None:
        """The link within a sub-graph that a link from its instance stands for; other links as they are."""
        while link.origin in scope.graph.nodes:
            self._count()
            node = scope.graph.nodes[link.origin]
            definition = self.saved.definitions.get(node.type)
            if definition is None or not node.runs:
                break
            inner = _link_to_output(definition, link.origin_slot)
            if inner is None:
                return None
            scope, link = self._child(scope, node), inner
        return scope, link

    def _take_output(
        self, scope: _Scope, node: SavedNode, number: int, wanted: str
    ) -> tuple[_Scope, SavedNode, Slot, str] | Link | _Constant | None:
        """What an output of a node is: the node itself, a constant, nothing, or an input of it to be followed."""
        if node.type == _PRIMITIVE:  # gives its value whatever its mode
            value = next(iter(scope.inner_values.get(node.id, {}).values()), None)
            if value is None and isinstance(node.values, list) and node.values:
                value = node.values[0]
            return None if value is None else _Constant(shared(self._fed(scope.graph, node), value), typed=True)
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            slot = self._passed_on(node, number, wanted)
            return None if slot is None else (scope, node, slot, slot.type)
        if node.type == _GET:
            return self._setter(scope, node, wanted)
        if node.type in _PASSING:
            return (scope, node, node.inputs[0], wanted) if node.inputs else None
        return None if node.type in _NOTES else Link(scope.path + node.id, number)

    def _fed(self, graph: SavedGraph, primitive: SavedNode) -> list[Input]:
        """The widgets that a primitive feeds without a reroute between."""
        self._count(len(graph.links))
        fed = (
            graph.targets[key]
            for key, link in graph.links.items()
            if link.origin == primitive.id and key in graph.targets
        )
        known = (SPECS[node.type].input(slot.name) for node, slot in fed if node.type in SPECS)
        return [entry for entry in known if entry is not None]

    def _passed_on(self, node: SavedNode, number: int, wanted: str) -> Slot | None:
        definition = self.saved.definitions.get(node.type)
        inputs = instance_slots(node, definition) if definition else slots(node)
        self._count(len(inputs))
        if not inputs:
            return None
        if wanted == ANY:
            return inputs[number] if number < len(inputs) else inputs[0]
        given = node.outputs[number] if number < len(node.outputs) else ANY

        def fits(slot: Slot) -> bool:
            return _fit(slot.type, given) and _fit(slot.type, wanted)

        if number < len(inputs) and fits(inputs[number]):
            return inputs[number]
        exact = next((slot for slot in inputs if slot.type == wanted), None)
        return exact or next(filter(fits, inputs), None)

    def _setter(self, scope: _Scope, node: SavedNode, wanted: str) -> tuple[_Scope, SavedNode, Slot, str] | None:
        """The input of the Set node of the same name, in this graph or one around it."""
        name = first_value(node)
        around: _Scope | None = scope
        while around is not None and name is not None:
            self._count(len(around.graph.nodes))
            for other in around.graph.nodes.values():
                if other.type == _SET and first_value(other) == name and other.inputs and other.runs:
                    return around, other, other.inputs[0], wanted
            around = around.parent
        return None

    def _value_named(self, node: str, name: str) -> Any:
        """The value of a widget of the first node of this name: its `Node name for S&R`, else its title."""
        everywhere = list(self.saved.all_nodes())
        self._count(len(everywhere))
        named = [entry for entry in everywhere if entry.properties.get("Node name for S&R") == node]
        named = named or [entry for entry in everywhere if (entry.title or entry.type) == node]
        return own_values(named[0])[0].get(name) if named else None

    def _count(self, steps: int = 1) -> None:
        self.hops += steps
        if self.hops > MAX_HOPS:
            raise RequestError(
                f"The workflow's links lead over more than {MAX_HOPS:,} others, the most that are followed."
            )


def _link_to_output(definition: SavedGraph, number: int) -> SavedLink | None:
    """The link inside a sub-graph that ends at one of its outputs."""
    found = definition.outputs[number].links if number < len(definition.outputs) else ()
    return definition.links[found[0]] if found else None


def _fit(one: str, other: str) -> bool:
    """Whether the page lets outputs and inputs of these types, or lists of types, be linked."""
    if ANY in (one, other):
        return True
    return not {name.lower() for name in one.split(",")}.isdisjoint(name.lower() for name in other.split(","))


def _files(scopes: list[_Scope]) -> Iterator[ModelFile]:
    """The model files that nodes say where to get, each once."""
    seen = set()
    for scope in scopes:
        for node in scope.graph.nodes.values():
            models = node.properties.get("models")
            for entry in models if isinstance(models, list) else ():
                parts = [entry.get(name) for name in ("name", "directory", "url")] if isinstance(entry, dict) else []
                texts = [part for part in parts if isinstance(part, str)]
                if len(texts) == 3 and tuple(texts) not in seen:
                    seen.add(tuple(texts))
                    yield ModelFile(*texts)
