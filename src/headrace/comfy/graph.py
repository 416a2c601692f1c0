"""A workflow as ComfyUI executes it: nodes by id, each input a value or a link; read from its API format, and checked.

The API format is one JSON object, `{id: {"class_type": ..., "inputs": {name: value or [id, output]}, "_meta": ...}}`; a
value that is itself a list is wrapped as `{"__value__": [...]}` to tell it from a link.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.comfy.specs import ANY, SPECS, Input, NodeSpec, Value, instead
from headrace.errors import RequestError

MAX_NODES = 10_000
_MAX_SHOWN = 80
# Primitives behind each other through which it is followed what a switch is set to.
_MAX_PRIMITIVES = 100


@dataclass(frozen=True)
class Link:
    """The output with this number, from 0, of the node with this id."""

    node: str
    output: int


@dataclass(frozen=True)
class ModelFile:
    """A model file that a workflow says where to get; folder: the one under `models/` that it belongs in."""

    name: str
    folder: str
    url: str


@dataclass(frozen=True)
class Node:
    """A node. inputs: by name, a Link or any JSON value; after `check`, a Link or a `specs.Value` of the right type."""

    id: str
    class_type: str
    inputs: Mapping[str, Any]
    title: str = ""

    def __str__(self) -> str:
        title = f' "{_shown(self.title)}"' if self.title and self.title != self.class_type else ""
        return f"node {_shown(self.id)} ({_shown(self.class_type)}{title})"

    def links(self) -> Iterator[tuple[str, Link]]:
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True)
class Graph:
    nodes: Mapping[str, Node]
    files: tuple[ModelFile, ...] = field(default=(), kw_only=True)

    def to_api(self) -> dict[str, Any]:
        """The graph in ComfyUI's API format, ready for JSON."""
        return {
            node.id: {
                "inputs": {name: _to_api(value) for name, value in node.inputs.items()},
                "class_type": node.class_type,
                "_meta": {"title": node.title or node.class_type},
            }
            for node in self.nodes.values()
        }


