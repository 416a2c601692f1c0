"""Workflow files: as ComfyUI's page saves them, in its API format, or in a picture; and values set from outside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace.comfy.expand import expand
from headrace.comfy.graph import Graph, Link, Node, from_api, is_api, value_for
from headrace.comfy.saved import parse
from headrace.comfy.specs import SPECS, Input, Value
from headrace.errors import RequestError
from headrace.pictures import open_bounded

MAX_WORKFLOW_BYTES = 32 * 2**20
MAX_LEVELS = 200

_PNG = b"\x89PNG"
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Workflow:
    """A workflow that was read, and not yet checked.

    saved: the document as ComfyUI's page saved it, for the pictures that come out; None where there was none. unread:
    nodes of classes that are not known, some of whose values nothing tells the names of; they are left out.
    """

    graph: Graph
    saved: Mapping[str, Any] | None = None
    unread: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A value that can be set: an input that is a widget and has no link."""

    node: Node
    input: Input
    value: Any


def read_workflow(data: bytes, name: str) -> Workflow:
    """The workflow in a file's bytes; `name` names the file in errors.

    A PNG may hold both formats; then the API format counts, which is what the picture was made with.

    Raises RequestError, in one sentence, where it is no workflow, or one that is not read.
    """
    if data.startswith(_PNG):
        return _from_picture(data, name)
    document = _load(data, name)
    prompt = document.get("prompt")
    if isinstance(prompt, dict) and is_api(prompt):  # what is posted to a ComfyUI server
        return Workflow(from_api(prompt))
    if is_api(document):
        return Workflow(from_api(document))
    if isinstance(document.get("nodes"), list):
        return _from_page(document)
    raise RequestError(
        f"{name} is not a ComfyUI workflow: it has neither the nodes that one has, nor those of the API format."
    )


def _from_picture(data: bytes, name: str) -> Workflow:
    texts = open_bounded(data, f"picture {name}").info
    prompt, saved = texts.get("prompt"), texts.get("workflow")
    if not isinstance(prompt, str) and not isinstance(saved, str):
        raise RequestError(f"The picture {name} carries no ComfyUI workflow.")
    workflow = _from_page(_load(saved, f"The workflow in {name}")) if isinstance(saved, str) else None
    if not isinstance(prompt, str):
        assert workflow is not None
        return workflow
    document = _load(prompt, f"The prompt in {name}")
    if not is_api(document):
        raise RequestError(f"The prompt in {name} is not a ComfyUI workflow in the API format.")
    if workflow is None:
        return Workflow(from_api(document))
    return Workflow(replace(from_api(document), files=workflow.graph.files), workflow.saved)


def _from_page(document: Mapping[str, Any]) -> Workflow:
    expansion = expand(parse(document))
    return Workflow(expansion.graph, document, expansion.unread)


def _load(text: bytes | str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{name} is not a ComfyUI workflow: it is not JSON that can be read.") from error
    if not isinstance(document, dict):
        raise RequestError(f"{name} is not a ComfyUI workflow: it is not a JSON object.")
    level: list[Any] = [document]
    for _ in range(MAX_LEVELS):
        level = [inner for value in level for inner in _within(value) if isinstance(inner, dict | list)]
    if level:  # what is written out again would take Python's stack
        raise RequestError(f"{name} has values within each other more than {MAX_LEVELS} deep, the most that are read.")
    return document


def _within(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def settings(graph: Graph) -> Iterator[Setting]:
    """What `assign` can set, node by node."""
    for node in graph.nodes.values():
        for entry in SPECS[node.class_type].inputs if node.class_type in SPECS else ():
            if entry.is_widget and not isinstance(node.inputs.get(entry.name), Link):
                yield Setting(node, entry, node.inputs.get(entry.name))


def assign(graph: Graph, assignment: str) -> Graph:
    """The graph with `NODE.INPUT=VALUE` set; a link that was there is cut. NODE is an id, or a title or class.

    Raises RequestError where the node or input does not exist, or several could be meant, or the value does not fit.
    """
    target, equals, text = assignment.partition("=")
    name, dot, wanted = target.rpartition(".")
    if not equals or not dot:
        raise RequestError(f"{assignment!r} is not NODE.INPUT=VALUE, such as 25.noise_seed=7.")
    node = _find(graph, name)
    spec = SPECS.get(node.class_type)
    entry = spec.input(wanted) if spec else None
    if spec is None or entry is None or not entry.is_widget:
        there = ", ".join(other.name for other in spec.inputs if other.is_widget) if spec else ""
        raise RequestError(f"The input {wanted!r} of {node} cannot be set; what can: {there or 'nothing'}.")
    value: Value | None = _TRUTHS.get(text.lower()) if entry.type == "BOOLEAN" else text
    inputs = {**node.inputs, wanted: value_for(node, entry, text if value is None else value)}
    return replace(graph, nodes={**graph.nodes, node.id: replace(node, inputs=inputs)})


def _find(graph: Graph, name: str) -> Node:
    if name in graph.nodes:
        return graph.nodes[name]
    wanted = name.casefold()
    found = [node for node in graph.nodes.values() if wanted in (node.title.casefold(), node.class_type.casefold())]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RequestError(f"The workflow has no node {name!r}; --list shows those it has.")
    ids = ", ".join(node.id for node in found[:10])
    raise RequestError(f"The workflow has several nodes {name!r}: name one by its id ({ids}).")
