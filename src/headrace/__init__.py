"""Run the FLUX.2 family of image models: `headrace.load("sprite").generate("a red apple").save("apple.png")`.

Importing this package imports no torch; the names below are fetched from their modules when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from headrace.errors import Cancelled, HeadraceError, RequestError

if TYPE_CHECKING:
    from headrace.checkpoints.inspect import inspect
    from headrace.memory.plan import Plan, plan
    from headrace.pipeline import Picture, Pipeline, Step, load
    from headrace.recipe import Recipe
    from headrace.reproduction import Reproduction, reproduce

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "HeadraceError",
    "Picture",
    "Pipeline",
    "Plan",
    "Recipe",
    "Reproduction",
    "RequestError",
    "Step",
    "inspect",
    "load",
    "plan",
    "reproduce",
]

_MODULE_OF = {
    "Picture": "headrace.pipeline",
    "Pipeline": "headrace.pipeline",
    "Plan": "headrace.memory.plan",
    "Recipe": "headrace.recipe",
    "Reproduction": "headrace.reproduction",
    "Step": "headrace.pipeline",
    "inspect": "headrace.checkpoints.inspect",
    "load": "headrace.pipeline",
    "plan": "headrace.memory.plan",
    "reproduce": "headrace.reproduction",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
