"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from served import Served

# The networks here are so small that threads only wait for each other, above all on a machine with other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell has what it runs in its background ignore Ctrl-C, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Run = Callable[..., subprocess.CompletedProcess[str]]


def command_environment() -> dict[str, str]:
    """The environment in which the tests start `headrace`: no terminal width, no colours, nothing from a hub."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


@pytest.fixture
def headrace(tmp_path: Path) -> Run:
    """`headrace(*arguments, input=...)` runs the command in a process of its own, in the test's folder."""

    def run(*arguments: str | Path, input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002
        return subprocess.run(
            [sys.executable, "-m", "headrace", *map(str, arguments)],
            cwd=tmp_path,
            env=command_environment(),
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model(kind)` is a folder of diffusers' with small random weights: dev, klein, klein-base or klein-kv."""
    from reference_pipelines import save_pipeline

    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            save_pipeline(folders[kind], kind)
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with sprite and a key without limits, for all tests that do not stop it.

    Without marks, as a watermark takes seconds.
    """
    from served import cli, serving

    data = tmp_path_factory.mktemp("served")
    (data / "words").write_text("forbidden | 3\n")
    key = cli("keys", "add", "tests", "--active", "1000", "--data", str(data)).strip()
    with serving("--no-marks", "--internal-urls", "--blocklist", str(data / "words"), data=data) as server:
        server.key = key
        yield server
