"""The commands that make no picture, and how the command line ends."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import Run, command_environment
from headrace.cli.main import COMMANDS, main
from headrace.cli.terminal import readable_bytes


def test_help_names_every_command(headrace: Run) -> None:
    result = headrace("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for command, sentence in COMMANDS.items():
        assert f"{command} " in result.stdout
        assert sentence in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(headrace: Run, command: str) -> None:
    result = headrace(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: headrace {command} ")


def test_the_version(headrace: Run) -> None:
    import headrace as package

    assert headrace("--version").stdout == f"headrace {package.__version__}\n"


def test_models_as_a_table(headrace: Run) -> None:
    lines = headrace("models").stdout.splitlines()
    sizes, use = (line for line in lines if line.split()[:1] == ["dev"])
    assert sizes.split() == ["dev", "32,223,281,152", "17,343,754,240", "84,046,115", "99.3", "GB", "199", "GB"]
    assert use.split()[:5] == ["dev", "dev", "50", "4", "10"]
    assert "no commercial use" in use
    assert use.endswith("black-forest-labs/FLUX.2-dev")


def test_models_as_json(headrace: Run) -> None:
    models = {model["name"]: model for model in json.loads(headrace("models", "--json").stdout)["models"]}
    klein = models["klein-4b"]
    assert klein["parameters"] == {"transformer": 3875544576, "text_encoder": 3114088192, "autoencoder": 84046115}
    assert klein["bytes"] == {"fp32": 4 * 7073678883, "bf16": 2 * 7073678883}
    assert (klein["steps"], klein["reference_limit"], klein["commercial_use"]) == (4, 10, True)


def test_inspect(headrace: Run, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("klein")
    text = headrace("inspect", folder)
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith(f"{folder}: pipeline, ")
    for network in ("transformer", "autoencoder", "text encoder"):
        assert f"\n{network} " in text.stdout
    report = json.loads(headrace("inspect", folder, "--json").stdout)
    assert report["kind"] == "pipeline"
    assert [network["missing"] + network["unused"] for network in report["networks"]] == [[], [], []]


def test_inspect_names_what_is_missing_and_unused(
    headrace: Run, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    tensors = load_file(tiny_model("klein") / "transformer" / "diffusion_pytorch_model.safetensors")
    del tensors["proj_out.weight"]
    tensors["\x1b[31mstranger.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    result = headrace("inspect", "a.safetensors")
    assert (result.returncode, result.stderr) == (0, "")
    assert "transformer: missing: proj_out.weight\n" in result.stdout
    assert "stranger.weight" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`doctor(errors, *arguments)` is the command where the cases come out with these errors."""
    from headrace.doctor.cases import CaseResult

    def run(errors: list[float], *arguments: str) -> tuple[int, str]:
        def run_cases(_: Path) -> Iterator[CaseResult]:
            yield from (CaseResult("case", f"tensor {index}", error, 1e-4) for index, error in enumerate(errors))

        monkeypatch.setattr("headrace.doctor.cases.run_cases", run_cases)
        monkeypatch.setattr(sys, "argv", ["headrace", "doctor", "--cases", ".", *arguments])
        return main(), capsys.readouterr().out

    return run


@pytest.mark.parametrize(("errors", "code"), [([0.0, 1e-4], 0), ([1e-5, 1.1e-4], 1), ([math.nan], 1), ([math.inf], 1)])
def test_doctor_judges(doctor: Callable[..., tuple[int, str]], errors: list[float], code: int) -> None:
    assert doctor(errors)[0] == code
    judged, text = doctor(errors, "--json")
    assert judged == code
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["cases"]
    assert [row["case"] for row in rows] == ["case"] * len(errors)
    assert [row["tensor"] for row in rows] == [f"tensor {index}" for index in range(len(errors))]
    assert [row["error"] for row in rows] == [error if math.isfinite(error) else None for error in errors]


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in `headrace models | head -n 1`, with the reader gone before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "headrace", "models"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=command_environment(),
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert result.stderr == b""
    assert result.returncode == 1


def in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs `headrace COMMAND` through a shell, which can close standard streams or send them elsewhere."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m headrace {command}'],
        cwd=folder,
        env=command_environment(),
        capture_output=True,
        check=False,
        timeout=120,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["models", "models --json", "--help"])
def test_a_standard_output_that_is_full(tmp_path: Path, command: str) -> None:
    result = in_shell(f"{command} > /dev/full", tmp_path)
    assert result.returncode == 1
    assert result.stderr == b"headrace: Standard input or output cannot be read or written (no space left on device).\n"


def test_a_standard_output_that_is_closed(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    result = in_shell("models >&-", tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    picture = f'generate "a cat" --model "{tiny_model("klein")}" --size 32x32 --steps 1 -o'
    result = in_shell(f"{picture} b.png >&-", tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "b.png").is_file()
    result = in_shell(f"{picture} - >&-", tmp_path)
    assert (result.returncode, result.stderr) == (2, b"headrace: Standard output is closed; name a file with -o.\n")


@pytest.mark.parametrize("place", ["2>&-", "2>/dev/full"])
def test_a_standard_error_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    assert in_shell(f'generate "" {place}', tmp_path).returncode == 2


def test_a_standard_input_that_is_closed(tmp_path: Path) -> None:
    result = in_shell("generate - <&-", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(b"headrace: Standard input is closed; ")


def test_control_c_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headrace.checkpoints.listed_models", interrupted)
    monkeypatch.setattr(sys, "argv", ["headrace", "models"])
    assert main() == 1
    assert capsys.readouterr() == ("", "headrace: Stopped; nothing unfinished was written.\n")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345_678, "12.3 MB"), (999_600_000, "1 GB")]
)
def test_readable_bytes(count: int, text: str) -> None:
    assert readable_bytes(count) == text
