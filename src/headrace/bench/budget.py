"""Runs of a model within budgets: the peak that was foreseen beside the measured one, and whether pictures agree."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from headrace.checkpoints import open_checkpoint
from headrace.device import choose_precision, choose_text_precision, multiplies_bf16
from headrace.errors import HeadraceError, RequestError
from headrace.flow.conventions import find_convention
from headrace.flow.references import prepare_references
from headrace.memory.plan import Budget, Plan, Work, describe_checkpoint, plan_work, process_bytes
from headrace.memory.sizes import MAX_BYTES
from headrace.recipe import parse_size

PROMPT = "a red cube left of a blue ball"
NOISE = 64.0


@dataclass(frozen=True)
class BudgetRow:
    """One run. measured_bytes, seconds: of the whole process, None where the budget was refused.

    same_pictures: whether they have the bits of the first run's, None for that one and where there are none.
    """

    memory_bytes: int
    minimum_bytes: int
    predicted_bytes: int
    measured_bytes: int | None
    resident_blocks: int
    same_pictures: bool | None
    seconds: float | None


def measure_budgets(
    model: str,
    memories: Sequence[int] = (),
    *,
    size: str = "512x512",
    steps: int = 2,
    references: Sequence[str] = (),
    count: int = 1,
    precision: str = "auto",
) -> Iterator[BudgetRow]:
    """Make the same pictures within each budget, in bytes, on the CPU, each time in a process of its own.

    memories: by default one in which everything stays, one half way from there to the smallest, the smallest, and one
    a tenth below it, which has to be refused. references: sizes, as "WxH", of pictures of noise.
    Raises RequestError for what cannot be run, HeadraceError where a run fails.
    """
    pictures = [Image.effect_noise(parse_size(text), NOISE).convert("RGB") for text in references]
    checkpoint = open_checkpoint(model)
    device = torch.device("cpu")
    chosen = choose_precision(precision, checkpoint.precision, device)
    text_precision = choose_text_precision(precision, checkpoint.text_precision, chosen, device)
    known = describe_checkpoint(checkpoint)
    guided = checkpoint.variant == "klein-base" and checkpoint.guidance > 1
    used = prepare_references(pictures, find_convention("diffusers"), checkpoint.autoencoder_config.token_size)
    work = Work(*parse_size(size), tuple(picture.size for picture in used), count, guided=guided)

    def planned(memory: int) -> Plan:
        budget = Budget(memory, process_bytes(work))
        return plan_work(known, [work], budget, chosen, text_precision, multiplies_bf16(device))

    whole = planned(MAX_BYTES)
    least = whole.minimum_bytes
    middle = (whole.peak_bytes + least) // 2
    first: list[bytes] | None = None
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--size", size, "--steps", str(steps), "--precision", precision, "--count", str(count)]
        for number, picture in enumerate(pictures):
            picture.save(Path(folder) / f"reference-{number}.png")
            arguments += ["--ref", f"{folder}/reference-{number}.png"]
        for memory in memories or (whole.peak_bytes, middle, least, least * 9 // 10):
            plan = planned(memory)
            run = _run(model, memory, arguments, Path(folder) / "picture.png", plan.fits)
            yield BudgetRow(
                memory_bytes=memory,
                minimum_bytes=least,
                predicted_bytes=plan.peak_bytes,
                measured_bytes=None if run is None else run.peak_bytes,
                resident_blocks=len(plan.resident_blocks),
                same_pictures=None if first is None or run is None else run.pictures == first,
                seconds=None if run is None else run.seconds,
            )
            if first is None and run is not None:
                first = run.pictures


@dataclass(frozen=True)
class _Run:
    pictures: list[bytes]
    peak_bytes: int
    seconds: float


def _run(model: str, memory: int, arguments: Sequence[str], output: Path, fits: bool) -> _Run | None:
    """What `headrace generate` makes, or None where it refuses a budget that does not fit."""
    command = [sys.executable, "-m", "headrace", "generate", PROMPT, "--model", model, "--seed", "1", "--device", "cpu"]
    command += ["--memory", f"{memory}B", "-o", str(output), "--json", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 2 and not fits:
        return None
    if result.returncode != 0:
        sentence = result.stderr.strip().removeprefix("headrace: ")
        raise (RequestError if result.returncode == 2 else HeadraceError)(sentence)
    report = json.loads(result.stdout)
    pictures = [Path(image["path"]).read_bytes() for image in report["images"]]
    return _Run(pictures, report["peak_memory_bytes"], report["timings"]["generate"])
