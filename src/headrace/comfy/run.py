"""Runs a checked graph: every node once, networks one after another, values gone as soon as nobody needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.comfy.engine import Engine, Rehearsal, Settings
from headrace.comfy.folders import ModelFolders, check_files
from headrace.comfy.graph import Graph, Link, Node
from headrace.comfy.models import open_loras
from headrace.comfy.nodes import PLAIN, WITH_SESSION
from headrace.comfy.saving import Provenance, save_pictures, save_place
from headrace.comfy.session import Session
from headrace.memory.plan import Plan

# The network that a node uses, in the order in which they come best: each of them is loaded as seldom as may be.
_NETWORKS = {
    "CLIPTextEncode": 1,
    "VAEEncode": 2,
    "VAEEncodeForInpaint": 2,
    "VAEDecode": 2,
    "SamplerCustomAdvanced": 3,
    "KSampler": 3,
}
_NO_NETWORK = 0


@dataclass(frozen=True)
class Job:
    """A graph to run. graph: checked. prompt: its API format; workflow: as ComfyUI's page saved it, if it did."""

    graph: Graph
    folders: ModelFolders
    input: Path
    output: Path
    settings: Settings = field(default_factory=Settings)
    prompt: Mapping[str, Any] = field(default_factory=dict)
    workflow: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Prepared:
    """A graph that was rehearsed. known: what nodes gave that need no network."""

    job: Job
    rehearsal: Rehearsal
    known: Mapping[str, tuple[Any, ...]]

    @property
    def steps(self) -> int:
        """Of all samplers together."""
        return sum(sampling.steps for sampling in self.rehearsal.samplings)

    @property
    def loras(self) -> tuple[str, ...]:
        """What of each LoRA is applied and what is not, in a sentence."""
        models = dict.fromkeys(sampling.guider.model for sampling in self.rehearsal.samplings)
        return tuple(dict.fromkeys(chosen.report() for model in models for chosen in open_loras(model)))


def prepare(job: Job) -> Prepared:
    """Everything that can be refused without loading a network.

    Raises RequestError: model files that are not there or not what they should be, pictures that cannot be read, names
    that lead out of the output folder, values that nodes do not take.
    """
    check_files(job.graph, job.folders)
    rehearsal = Rehearsal()
    session = Session(rehearsal, job.folders, job.input, job.output, _checked_place(job))
    known: dict[str, tuple[Any, ...]] = {}
    with torch.inference_mode():
        free = _without_networks(job.graph)
        for node, given in _executed(job.graph, session, {}):
            if node.id in free and node.class_type not in ("SaveImage", "PreviewImage"):
                known[node.id] = given
    return Prepared(job, rehearsal, known)


def run(
    prepared: Prepared,
    advance: Callable[[int], None] = lambda steps: None,
    say: Callable[[Path], None] = lambda path: None,
) -> tuple[list[Path], tuple[Plan, ...]]:
    """Runs what was prepared. advance: called after every step; say: with every file written.

    Returns the files and the plans that were followed. Raises RequestError, before anything is loaded, where the memory
    does not suffice.
    """
    job, written = prepared.job, []
    engine = Engine(prepared.rehearsal, job.settings, advance)
    sources = engine.sources
    provenance = Provenance(
        job.prompt,
        job.workflow,
        ", ".join(name for name, _ in sources),
        ", ".join(sha256 for _, sha256 in sources),
    )

    def save(images: Tensor, prefix: str) -> None:
        for path in save_pictures(images, prefix, job.output, provenance, datetime.now()):
            written.append(path)
            say(path)

    session = Session(engine, job.folders, job.input, job.output, save)
    with torch.inference_mode(), engine.planned() as plans:
        for _ in _executed(job.graph, session, prepared.known):
            pass
    return written, plans


def _checked_place(job: Job) -> Callable[[Tensor, str], None]:
    def check(images: Tensor, prefix: str) -> None:
        save_place(prefix, job.output, images.shape[2], images.shape[1], datetime.now())

    return check


def _executed(
    graph: Graph, session: Session, known: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[Node, tuple[Any, ...]]]:
    """Every node and what it gave, in the order in which they ran; those that are `known` are not run again.

    Of the nodes that could run, one that needs no network goes first, then one that uses the network the last one used,
    then the others in their networks' order.
    """
    uses = Counter(link.node for node in graph.nodes.values() for _, link in node.links())
    values: dict[str, tuple[Any, ...]] = {}
    waiting = dict(graph.nodes)
    current = _NO_NETWORK
    while waiting:
        ready = [node for node in waiting.values() if all(link.node in values for _, link in node.links())]
        node = min(ready, key=lambda node: _rank(node, current))
        del waiting[node.id]
        current = _NETWORKS.get(node.class_type, current)
        given = known[node.id] if node.id in known else _run(node, session, values)
        if uses[node.id]:
            values[node.id] = given
        yield node, given
        for _, link in node.links():
            uses[link.node] -= 1
            if not uses[link.node]:
                values.pop(link.node, None)


def _rank(node: Node, current: int) -> tuple[bool, int]:
    network = _NETWORKS.get(node.class_type, _NO_NETWORK)
    return network not in (_NO_NETWORK, current), network


def _run(node: Node, session: Session, values: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    inputs = {
        name: values[entry.node][entry.output] if isinstance(entry, Link) else entry
        for name, entry in node.inputs.items()
    }
    if node.class_type in PLAIN:
        return PLAIN[node.class_type](**inputs)
    return WITH_SESSION[node.class_type](session, **inputs)


def _without_networks(graph: Graph) -> set[str]:
    """The nodes that neither use a network nor get anything from one."""
    free: set[str] = set()
    for node in graph.nodes.values():  # each after those it is linked to
        if node.class_type not in _NETWORKS and all(link.node in free for _, link in node.links()):
            free.add(node.id)
    return free
