"""A call's arguments to requests: one checked recipe a picture, with its references at the size the model sees."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

from PIL import Image

from headrace import __version__
from headrace.checkpoints import Checkpoint, digest
from headrace.editing import Edit, PictureSource, pixel_hash
from headrace.errors import RequestError
from headrace.flow.conventions import Convention
from headrace.flow.references import prepare_references
from headrace.pictures import open_picture
from headrace.recipe import (
    LoraRecord,
    Recipe,
    ReferenceRecord,
    check_count,
    check_guidance,
    check_pair,
    check_prompt,
    check_reference_size,
    check_seed,
    check_size,
    check_steps,
    draw_seed,
    parse_size,
)
from headrace.structured import doubts

CacheKey = tuple[tuple[LoraRecord, ...], tuple[str, ...]]
References = PictureSource | Sequence[PictureSource] | Sequence[Sequence[PictureSource]]

# As many pictures run in one forward as fit in this many tokens, text, picture and references together. A fixed number,
# so that what runs together never depends on the memory that happens to be free.
MAX_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class Request:
    """One picture to make. position: its place among the call's pictures; references: RGB, sides multiples of 16.

    canvas: what the model makes, in pixels, sides multiples of 16: the picture itself, but for an edit's.
    """

    position: int
    recipe: Recipe
    references: tuple[Image.Image, ...]
    canvas: tuple[int, int]
    edit: Edit | None = None

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs; a guidance of 1 or less is taken as none."""
        return self.recipe.variant == "klein-base" and self.recipe.guidance > 1

    @property
    def reference_key(self) -> tuple[str, ...]:
        """The hashes of the references in order, which identify everything computed from them alone."""
        return tuple(record.sha256 for record in self.recipe.references)

    @property
    def cache_key(self) -> CacheKey:
        """What identifies the references' keys and values in the transformer, which LoRAs change."""
        return self.recipe.loras, self.reference_key


def make_requests(
    checkpoint: Checkpoint,
    precision: str,
    text_precision: str,
    convention: Convention,
    reference_limit: int,
    prompt: str | Sequence[str],
    count: int,
    seed: int | Sequence[int] | None,
    *,
    references: References,
    loras: Sequence[LoraRecord],
    size: str | tuple[int, int] | None,
    steps: int | None,
    guidance: float | None,
    edit: Edit | None = None,
    fit: str = "crop",
    reference_size: str = "auto",
) -> list[Request]:
    """The pictures of a call: prompts in order, each `count` times. Raises RequestError where something cannot be.

    The arguments are those of `Pipeline.stream`; `checkpoint` supplies what is not given. loras: as they were opened.
    edit: of the source, for all prompts.
    """
    prompts = [check_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    if not prompts:
        raise RequestError("There is no prompt; give at least one.")
    seeds = _seeds(seed, check_count(len(prompts) * check_count(count)))
    multiple = checkpoint.autoencoder_config.token_size
    lists = _per_prompt(references, len(prompts), reference_limit)
    full = check_reference_size(reference_size, max(map(len, lists))) == "full"
    per_prompt = [
        tuple(prepare_references([open_picture(entry) for entry in entries], convention, multiple, fit, full))
        for entries in lists
    ]
    for text, images in zip(prompts, per_prompt, strict=True):
        for doubt in doubts(text, len(images)):
            warnings.warn(doubt, stacklevel=1)  # the command shows warnings that come from here
    steps = check_steps(checkpoint.steps if steps is None else steps)
    guidance = _guidance(checkpoint, guidance)
    model_hash = digest(checkpoint)
    requests: list[Request] = []
    for text, images in zip(prompts, per_prompt, strict=True):
        width, height = edit.size if edit else _size(size, images, checkpoint)
        canvas = edit.canvas.size if edit else (width, height)
        records = tuple(_record(image) for image in images)
        for _ in range(count):
            recipe = Recipe(
                model=checkpoint.name,
                model_hash=model_hash,
                variant=checkpoint.variant,
                precision=precision,
                prompt=text,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                seed=seeds[len(requests)],
                convention=convention.name,
                text_length=checkpoint.text.length,
                version=__version__,
                references=records,
                text_precision="" if text_precision == precision else text_precision,
                loras=tuple(loras),
                edit=edit.record if edit else None,
                fit=fit,
                reference_size=reference_size,
            )
            requests.append(Request(len(requests), recipe, images, canvas, edit))
    return requests


def batches(requests: list[Request], token_size: int, limit: int | None = None) -> Iterator[list[Request]]:
    """Requests whose sequences have the same layout together, as many as one forward takes, in order of first use.

    limit: at most so many, where a batch does not change its pictures' bits.
    """
    groups: dict[tuple[tuple[int, int], ...], list[Request]] = {}
    for request in requests:
        recipe = request.recipe
        layout = (request.canvas, *((record.width, record.height) for record in recipe.references))
        groups.setdefault(layout, []).append(request)
    for layout, group in groups.items():
        tokens = group[0].recipe.text_length + sum(width * height for width, height in layout) // token_size**2
        most = min(max(1, MAX_BATCH_TOKENS // tokens), limit or len(group))
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _seeds(seed: int | Sequence[int] | None, total: int) -> list[int]:
    if not isinstance(seed, Sequence):
        first = draw_seed() if seed is None else check_seed(seed)
        check_seed(first + total - 1)
        return list(range(first, first + total))
    if len(seed) != total:
        raise RequestError(f"{len(seed)} seeds were given for {total} pictures; give one seed, or one for each.")
    return [check_seed(one) for one in seed]


def _per_prompt(references: References, prompts: int, limit: int) -> list[Sequence[PictureSource]]:
    """One list of references a prompt, from one for all or one for each."""
    if isinstance(references, str | PathLike | Image.Image):
        references = [references]
    nested: list[Sequence[PictureSource]] = []
    shared: list[PictureSource] = []
    for entry in references:
        if isinstance(entry, str | PathLike | Image.Image):
            shared.append(entry)
        else:
            nested.append(entry)
    if nested and (shared or len(nested) != prompts):
        raise RequestError(
            f"References must be one list for all prompts or {prompts} lists, one for each; "
            f"there are {len(nested)} lists and {len(shared)} single pictures."
        )
    lists = nested or [shared] * prompts
    longest = max(len(entries) for entries in lists)
    if longest > limit:
        raise RequestError(f"{longest} references were given; this model takes at most {limit}.")
    return lists


def _size(
    size: str | tuple[int, int] | None, images: tuple[Image.Image, ...], checkpoint: Checkpoint
) -> tuple[int, int]:
    if size is None:
        width, height = images[0].size if images else checkpoint.default_size
    else:
        width, height = parse_size(size) if isinstance(size, str) else check_pair(size)
    return check_size(width, height, multiple=checkpoint.autoencoder_config.token_size)


def _guidance(checkpoint: Checkpoint, guidance: float | None) -> float:
    """The guidance as used: a distilled model has none, which is written as 1."""
    given = check_guidance(checkpoint.guidance if guidance is None else guidance)
    return 1.0 if checkpoint.variant in ("klein", "klein-kv") else given


def _record(image: Image.Image) -> ReferenceRecord:
    return ReferenceRecord(pixel_hash(image), image.width, image.height)
