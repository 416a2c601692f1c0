"""Looking on: rough pictures by one matrix, and their way into every kind of terminal."""

from __future__ import annotations

import base64
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headrace
from conftest import command_environment
from headrace.checkpoints import open_checkpoint
from headrace.cli.graphics import (
    Screen,
    choose_protocol,
    draw_half_blocks,
    draw_iterm2,
    draw_kitty,
    draw_sixel,
)
from headrace.errors import RequestError
from headrace.flow.preview import FILE, find_matrix, fit, read_matrix, write_matrix
from headrace.nn.autoencoder import LatentStatistics, patchify
from headrace.pipeline import Step


def blocks(width: int, height: int) -> Image.Image:
    """A picture of eight large blocks in strong colours."""
    coarse = np.random.default_rng(5).choice([0, 85, 170, 255], (2, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def test_a_matrix_that_was_there_is_found_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 32) * 0.02, torch.full((3,), 0.5)
    latents = torch.randn(4, 32, 6, 10)
    pictures = torch.einsum("dc,bchw->bdhw", weight, latents) + bias.view(1, 3, 1, 1)
    statistics = LatentStatistics(128, 1e-4)
    statistics.running_mean.normal_()
    statistics.running_var.uniform_(0.5, 2)
    matrix = fit(latents, pictures, statistics)
    assert torch.allclose(matrix.weight, weight, atol=1e-5)
    assert torch.allclose(matrix.bias, bias, atol=1e-5)
    write_matrix(matrix, tmp_path / FILE)
    again = read_matrix(tmp_path / FILE, 128)
    shown = np.asarray(again.picture(statistics.normalise(patchify(latents[:1]))))
    expected = (pictures[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy()
    assert shown.shape == (6, 10, 3)
    assert np.abs(shown - expected).max() <= 1
    with pytest.raises(RequestError, match="another autoencoder"):
        read_matrix(tmp_path / FILE, 64)
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="not a safetensors"):
        read_matrix(tmp_path / FILE, 128)


def test_sprites_steps_are_shown_by_its_own_matrix() -> None:
    """Made again with `headrace train preview` when its autoencoder changes."""
    assert find_matrix(open_checkpoint("sprite").autoencoder.files[0]) is not None
    steps: list[Step] = []
    sketches: list[Image.Image] = []

    def look(step: Step) -> None:
        steps.append(step)
        sketches.append(step.sketch(0))

    made = headrace.load("sprite", device="cpu").generate("a red apple on a blue background", seed=1, on_step=look)
    small = made.image.resize((16, 16), Image.Resampling.BOX)
    assert [sketch.size for sketch in sketches] == [(16, 16)] * 8
    error = np.square(np.asarray(sketches[-1], np.float32) - np.asarray(small, np.float32)).mean()
    assert 10 * np.log10(255**2 / error) > 20


def test_without_a_matrix_the_sketch_is_the_preview(tiny_model: Any) -> None:
    seen: list[bool] = []
    pipeline = headrace.load(tiny_model("klein"), device="cpu")
    pipeline.generate(
        "a cat", size="32x32", steps=1, seed=1,
        on_step=lambda step: seen.append(step.sketch(0).tobytes() == step.preview(0).tobytes()),
    )  # fmt: skip
    assert seen == [True]


@pytest.mark.parametrize(
    ("environment", "attributes", "draw"),
    [
        ({"TERM": "xterm-kitty"}, "", draw_kitty),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "", draw_kitty),
        ({"KONSOLE_VERSION": "230400"}, "", draw_kitty),
        ({"TERM_PROGRAM": "iTerm.app"}, "", draw_iterm2),
        ({"TERM_PROGRAM": "WezTerm"}, "\x1b[?62;4;22c", draw_iterm2),
        ({"TERM": "foot"}, "\x1b[?62;4;22c", draw_sixel),
        ({"TERM": "xterm"}, "\x1b[?64;14;22c", draw_half_blocks),
        ({"TERM": "xterm"}, "", draw_half_blocks),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, "", draw_half_blocks),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "TERM_PROGRAM": "iTerm.app"}, "", draw_half_blocks),
    ],
)
def test_each_terminal_gets_what_it_can_show(environment: dict[str, str], attributes: str, draw: object) -> None:
    assert choose_protocol(environment, attributes) is draw


