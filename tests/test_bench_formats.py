"""`headrace bench formats`: files in every format that load, each taking little more memory than it has bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.bench.formats import FORMATS, compare_formats, write_weights
from headrace.checkpoints.components import transformer_component
from headrace.checkpoints.shapes import transformer_shapes
from headrace.checkpoints.weights import read_weights
from headrace.nn.config import TransformerConfig
from headrace.quant.formats import block_linears

CONFIG = TransformerConfig(
    context_in_dim=256, hidden_size=256, num_heads=2, depth=1, depth_single_blocks=1, guidance_embed=False
)


def test_the_files_are_what_they_say(tmp_path: Path) -> None:
    shapes = transformer_shapes(CONFIG)
    for name, form in FORMATS.items():
        folder = tmp_path / name
        folder.mkdir()
        file = folder / ("x.gguf" if name.startswith("Q") else "x.safetensors")
        write_weights(file, shapes, form)
        component, config = transformer_component(read_weights(file))
        assert config == CONFIG
        assert component.formats == ({} if form is None else dict.fromkeys(block_linears(shapes), form))


def test_loading_takes_little_more_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: FORMATS[name] for name in ("nvfp4", "Q4_K")}
    monkeypatch.setattr("headrace.bench.formats.FORMATS", chosen)
    rows = list(compare_formats(CONFIG, 1, 40, tmp_path))
    assert [row.name for row in rows] == list(chosen)
    for row in rows:
        assert row.weights <= row.file <= row.peak
        assert row.peak <= row.file + 60e6
    assert list(tmp_path.iterdir()) == []
