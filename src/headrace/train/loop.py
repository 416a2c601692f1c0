"""The training loop that both networks share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.train import optimizers, run, shards


@dataclass(frozen=True)
class Loop:
    """How long, on how much and how fast a network learns.

    Of the ``steps``, the first ``warm_up`` raise both learning rates and the last ``decay`` lower them to nothing.
    ``batch`` samples a step are cut into ``shards``. ``average_decay`` is how much of the moving average of the weights
    stays at each step. ``save_every`` and ``log_every`` are in steps.
    """

    steps: int
    batch: int
    warm_up: int
    decay: int
    muon_rate: float
    adam_rate: float
    average_decay: float
    save_every: int
    log_every: int
    shards: int = 2
    seed: int = 1


def learn(
    network: nn.Module,
    losses: Callable[[int], list[shards.Loss]],
    loop: Loop,
    folder: Path,
    *,
    adam_only: tuple[str, ...],
    settings: Mapping[str, object],
    resume: bool,
    report: Callable[[str], None],
    on_save: Callable[[int, Mapping[str, Tensor]], None] = lambda step, average: None,
) -> None:
    """Trains ``network`` until ``loop.steps`` and leaves the state in ``folder``; a resumed run ends in the same bits.

    Parameters that need no gradient stay as they are. losses: the shards of a step, as a function of nothing but the
    step. adam_only: see `optimizers.build`. settings: the whole configuration of the run, with which a resumed run must
    agree. on_save: called after each save with the number of steps done and the average. Raises RequestError when asked
    to resume where there is nothing, or something else.
    """
    learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimizer = optimizers.build(learned.items(), adam_only)
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = run.load_state(folder, settings, network, average, optimizer.all()) if resume else 0
    parameters = list(learned.values())
    started = time.monotonic()
    recent: list[dict[str, float]] = []
    with ThreadPoolExecutor(loop.shards) as pool, ThreadPoolExecutor(1) as drawing:
        # The next step's samples are drawn beside this one's products, which need no interpreter.
        ahead = drawing.submit(losses, first)
        for step in range(first, loop.steps):
            current, ahead = ahead.result(), drawing.submit(losses, step + 1)
            recent.append(shards.backward(pool, current, parameters))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step(pool, schedule(loop, step), muon_rate=loop.muon_rate, adam_rate=loop.adam_rate)
            run.update_average(average, network, loop.average_decay, step)
            done = step + 1
            if done % loop.log_every == 0:
                means = shards.mean(recent)
                recent.clear()
                means["samples_per_second"] = (done - first) * loop.batch / (time.monotonic() - started)
                run.append_log(folder, done, means)
                known = [f"{name} {value:.4g}" for name, value in means.items() if not math.isnan(value)]
                report(f"step {done}: {', '.join(known)}")
            if done % loop.save_every == 0 or done == loop.steps:
                run.save_state(folder, done, settings, network, average, optimizer.all())
                on_save(done, average)


def schedule(loop: Loop, step: int) -> float:
    """Share of the peak rates at a step: a linear warm-up, a plateau, and a linear fall to nothing."""
    return min(1.0, (step + 1) / loop.warm_up) * min(1.0, max(0.0, (loop.steps - step) / loop.decay))
