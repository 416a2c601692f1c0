"""Measurements of steps: what is compared with what, on a model small enough to take no time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace import catalog
from headrace.bench import blocks, steps, streaming
from headrace.checkpoints.shapes import transformer_shapes
from headrace.errors import RequestError
from headrace.nn.config import TransformerConfig

KLEIN = next(entry for entry in catalog.PUBLISHED if entry.name == "klein-4b")
TINY = replace(
    KLEIN,
    transformer=TransformerConfig(
        context_in_dim=KLEIN.transformer.context_in_dim,
        hidden_size=64,
        num_heads=2,
        depth=1,
        depth_single_blocks=3,
        axes_dim=(8, 8, 8, 8),
        guidance_embed=False,
    ),
)
SIZE = (64, 48)


def test_a_number_of_blocks_leaves_everything_else_as_published() -> None:
    assert blocks.reduced(KLEIN, None) == KLEIN
    few = blocks.reduced(KLEIN, (1, 4))
    assert (few.transformer.depth, few.transformer.depth_single_blocks) == (1, 4)
    assert replace(few.transformer, depth=5, depth_single_blocks=20) == KLEIN.transformer


def test_works_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []

    def work(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = blocks.in_turns({"a": lambda: work("a"), "b": lambda: work("b")}, rounds=2)

    assert calls == ["a", "b"] * 3
    assert figures == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_steps_are_compared_with_products_and_with_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Figures that are known: every product does 1 operation a second, every step takes 2 seconds, diffusers' takes 3.
    monkeypatch.setattr(steps, "sequence_product_rate", lambda *_: 1.0)
    took = iter([2.0, 2.0, 3.0] * 3)
    monkeypatch.setattr(steps, "seconds_of", lambda step: (step(), next(took))[1])

    rows = list(steps.compare_steps(TINY, tmp_path / "model", [SIZE], ["bf16", "int8"], rounds=2))

    assert [(row.what, row.seconds, row.speedup) for row in rows] == [
        ("headrace bf16", 2.0, 1.5),
        ("headrace int8", 2.0, 1.5),
        ("diffusers bf16", 3.0, 1.0),
    ]
    tokens, size, mlp, count = 512 + 12, 64, 192, 4
    of_blocks = 2 * tokens * (4 * size * size + 3 * size * mlp) * count + 4 * size * tokens * tokens * count
    outside = 2 * size * (512 * TINY.transformer.context_in_dim + 2 * 12 * TINY.transformer.in_channels)
    assert rows[0].share == pytest.approx((of_blocks + outside) / 2)


def test_both_implementations_take_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[torch.Tensor] = []

    def keep(step: blocks.Step) -> float:
        result = step()
        results.append(result[0] if isinstance(result, tuple) else result)
        return 1.0

    monkeypatch.setattr(steps, "seconds_of", keep)
    monkeypatch.setattr(steps, "random_inputs", lambda *given: _seeded(*given))

    list(steps.compare_steps(TINY, tmp_path / "model", [SIZE], ["bf16"], rounds=1))

    ours, theirs = (result.float().squeeze() for result in results[:2])
    assert (ours - theirs).norm() / theirs.norm() < 0.02


def _seeded(*given: object) -> blocks.Inputs:
    torch.manual_seed(0)
    return blocks.random_inputs(*given)  # type: ignore[arg-type]


def test_streamed_steps_are_compared_with_resident_ones(tmp_path: Path) -> None:
    measured = streaming.measure_streaming(TINY, tmp_path / "model", "bf16", [SIZE, (32, 32)], None, rounds=1)

    in_blocks = (shape for name, shape in transformer_shapes(TINY.transformer).items() if "_blocks." in name)
    assert measured.reading.bytes == 2 * sum(map(math.prod, in_blocks))
    assert measured.reading.raw > 0
    assert measured.reading.share > 0
    assert [(row.width, row.height) for row in measured.rows] == [SIZE, (32, 32)]
    for row in measured.rows:
        assert row.over_resident is not None
        assert row.over_resident > 0
        assert row.over_floor == pytest.approx(row.seconds / max(row.reading, row.arithmetic), rel=0.01)


def test_under_a_budget_blocks_stay_and_the_peak_is_told(tmp_path: Path) -> None:
    measured = streaming.measure_streaming(TINY, tmp_path / "model", "fp8", [SIZE], 20 * 10**9, rounds=1)

    assert measured.reading.bytes == 0  # all of them fit
    assert measured.rows[0].over_resident is None
    assert 10**8 < measured.rows[0].peak < 20 * 10**9


def test_a_budget_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--memory allows 0.01 GB, and this takes"):
        streaming.measure_streaming(TINY, tmp_path / "model", "bf16", [SIZE], 10**7, rounds=1)
