"""Scores of a network while it learns: one row of ``scores.csv`` each time, as `headrace eval` would find them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from headrace.catalog import TextSettings
from headrace.evals.pictures import RoundTrip, from_pipeline
from headrace.evals.score import scores
from headrace.evals.suites import SUITES
from headrace.nn.autoencoder import Autoencoder
from headrace.pipeline import load
from headrace.train import run
from headrace.train.export import ModelSettings, export

if TYPE_CHECKING:
    from headrace.train.transformer import Network

SEED = 1_000_000
"""Of the first sample: others than those that `headrace eval` asks for, by which a finished model is judged."""


def append_scores(
    folder: Path,
    step: int,
    network: Network,
    autoencoder: Autoencoder,
    tokenizer: Tokenizer,
    text: TextSettings,
    model: ModelSettings,
    count: int,
) -> None:
    """Scores the network on ``count`` pictures of each suite, made from the files that `export` writes of it."""
    width, height = model.default_size
    with TemporaryDirectory(dir=folder) as files:
        export(Path(files), network, autoencoder, tokenizer, text, model)
        pipeline = load(files, device="cpu")
        found = scores(
            from_pipeline(pipeline, seed=SEED),
            SUITES,
            count,
            width=width,
            height=height,
            seed=SEED,
            round_trip=RoundTrip(pipeline.checkpoint).edited,
        )
        pipeline.release()
    run.append_log(folder, step, {f"{score.suite} {score.measure}": score.share for score in found}, run.SCORES)