def is_api(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a workflow in the API format."""
    return bool(document) and all(isinstance(node, dict) and "class_type" in node for node in document.values())


def from_api(document: Mapping[str, Any]) -> Graph:
    """Reads a workflow in the API format; what its nodes are and need is left to `check`.

    Raises RequestError where it has more than MAX_NODES nodes, or one that is not as the format has it.
    """
    if len(document) > MAX_NODES:
        raise RequestError(f"The workflow has {len(document):,} nodes; at most {MAX_NODES:,} are read.")
    return Graph({key: _node_from_api(key, value) for key, value in document.items()})


def _node_from_api(key: str, value: object) -> Node:
    if not isinstance(value, dict) or not isinstance(value.get("class_type"), str):
        raise RequestError(f"Node {_shown(key)} of the workflow has no class_type.")
    inputs = value.get("inputs", {})
    if not isinstance(inputs, dict):
        raise RequestError(f"Node {_shown(key)} ({_shown(value['class_type'])}) of the workflow has no inputs by name.")
    meta = value.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return Node(
        key,
        value["class_type"],
        {name: _from_api(entry) for name, entry in inputs.items()},
        title if isinstance(title, str) else "",
    )


def _from_api(value: object) -> object:
    if isinstance(value, dict) and "__value__" in value:
        return value["__value__"]
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int:
        return Link(str(value[0]), value[1])
    return value


def _to_api(value: object) -> object:
    if isinstance(value, Link):
        return [value.node, value.output]
    return {"__value__": value} if isinstance(value, list) else value


def check(graph: Graph, only: Sequence[str] = ()) -> Graph:
    """The part of a graph that runs: complete, typed, each node after those it is linked to.

    That is what the nodes that save something need, or those of them that `only` names by id. Of a switch only the
    branch that it takes is needed: no node and no file of the other has to be there. Values get the type of their
    input; optional inputs that are absent, their default. Warns of nodes that are not known and may save something too.

    Raises RequestError, in one sentence, where nothing is saved, a node is not known, an input is missing, holds what
    it cannot, or is linked to what does not exist or is of another type, or where links form a circle.
    """
    outputs = _outputs(graph, only)
    if not only:
        _warn_of_other_ends(graph)
    order = _order(graph, outputs)
    _refuse_unknown([graph.nodes[key] for key in order])
    checked: dict[str, Node] = {}
    types: dict[Link, str] = {}
    for key in order:
        node = graph.nodes[key]
        spec = SPECS[node.class_type]
        checked[key] = replace(node, inputs=dict(_checked_inputs(graph, node, spec, types)))
        for number, output in enumerate(spec.outputs):
            types[Link(key, number)] = _taken_type(checked[key], types) if output.type == ANY else output.type
    return replace(graph, nodes=checked)


def _outputs(graph: Graph, only: Sequence[str]) -> list[str]:
    saving = [key for key, node in graph.nodes.items() if node.class_type in SPECS and SPECS[node.class_type].saves]
    if not only:
        if not saving:
            _refuse_unknown(graph.nodes.values())
            raise RequestError(
                "The workflow saves nothing: it has no SaveImage or PreviewImage node that is switched on."
            )
        return saving
    for key in only:
        if key not in saving:
            there = ", ".join(_shown(entry) for entry in saving[:20]) or "none"
            raise RequestError(f"Node {_shown(key)} is not one that saves pictures; those of this workflow: {there}.")
    return list(only)


def _warn_of_other_ends(graph: Graph) -> None:
    used = {link.node for node in graph.nodes.values() for _, link in node.links()}
    for node in graph.nodes.values():
        if node.class_type not in SPECS and node.id not in used and any(node.links()):
            hint = instead(node.class_type)
            warnings.warn(
                f"Left out: {node}, which Headrace does not have{f' ({hint})' if hint else ''}.", stacklevel=3
            )


def _order(graph: Graph, outputs: Sequence[str]) -> list[str]:
    """The nodes that outputs need, each after those it is linked to."""
    done: dict[str, None] = {}
    open_: set[str] = set()
    pending: list[tuple[str, bool]] = [(key, False) for key in reversed(outputs)]
    while pending:
        key, expanded = pending.pop()
        if expanded:
            open_.discard(key)
            done[key] = None
            continue
        if key in done:
            continue
        node = graph.nodes[key]
        if key in open_:
            raise RequestError(f"The workflow runs in a circle through {node}; cut one of its links.")
        open_.add(key)
        pending.append((key, True))
        for name, link in reversed(list(_needed(graph, node))):
            if link.node not in graph.nodes:
                raise RequestError(
                    f"Input {_shown(name)} of {node} is linked to node {_shown(link.node)}, which is not there."
                )
            if link.node not in done:
                pending.append((link.node, False))
    return list(done)


def _needed(graph: Graph, node: Node) -> Iterator[tuple[str, Link]]:
    """The links of a node that count: those of inputs that its class has, and of a switch the branch that it takes."""
    spec = SPECS.get(node.class_type)
    if spec is None:
        yield from node.links()
        return
    skipped = _branch_not_taken(graph, node) if node.class_type == "ComfySwitchNode" else None
    for name, link in node.links():
        if name != skipped and spec.input(name) is not None:
            yield name, link


def _branch_not_taken(graph: Graph, node: Node) -> str | None:
    """The input that a switch does not use; None where that is only known once the graph runs."""
    taken = _truth(graph, node.inputs.get("switch"))
    return None if taken is None else "on_false" if taken else "on_true"


def _truth(graph: Graph, value: object) -> bool | None:
    """What a BOOLEAN input is, followed through primitives and switches to where it is set."""
    for _ in range(_MAX_PRIMITIVES):
        if not isinstance(value, Link):
            return bool(value) if isinstance(value, bool | int) else None
        node = graph.nodes.get(value.node)
        if node is None or node.class_type != "PrimitiveBoolean":
            return None
        value = node.inputs.get("value")
    return None


def _refuse_unknown(nodes: Iterable[Node]) -> None:
    unknown = [node for node in nodes if node.class_type not in SPECS]
    if not unknown:
        return
    first = unknown[0]
    hint = instead(first.class_type)
    others = sorted({node.class_type for node in unknown} - {first.class_type})
    also = f" (nor are {', '.join(map(_shown, others[:10]))})" if others else ""
    raise RequestError(f"{_capital(first)} is not one that Headrace runs{also}{f': {hint}' if hint else ''}.")


def _checked_inputs(
    graph: Graph, node: Node, spec: NodeSpec, types: Mapping[Link, str]
) -> Iterator[tuple[str, Link | Value]]:
    needed = dict(_needed(graph, node))
    skipped = None
    if node.class_type == "ComfySwitchNode":
        skipped = _branch_not_taken(graph, node)
        taken = {"on_false": "on_true", "on_true": "on_false"}.get(skipped or "")
        if taken is not None and taken not in needed:
            raise RequestError(f"{_capital(node)} takes its input {taken}, to which nothing is linked.")
    for entry in spec.inputs:
        if entry.name == skipped:
            continue
        if entry.name in needed:
            _check_link(graph, node, entry, needed[entry.name], types)
            yield entry.name, needed[entry.name]
        elif node.inputs.get(entry.name) is None:
            if entry.required:
                what = "has no value for" if entry.is_widget else "has nothing linked to"
                raise RequestError(f"{_capital(node)} {what} its input {entry.name}.")
            if entry.default is not None:
                yield entry.name, entry.default
        elif entry.is_widget:
            yield entry.name, value_for(node, entry, node.inputs[entry.name])
        else:
            value = _shown_value(node.inputs[entry.name])
            raise RequestError(f"Input {entry.name} of {node} has to be linked to a node; it is {value}.")


def _check_link(graph: Graph, node: Node, entry: Input, link: Link, types: Mapping[Link, str]) -> None:
    source = graph.nodes[link.node]
    if link not in types:
        count = len(SPECS[source.class_type].outputs)
        raise RequestError(
            f"Input {entry.name} of {node} is linked to output {link.output} of {source}, which has {count}, counted "
            "from 0."
        )
    if ANY not in (entry.type, types[link]) and entry.type != types[link]:
        raise RequestError(f"Input {entry.name} of {node} takes {entry.type}, but {source} gives {types[link]}.")


def _taken_type(node: Node, types: Mapping[Link, str]) -> str:
    """The type that a switch gives: that of the branch it takes; both, where that is not known, have to agree."""
    branches = {types[link] for name, link in node.links() if name in ("on_false", "on_true")}
    return branches.pop() if len(branches) == 1 else ANY


def value_for(node: Node, entry: Input, value: object) -> Value:
    """A JSON value as a node's input takes it: numbers and text are converted where nothing is lost.

    Raises RequestError where it is of another kind, out of bounds, or none of the options.
    """
    taken = _converted(entry.type, value)
    if taken is None:
        kind = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}.get(entry.type, "text")
        raise RequestError(f"Input {entry.name} of {node} has to be {kind}; it is {_shown_value(value)}.")
    least, most = entry.minimum, entry.maximum
    if not (isinstance(taken, str) or least is None or most is None or least <= taken <= most):
        raise RequestError(
            f"Input {entry.name} of {node} has to be from {least:,} to {most:,}; it is {_shown_value(taken)}."
        )
    if entry.options and taken not in entry.options:
        raise RequestError(
            f"Input {entry.name} of {node} has to be one of {', '.join(entry.options)}; it is {_shown_value(taken)}."
        )
    return taken


def _converted(kind: str, value: object) -> Value | None:
    """The value as INT, FLOAT, BOOLEAN or text; None where that would change it."""
    if kind in ("STRING", "COMBO"):
        return value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
    if kind == "BOOLEAN":
        return value if isinstance(value, bool) else bool(value) if value in (0, 1) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        if kind == "INT":
            whole = int(value)
            return whole if isinstance(value, str) or whole == value else None
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _capital(node: Node) -> str:
    return "N" + str(node)[1:]


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _shown_value(value: object) -> str:
    """A value for a sentence; repr of a nested or huge one could be long, or deep."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and abs(value) > 10**40:
        return "a number of more than 40 digits"
    return repr(_shown(value)) if isinstance(value, str) else str(value)
