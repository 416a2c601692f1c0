"""`headrace generate` from the command line to the file, with small random models."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Run, command_environment
from headrace.cli.main import main
from headrace.provenance import read_recipe

TinyModel = Callable[[str], Path]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Generate = Callable[..., Result]


@pytest.fixture
def generate(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Generate:
    """`generate(*arguments, kind=...)` is the command in this process, in the test's folder, with a small picture."""

    def run(*arguments: str | Path, kind: str = "klein") -> Result:
        command = ["headrace", "generate", "--model", tiny_model(kind), "--device", "cpu", "--size", "32x32"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in (*command, *arguments)])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        return Result(main(), *capfd.readouterr())

    return run


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("ending", "file_format"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_with_its_recipe(generate: Generate, tmp_path: Path, ending: str, file_format: str) -> None:
    result = generate("a cat", "-o", f"a.{ending}", "--seed", "7", "--size", "48x32", "--steps", "2")
    assert result == Result(0, f"wrote a.{ending} (seed 7, 48x32)\n", "")
    with Image.open(tmp_path / f"a.{ending}") as image:
        assert (image.format, image.size) == (file_format, (48, 32))
    recipe = read_recipe(tmp_path / f"a.{ending}")
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.convention) == ("a cat", 7, 2, "diffusers")


@pytest.mark.parametrize("kind", ["dev", "klein-base"])
def test_guidance_is_in_the_recipe(generate: Generate, tmp_path: Path, kind: str) -> None:
    assert generate("a cat", "-o", "a.png", "--guidance", "2.5", "--steps", "2", kind=kind).code == 0
    assert read_recipe(tmp_path / "a.png").guidance == 2.5


