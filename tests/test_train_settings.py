"""Settings of a training: what the files in the package say, and what is said of files that say something else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from headrace.errors import RequestError
from headrace.train.autoencoder import AutoencoderTraining
from headrace.train.distill import Distillation
from headrace.train.settings import MAX_BYTES, SPRITE, from_table, read_settings
from headrace.train.transformer import TransformerTraining


@dataclass(frozen=True)
class Inner:
    rate: float
    side: Literal["left", "right"]
    pair: tuple[int, float]


@dataclass(frozen=True)
class Outer:
    count: int
    sizes: tuple[tuple[int, int], ...]
    inner: Inner
    name: str | None = None


GOOD = """
count = 3
sizes = [[1, 2], [3, 4]]
[inner]
rate = 1
side = "left"
pair = [1, 0.5]
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_files_become_dataclasses(tmp_path: Path) -> None:
    expected = Outer(3, ((1, 2), (3, 4)), Inner(1.0, "left", (1, 0.5)))
    read = read_settings(written(tmp_path, GOOD), Outer)
    assert read == expected
    assert isinstance(read.inner.rate, float)
    named = read_settings(written(tmp_path, 'name = "x"\n' + GOOD), Outer)
    assert named.name == "x"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count = 3", "", "count is missing"),
        ("count = 3", "count = 3\ncuont = 4", "there is no setting cuont; there are count, sizes, inner, name"),
        ("count = 3", "count = true", "count cannot be True"),
        ("count = 3", "count = 3.0", r"count cannot be 3\.0"),
        ("[3, 4]", "[3, 4, 5]", r"sizes cannot be \[3, 4, 5\]"),
        ("rate = 1\n", "", r"inner\.rate is missing"),
        ('"left"', '"up"', r"inner\.side cannot be 'up'"),
        ("[inner]", "[[inner]]", "inner cannot be"),
        ("count = 3", "count = ", "is not TOML"),
        ("count = 3", "count = 3 #" + "x" * MAX_BYTES, "is larger than"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(RequestError, match=said):
        read_settings(file, Outer)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_settings(tmp_path, Outer)


def test_none_stands_for_what_may_be_left_out(tmp_path: Path) -> None:
    table = {"count": 1, "sizes": [], "inner": {"rate": 1.0, "side": "left", "pair": [1, 2]}, "name": None}
    assert from_table(tmp_path, Outer, table).name is None


def test_sprite_has_settings() -> None:
    assert read_settings(SPRITE / "autoencoder.toml", AutoencoderTraining).network.token_size == 16
    settings = read_settings(SPRITE / "transformer.toml", TransformerTraining)
    width = settings.language_model.hidden_size * len(settings.text.layers)
    assert settings.transformer.context_in_dim == width
    assert read_settings(SPRITE / "distillation.toml", Distillation).steps == 4
    assert all(side % 16 == 0 for size in settings.sizes for side in size)
