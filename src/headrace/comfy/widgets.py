"""What a saved workflow keeps beside its links: the values of a node's widgets, and those of a sub-graph's instance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headrace.comfy.saved import SavedGraph, SavedNode, Slot
from headrace.comfy.specs import SPECS, Input

_SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
# Seeds above it are whole anyway, and nothing else is as large.
_MAX_ROUNDED = 2**53
# What the page keeps beside the values of an input, under names that no node has.
_PAGE_ONLY = frozenset({"control_after_generate", "upload"})


def known_inputs(node: SavedNode) -> tuple[Input, ...]:
    return SPECS[node.type].inputs if node.type in SPECS else ()


def is_widget(node: SavedNode, slot: Slot) -> bool:
    """Whether an input of a node has a value of its own."""
    known = SPECS[node.type].input(slot.name) if node.type in SPECS else None
    return slot.widget if known is None else known.is_widget


def slots(node: SavedNode) -> list[Slot]:
    """A node's inputs in the page's order: links, then widgets, then whatever else was saved with it."""
    if node.type not in SPECS:
        return list(node.inputs)
    saved = {slot.name: slot for slot in node.inputs}
    known = sorted(known_inputs(node), key=lambda entry: entry.is_widget)
    slots = [saved.pop(entry.name, Slot(entry.name, entry.type)) for entry in known]
    return slots + list(saved.values())


def instance_slots(instance: SavedNode, definition: SavedGraph) -> list[Slot]:
    """An instance's inputs in the order of its definition; only some of them are saved with it."""
    left: dict[str, list[Slot]] = {}
    for slot in instance.inputs:
        left.setdefault(slot.name, []).append(slot)
    slots = []
    for boundary in definition.inputs:
        same = left.get(boundary.name, [])
        place = next((n for n, slot in enumerate(same) if slot.type == boundary.type), 0)
        slots.append(same.pop(place) if same else Slot(boundary.name, boundary.type))
    return slots


def own_values(node: SavedNode) -> tuple[dict[str, Any], bool]:
    """A node's widgets by name, and whether all that was saved with it could be named."""
    saved = list(node.values) if isinstance(node.values, list) else []
    named = node.values if isinstance(node.values, dict) else node.named_values
    if node.type not in SPECS:
        return _unknown_values(node, saved, named)
    values: dict[str, Any] = {}
    seeded = False
    for slot in SPECS[node.type].widget_slots():
        if slot is None:
            # Scripts that write workflows often leave out what becomes of a seed.
            if not (seeded and saved and not isinstance(saved[0], bool) and saved[0] not in _SEED_CONTROLS):
                saved = saved[1:]
            continue
        value = saved.pop(0) if saved else named.get(slot.name)
        value = slot.default if value is None else value
        if value is not None:
            values[slot.name] = value
        seeded = slot.control
    return values, True


def _unknown_values(node: SavedNode, saved: list[Any], named: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The same for a class that is not known: by the names that newer versions save, else by its inputs' widgets."""
    if named:
        return {name: value for name, value in named.items() if name not in _PAGE_ONLY}, True
    values: dict[str, Any] = {}
    for slot in node.inputs:
        if slot.widget and saved:
            values[slot.name] = saved.pop(0)
            if slot.name in ("seed", "noise_seed") and saved and saved[0] in _SEED_CONTROLS:
                saved.pop(0)
    return ({}, False) if saved else (values, True)


def rounded(entry: Input, value: Any) -> Any:
    """A number as the page puts it into a widget: in its range, then on its grid; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_ROUNDED:
        return value
    if entry.type not in ("INT", "FLOAT") or entry.minimum is None or entry.maximum is None:
        return value
    kept = min(max(value, entry.minimum), entry.maximum)
    if entry.type == "INT":
        grid = int(entry.grid)
        shift = int(entry.minimum) % grid
        return math.floor((kept - shift) / grid + 0.5) * grid + shift
    near = kept if entry.precision is None else _on_grid(kept, entry.precision)
    return min(max(_on_grid(near, entry.grid), entry.minimum), entry.maximum)


def _on_grid(value: float, step: float) -> float:
    return round(math.floor(value / step + 0.5) * step, -math.floor(math.log10(step)))


def shared(entries: Sequence[Input], value: Any) -> Any:
    """What a primitive keeps of its number for the widgets it feeds: in the range of all of them, and on a grid.

    That is for whole numbers one on which every widget's lies; for others the first widget's, and then the coarsest
    where none has a precision of its own.
    """
    numbers = [entry for entry in entries if entry.minimum is not None and entry.maximum is not None]
    if not numbers:
        return value
    least = max(entry.minimum for entry in numbers if entry.minimum is not None)
    most = min(entry.maximum for entry in numbers if entry.maximum is not None)
    if least > most:
        return value
    first = replace(numbers[0], minimum=least, maximum=most)
    if first.type == "INT":
        return rounded(replace(first, grid=math.lcm(*(int(entry.grid) for entry in numbers))), value)
    near = rounded(first, value)
    if any(entry.precision is not None for entry in numbers):
        return near
    return rounded(replace(first, grid=max(entry.grid for entry in numbers)), near)


def first_value(node: SavedNode) -> str | None:
    value = node.values[0] if isinstance(node.values, list) and node.values else None
    return value if isinstance(value, str) else None


def proxies(instance: SavedNode) -> list[tuple[str, str]]:
    """`properties.proxyWidgets`: for each value that an instance keeps, the inner node and widget that it is of."""
    saved = instance.properties.get("proxyWidgets")
    pairs = []
    for entry in saved if isinstance(saved, list) else ():
        named = isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], str)
        pairs.append((str(entry[0]), entry[1]) if named else ("", ""))
    return pairs


def rescued_values(instance: SavedNode) -> dict[str, Any]:
    """`properties.proxyWidgetErrorQuarantine`: values of inputs that the page could not place elsewhere."""
    quarantine = instance.properties.get("proxyWidgetErrorQuarantine")
    values: dict[str, Any] = {}
    for entry in quarantine if isinstance(quarantine, list) else ():
        original = entry.get("originalEntry") if isinstance(entry, dict) else None
        if (
            isinstance(original, list)
            and len(original) >= 2
            and original[0] == "-1"
            and entry.get("hostValue") is not None
        ):
            values[str(original[1])] = entry["hostValue"]
    return values