def test_kitty_gets_the_png_in_chunks() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8))
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", draw_kitty(picture, 20, 10))
    assert len(commands) > 2
    assert all(len(data) <= 4096 for _, data in commands)
    assert commands[0][0].startswith("a=T,f=100,")
    assert "c=20,r=10" in commands[0][0]
    assert [keys[-1] for keys, _ in commands] == ["1"] * (len(commands) - 1) + ["0"]
    data = base64.standard_b64decode("".join(data for _, data in commands))
    assert Image.open(io.BytesIO(data)).tobytes() == picture.tobytes()


def test_iterm2_gets_the_png() -> None:
    match = re.fullmatch(r"\x1b\]1337;File=([^:]*):(.*)\x07", draw_iterm2(blocks(40, 20), 20, 10))
    assert match is not None
    data = base64.standard_b64decode(match[2])
    assert f"size={len(data)};width=20;height=10" in match[1]
    assert Image.open(io.BytesIO(data)).tobytes() == blocks(40, 20).tobytes()


def sixels(text: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A reader of what VT340 knows of sixels: raster attributes, palette, bands."""
    match = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)((?:#\d+;2;\d+;\d+;\d+)*)(.*)\x1b\\', text, re.DOTALL)
    assert match is not None
    width, height = int(match[1]), int(match[2])
    palette = {
        int(color): tuple(round(int(part) * 2.55) for part in parts.split(";"))
        for color, parts in re.findall(r"#(\d+);2;(\d+;\d+;\d+)", match[3])
    }
    pixels = np.zeros((height + 6, width, 3), np.uint8)
    for band, lines in enumerate(match[4].split("-")[:-1]):
        for line in lines.split("$"):
            color, values = re.fullmatch(r"#(\d+)([?-~]*)", line).groups()  # type: ignore[union-attr]
            assert len(values) == width
            for column, value in enumerate(values):
                for bit in range(6):
                    if ord(value) - 63 & 1 << bit:
                        pixels[6 * band + bit, column] = palette[int(color)]
    assert not pixels[height:].any()
    return pixels[:height]


def test_sixels_are_the_picture() -> None:
    shown = sixels(draw_sixel(blocks(40, 20), 4, 1))
    assert shown.shape == (20, 40, 3)
    assert np.abs(shown.astype(int) - np.asarray(blocks(40, 20))).max() <= 3


def test_half_blocks_are_the_picture() -> None:
    lines = draw_half_blocks(blocks(40, 20), 8, 2).split("\x1b[B\r")
    rows = []
    for line in lines:
        cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line)
        rows += [[[int(part) for part in cell[3 * half : 3 * half + 3]] for cell in cells] for half in (0, 1)]
    assert np.array_equal(rows, np.asarray(blocks(8, 4)))


def test_a_screen_draws_in_one_place() -> None:
    terminal = io.StringIO()
    screen = Screen(terminal, lambda picture, columns, rows: f"<{columns}x{rows}>", (128, 64))
    for number in (1, 2):
        screen.show(blocks(16, 8), f"step {number}")
    frame = "\x1b[13A\r\x1b7<48x12>\x1b8\x1b[12B\r\x1b[K"
    assert terminal.getvalue() == "\n" * 13 + f"{frame}step 1\n{frame}step 2\n"


def test_the_command_shows_its_steps_on_a_terminal(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "headrace", "generate", "a red apple", "--seed", "1", "--steps", "2", "--preview",
        "--device", "cpu", "-o", "a.png",
    ]  # fmt: skip
    environment = {**command_environment(), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end was closed
            pass
        out = process.communicate()[0]
    os.close(ours)
    assert process.returncode == 0
    assert out == b"wrote a.png (seed 1, 128x128)\n"
    assert shown.count("▀".encode()) == 2 * 40 * 20
    assert re.findall(rb"step \d of \d", shown) == [b"step 1 of 2", b"step 2 of 2"]
