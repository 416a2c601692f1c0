"""Requests that cannot be: one sentence on standard error, exit code 2 (or 1 where the request was right), no file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from conftest import Run
from test_pictures import png_header


def assert_refused(result: subprocess.CompletedProcess[str], sentence: str, folder: Path, code: int = 2) -> None:
    """One sentence that contains `sentence`, nothing on standard output, no new file in the folder."""
    assert (result.returncode, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("headrace: ")
    assert line.endswith(".")
    assert sentence in line
    assert not [path.name for path in folder.iterdir() if path.name not in INPUTS]


INPUTS = {"text.png", "bomb.png", "picture.png", "folder", "empty.txt", "latin1.txt", "long.txt"}


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "long.txt").write_text("x" * 500_000)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a cat", "--size", "65x64"], "nearest that work are 64x64"),
        (["a cat", "--size", "64"], "not WIDTHxHEIGHT"),
        (["a cat", "--size", "0x64"], "0x64"),
        (["a cat", "--size", "4096x4096"], "more than 4 megapixels"),
        (["a cat", "--steps", "0"], "0 steps"),
        (["a cat", "--steps", "-3"], "-3 steps"),
        (["a cat", "--steps", "many"], "'many' is not a valid integer"),
        (["a cat", "--guidance", "nan"], "guidance of nan"),
        (["a cat", "--guidance", "inf"], "guidance of inf"),
        (["a cat", "--guidance", "-1"], "guidance of -1"),
        (["a cat", "--seed", "-1"], "seed -1"),
        (["a cat", "--seed", str(2**64)], str(2**64)),
        (["a cat", "--seed", str(2**64 - 1), "-n", "2"], str(2**64)),
        (["a cat", "-n", "0"], "0 pictures"),
        (["a cat", "--precision", "fp7"], "'fp7' is not one of"),
        (["a cat", "--device", "abacus"], "'abacus' is not one of"),
        (["a cat", "--convention", "other"], "'other' is not one of"),
        (["a cat", "--variant", "other"], "'other' is not one of"),
        (["a cat", "--ref", "none.png"], "none.png does not exist"),
        (["a cat", "--ref", "text.png"], "text.png is not a picture"),
        (["a cat", "--ref", "bomb.png"], "bomb.png claims more than 64 million pixels"),
        (["a cat", "--ref", "folder"], "folder is a folder"),
        (["a cat", "--ref", "picture.png", "--ref", "text.png"], "text.png is not a picture"),
        (["a cat", "--ref", "-"], "cannot come from standard input"),
        (["a cat", "-o", "folder"], "folder is a folder"),
        (["a cat", "-o", "x" * 300 + ".png"], "file name too long"),
        (["a cat", "-o", "none/a.png"], "none of the output a.png does not exist"),
        (["a cat", "-o", "a.gif"], "must end in .png"),
        (["a cat", "-o", "a"], "must end in .png"),
        (["a cat", "-o", "-", "-n", "2"], "Standard output takes one picture"),
        (["a cat", "-o", "-", "--json"], "Standard output takes one picture"),
        (["日" * 40_000, "-o", "a.jpg"], "longer than a JPEG file can carry"),
        ([""], "prompt is empty"),
        (["  \n "], "prompt is empty"),
        ([], "Give a prompt"),
        (["a cat", "--prompt-file", "text.png"], "Give a prompt"),
        (["--prompt-file", "none.txt"], "none.txt does not exist"),
        (["--prompt-file", "empty.txt"], "prompt is empty"),
        (["--prompt-file", "latin1.txt"], "not UTF-8"),
        (["--prompt-file", "long.txt"], "long.txt has more than"),
        (["--prompt-file", "folder"], "folder is a folder"),
        (["a cat", "and a dog"], "unexpected extra argument"),
        (["a cat", "--colour", "red"], "No such option '--colour'"),
    ],
)
def test_generate(headrace: Run, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    assert_refused(headrace("generate", *arguments), sentence, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", ""], "empty text"),
        (["--model", "x" * 300], "File name too long"),
        (["--model", "folder"], "folder"),
        (["--model", "text.png"], "text.png"),
    ],
)
def test_models_that_cannot_be(headrace: Run, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    assert_refused(headrace("generate", "a cat", *arguments), sentence, tmp_path)


def test_a_prompt_that_is_not_text(headrace: Run, tmp_path: Path) -> None:
    assert_refused(headrace("generate", os.fsdecode(b"caf\xe9")), "not UTF-8", tmp_path)


def test_an_empty_standard_input(headrace: Run, tmp_path: Path) -> None:
    assert_refused(headrace("generate", "-", input=""), "prompt is empty", tmp_path)


def test_a_standard_input_that_is_too_long(headrace: Run, tmp_path: Path) -> None:
    assert_refused(headrace("generate", "-", input="x" * 1_000_000), "more than 100,000 characters", tmp_path)
    assert_refused(headrace("generate", "-", input="x" * 100_001), "100,001 characters", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["paint"], "No such command 'paint'"),
        (["--paint"], "No such option"),
        (["inspect"], "Missing argument"),
        (["inspect", "none.safetensors"], "none.safetensors"),
        (["inspect", "text.png"], "text.png"),
        (["inspect", ""], "empty text"),
        (["inspect", "x" * 300], "File name too long"),
        (["doctor", "--fast"], "No such option"),
        (["models", "all"], "unexpected extra argument"),
    ],
)
def test_other_commands(headrace: Run, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    assert_refused(headrace(*arguments), sentence, tmp_path)


def test_a_terminal_is_not_played_on(headrace: Run, tmp_path: Path) -> None:
    result = headrace("inspect", "\x1b[31mred\nline")
    assert_refused(result, "red line", tmp_path)
    assert "\x1b" not in result.stderr