def test_json_is_all_there_is(generate: Generate, tmp_path: Path) -> None:
    result = generate("a cat", "-o", "a.png", "--seed", "5", "-n", "2", "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert set(report) == {"images", "timings", "peak_memory_bytes"}
    assert report["images"] == [{"path": f"a-{seed}.png", "seed": seed, "width": 32, "height": 32} for seed in (5, 6)]
    assert set(report["timings"]) == {"open", "generate", "write"}
    assert all(seconds >= 0 for seconds in report["timings"].values())
    assert report["peak_memory_bytes"] > 2**20
    assert files(tmp_path) == ["a-5.png", "a-6.png"]


def test_each_of_several_is_the_picture_of_its_seed(generate: Generate, tmp_path: Path) -> None:
    generate("a cat", "-o", "several.png", "--seed", "5", "-n", "3")
    generate("a cat", "-o", "alone.png", "--seed", "6")
    together, alone = (np.asarray(Image.open(tmp_path / name)) for name in ("several-6.png", "alone.png"))
    np.testing.assert_array_equal(together, alone)


def test_a_drawn_seed_is_printed_and_stored(generate: Generate, tmp_path: Path) -> None:
    result = generate("a cat")
    (name,) = files(tmp_path)
    seed = read_recipe(tmp_path / name).seed
    assert name == f"headrace-{seed}.png"
    assert result.out == f"wrote {name} (seed {seed}, 32x32)\n"


def test_only_a_named_output_is_overwritten(generate: Generate, tmp_path: Path) -> None:
    for _ in range(3):
        generate("a cat", "--seed", "1")
        generate("a cat", "--seed", "1", "-o", "a.png")
    assert files(tmp_path) == ["a.png", "headrace-1-2.png", "headrace-1-3.png", "headrace-1.png"]


def test_references_are_reported_as_used(generate: Generate, tmp_path: Path) -> None:
    Image.new("RGB", (50, 70), "red").save(tmp_path / "a.png")
    Image.new("RGB", (64, 32), "blue").save(tmp_path / "b.png")
    result = generate("image 1 beside image 2", "--ref", "a.png", "--ref", "b.png", "-o", "c.png")
    assert result.err.splitlines() == ["image 1: a.png, used at 48x64", "image 2: b.png, used at 64x32"]
    assert [(record.width, record.height) for record in read_recipe(tmp_path / "c.png").references] == [
        (48, 64),
        (64, 32),
    ]


def test_eleven_references(generate: Generate, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    result = generate("a cat", *["--ref", "a.png"] * 11, "-o", "c.png")
    assert result.code == 2
    assert result.err == "headrace: 11 references were given; this model takes at most 10.\n"
    assert files(tmp_path) == ["a.png"]


@pytest.mark.parametrize("text", ["un café 🍎", "\ufeffun café 🍎\r\n", "un café 🍎\n\n"])
def test_a_prompt_from_a_file(generate: Generate, tmp_path: Path, text: str) -> None:
    (tmp_path / "prompt.txt").write_bytes(text.encode())
    generate("--prompt-file", "prompt.txt", "-o", "a.png")
    assert read_recipe(tmp_path / "a.png").prompt == "un café 🍎"


def test_a_prompt_that_is_too_long_is_cut_with_one_sentence(generate: Generate, tmp_path: Path) -> None:
    result = generate("a cat " * 600, "-o", "a.png")
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.startswith("headrace: The prompt is")
    assert line.endswith("cut off.")


def test_a_full_disk_keeps_what_was_written(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def fsync(descriptor: int) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    result = generate("a cat", "-n", "3", "--seed", "1", "-o", "a.png")
    assert result.code == 1
    assert result.out == "wrote a-1.png (seed 1, 32x32)\n"
    assert result.err == "headrace: The disk is full, so a-2.png was not written; free some space and try again.\n"
    assert files(tmp_path) == ["a-1.png"]


def test_a_really_full_disk(generate: Generate, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        result = generate("a cat", "-o", "disk/a.png", "--size", "128x128")
        assert result.code == 1
        assert result.err.startswith("headrace: The disk is full")
        assert files(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_goes_wrong_inside_is_one_sentence(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero\nand a second line")

    monkeypatch.setattr("headrace.pipeline.Pipeline.stream", fail)
    result = generate("a cat", "-o", "a.png")
    assert result.code == 1
    assert result.err == (
        "headrace: Something in Headrace went wrong (ZeroDivisionError: by zero); HEADRACE_TRACEBACK=1 shows where.\n"
    )
    monkeypatch.setenv("HEADRACE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        generate("a cat", "-o", "a.png")


def test_standard_input_to_standard_output(tiny_model: TinyModel, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "generate", "-", "-o", "-", "--size", "32x32", "--model"]
    result = subprocess.run(
        [*command, tiny_model("klein")],
        cwd=tmp_path,
        env=command_environment(),
        input=b"a cat from a pipe\n",
        capture_output=True,
        check=True,
        timeout=120,
    )
    with Image.open(io.BytesIO(result.stdout)) as image:
        assert image.size == (32, 32)
        recipe = json.loads(image.info["headrace"])
    assert recipe["prompt"] == "a cat from a pipe"
    assert result.stderr.decode() == f"seed {recipe['seed']}\n"
    assert files(tmp_path) == []


def test_control_c_in_the_middle(tiny_model: TinyModel, tmp_path: Path) -> None:
    """With standard error on a terminal, so that the bar tells when the middle is."""
    terminal, screen = pty.openpty()
    command = [sys.executable, "-m", "headrace", "generate", "a cat", "-o", "a.png", "--steps", "1000", "--model"]
    with subprocess.Popen(
        [*command, tiny_model("klein")],
        cwd=tmp_path,
        env={**command_environment(), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=screen,
    ) as process:
        os.close(screen)
        seen = b""
        while not re.search(rb"[1-9]\d*/1000", seen):
            seen += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        rest = b""
        try:
            while chunk := os.read(terminal, 4096):
                rest += chunk
        except OSError:  # what a terminal answers when the other side has closed it
            pass
        output, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 1
    assert output == b""
    assert b"headrace: Stopped; nothing unfinished was written." in rest
    assert b"Traceback" not in seen + rest
    assert files(tmp_path) == []


def test_sprite_is_in_the_package(headrace: Run, tmp_path: Path) -> None:

    result = headrace("generate", "a red apple on a blue background", "--seed", "1", "-o", "apple.png")
    assert (result.returncode, result.stderr) == (0, "")
    recipe = read_recipe(tmp_path / "apple.png")
    assert (recipe.model, recipe.seed) == ("sprite", 1)


@pytest.mark.slow
def test_the_largest_pictures_fit_into_an_ordinary_memory(headrace: Run, tmp_path: Path) -> None:
    done = headrace(
        "generate", "a rocket", "--size", "2048x2048", "--steps", "1", "--seed", "1", "-o", str(tmp_path / "a.png"),
        "--json", "--memory", "6GB",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_memory_bytes"] < 6e9
