"""Numbers, texts and the switch between two of anything."""

from __future__ import annotations

from typing import Any

from headrace.comfy.session import Function


def value(value: Any) -> tuple[Any]:
    return (value,)


def switch(switch: bool, on_false: Any = None, on_true: Any = None) -> tuple[Any]:
    return (on_true if switch else on_false,)


PLAIN: dict[str, Function] = {
    "PrimitiveInt": value,
    "PrimitiveFloat": value,
    "PrimitiveBoolean": value,
    "PrimitiveString": value,
    "PrimitiveStringMultiline": value,
    "ComfySwitchNode": switch,
}
