"""All checks of this machine, in the order they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from headrace.checkpoints import Checkpoint, open_checkpoint
from headrace.device import DTYPES, PRECISIONS
from headrace.doctor.finding import Check, Subject
from headrace.doctor.links import disk_findings, gpu_links, memory_findings, product_findings
from headrace.doctor.machine import devices, gpu_facts, machine_facts
from headrace.doctor.model import write_model
from headrace.doctor.picture import picture_findings
from headrace.doctor.precisions import AutoencoderChecks, BlockChecks
from headrace.doctor.streaming import streaming_findings
from headrace.errors import HeadraceError, RequestError


@contextmanager
def checks(folder: Path | None = None) -> Iterator[list[Check]]:
    """The checks, to be run within the block; what they write is deleted after it.

    folder: on the disk that models are read from. Raises RequestError for one that does not exist.
    """
    folder = default_folder() if folder is None else folder
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; name one on the disk that models are read from.")
    with ExitStack() as temporary:

        @cache
        def model() -> Checkpoint:
            """Written when the first check wants it, so that a folder that takes no files is that check's finding."""
            try:
                place = temporary.enter_context(TemporaryDirectory(prefix="headrace-doctor-", dir=folder))
            except OSError as error:
                raise HeadraceError(f"{folder} cannot be written to: {error.strerror or error}.") from error
            return write_model(Path(place) / "model")

        yield list(_checks(folder, model, devices()))


def default_folder() -> Path:
    """The hub's cache, or the folder of temporary files where that is not there yet or takes no files."""
    cache_folder = Path(HF_HUB_CACHE)
    return cache_folder if cache_folder.is_dir() and os.access(cache_folder, os.W_OK) else Path(gettempdir())


def _checks(folder: Path, model: Callable[[], Checkpoint], found: Sequence[torch.device]) -> Iterator[Check]:
    yield Check(Subject("machine"), partial(machine_facts, folder))
    for device in found[1:]:
        yield Check(Subject("processor", str(device)), partial(gpu_facts, device))
    blocks, autoencoder = BlockChecks(model), AutoencoderChecks(partial(open_checkpoint, "sprite"))
    for device in found:
        name = str(device)
        for precision in PRECISIONS:
            yield Check(Subject("blocks", name, precision), partial(blocks.run, precision, device))
        for precision in DTYPES:
            yield Check(Subject("autoencoder", name, precision), partial(autoencoder.run, precision, device))
        for precision in PRECISIONS:
            yield Check(Subject("sprite's picture", name, precision), partial(picture_findings, precision, device))
    for device in found:
        yield Check(Subject("streaming", str(device)), partial(streaming_findings, model, device))
    yield Check(Subject("reading from disk"), partial(disk_findings, folder))
    yield Check(Subject("copying in memory"), memory_findings)
    for device in found:
        if device.type == "cuda":
            yield Check(Subject("pinned memory", str(device)), partial(gpu_links, device))
        for precision in PRECISIONS:
            yield Check(Subject("products", str(device), precision), partial(product_findings, precision, device))
