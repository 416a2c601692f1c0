"""What is imported when: torch only where it computes, and from one room of the house only downwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from conftest import command_environment

SOURCE = Path(headrace.__file__).parent

# From the bottom up; what stands in one line is one room, or rooms that may use each other.
HOUSE = [
    {"errors", "__init__"},
    {"nn"},
    {"quant"},
    {"catalog", "recipe", "pictures", "structured", "checkpoints"},
    {"pose"},
    {"text", "flow", "device", "provenance", "memory"},
    {"editing"},
    {"request"},
    {"pipeline"},
    {"reproduction"},
    {"chat"},
    {"doctor", "world", "bench"},
    {"train", "evals"},
    {"comfy"},
    {"server"},
    {"cli"},
    {"__main__"},
]


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=command_environment(), capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_importing_headrace_is_light() -> None:
    heavy = "torch", "numpy", "PIL", "rich", "click", "safetensors", "huggingface_hub"
    assert run_python(f"import sys, headrace; print([name for name in {heavy} if name in sys.modules])").strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["generate", "--no-such-option"],
        ["generate", "a cat", "--size", "65x64"],
        ["generate", "a cat", "--ref", "none.png"],
        ["generate", "a cat", "--lora", "none.safetensors"],
        ["generate", "a cat", "-o", "none/a.png"],
        ["models", "--json"],
        ["plan", "klein-4b", "--json"],
        ["inspect", "none.safetensors"],
        ["generate", "a cat", "--pose", "none.json"],
        ["generate", "a cat", "--image", "none.png", "--strength", "0.5"],
        ["doctor", "--help"],
        ["upsample", "a cat"],
        ["upsample", "a cat", "--upsample-with", "http://127.0.0.1:1"],
        ["generate", "a cat", "--upsample"],
        ["generate", "a cat", "--check"],
        ["chat", "--help"],
        ["pose", "none.json", "-o", "a.png"],
        ["convert", "--help"],
        ["bench", "quality", "--help"],
        ["run", "--help"],
        ["run", "none.json", "--to-api"],
        ["bench", "decoder", "--help"],
        ["train", "--help"],
        ["serve", "--help"],
        ["keys", "list", "--help"],
        ["no-such-command"],
    ],
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['headrace', *{arguments!r}]\n"
        "from headrace.cli.main import main\n"
        "main()\n"
        "print('\\n', [name for name in ('torch', 'rich') if name in sys.modules])"
    )
    assert run_python(code).splitlines()[-1].strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in headrace.__all__:
        assert getattr(headrace, name).__name__.split(".")[-1] == name
    assert set(headrace.__all__) <= set(dir(headrace))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = headrace.nonsense


def room(module: str) -> str:
    """`headrace.nn.attention` -> `nn`."""
    return (module.split(".") + ["__init__"])[1]


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every import of one of our own modules, with the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "headrace":
            for alias in node.names:
                is_module = any((SOURCE / f"{alias.name}{ending}").exists() for ending in ("", ".py"))
                yield (f"headrace.{alias.name}", []) if is_module else ("headrace", [alias.name])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headrace."):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names if alias.name.startswith("headrace."))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_use_only_what_is_below_them(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        pytest.skip("the front door names what it opens")
    floors = {name: floor for floor, names in enumerate(HOUSE) for name in names}
    own = room(".".join(["headrace", *path.relative_to(SOURCE).with_suffix("").parts]))
    for module, names in imports(path):
        assert floors[room(module)] <= floors[own], f"{own} reaches up into {module}"
        if room(module) != own:
            private = [name for name in names if name.startswith("_") and not name.startswith("__")]
            assert not private, f"{own} takes private names from {module}: {private}"
