"""What a watermark costs, and what it outlives."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from headrace.pipeline import Pipeline
from headrace.provenance import payload
from headrace.provenance.watermark import embed_watermark, read_watermark, read_word
from headrace.world import layout
from headrace.world.draw import picture

PROMPTS = (
    "a cat left of a dog on a green background",
    "a red apple above a pear on a blue background",
    "a large rocket on a purple background",
    "a car right of a tree on a yellow background",
)

Harm = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Cost:
    """Of marking so many pictures of a kind: PSNR in dB, the mean and the lowest; seconds to embed, mean and longest.

    searching: seconds to look for a watermark where there is none. false: how many pictures without one, whole and
    harmed, were thought to have one, of `searched`.
    """

    kind: str
    side: int
    pictures: int
    psnr: float
    lowest_psnr: float
    seconds: float
    longest: float
    searching: float
    false: int
    searched: int


@dataclass(frozen=True)
class Survival:
    """After a harm: the share of the 64 bits that are right at the right scale, and how many identifiers were found."""

    kind: str
    side: int
    harm: str
    accuracy: float
    found: int
    pictures: int


def measure_marks(kinds: Mapping[str, Sequence[Image.Image]], side: int) -> Iterator[Cost | Survival]:
    """Each kind's cost, then what its marks outlive; kinds: square RGB pictures with sides of `side` pixels."""
    for kind, images in kinds.items():
        yield from _measure(kind, images, side)


def make_pictures(
    photographs: Sequence[Image.Image], pipeline: Pipeline, count: int, side: int
) -> dict[str, list[Image.Image]]:
    """Pictures of three kinds, `count` of each that is not given: photographs, drawn scenes, and the pipeline's own."""
    size = side, side
    made = [pipeline.generate(prompt, seed=seed).image for seed, prompt in enumerate(PROMPTS[:count])]
    kinds = {
        "photographs": [ImageOps.fit(image, size, Image.Resampling.BICUBIC) for image in photographs],
        "drawn scenes": [picture(layout.scene(seed, side, side)) for seed in range(count)],
        pipeline.checkpoint.name: [image.resize(size, Image.Resampling.BICUBIC) for image in made],
    }
    return {kind: images for kind, images in kinds.items() if images}


def _measure(kind: str, images: Sequence[Image.Image], side: int) -> Iterator[Cost | Survival]:
    harms = {name: (harm, scale) for name, harm, scale in _harms()}
    decibels, seconds, searching = [], [], []
    false = searched = 0
    right: dict[str, list[float]] = {name: [] for name in harms}
    found: dict[str, int] = dict.fromkeys(harms, 0)
    for number, image in enumerate(images):
        identifier = (0x9E37 * (number + 1)) % 2**payload.IDENTIFIER_BITS
        bits = payload.encode(identifier)
        started = time.perf_counter()
        marked = embed_watermark(image, identifier)
        seconds.append(time.perf_counter() - started)
        error = np.asarray(marked, dtype=np.float64) - np.asarray(image)
        decibels.append(float(10 * np.log10(255**2 / (error**2).mean())))
        for plain in (image, _compressed(image, "JPEG", 50)):
            started = time.perf_counter()
            false += read_watermark(plain) is not None
            searching.append(time.perf_counter() - started)
            searched += 1
        for name, (harm, scale) in harms.items():
            harmed = harm(marked)
            right[name].append(float((read_word(harmed, scale) == bits).mean()))
            seen = read_watermark(harmed)
            found[name] += seen is not None and seen.identifier == identifier
    yield Cost(
        kind,
        side,
        len(images),
        float(np.mean(decibels)),
        min(decibels),
        float(np.mean(seconds)),
        max(seconds),
        float(np.mean(searching)),
        false,
        searched,
    )
    for name in harms:
        yield Survival(kind, side, name, float(np.mean(right[name])), found[name], len(images))


def _harms() -> Iterator[tuple[str, Harm, float]]:
    """What is done to pictures, and at which scale the detector should then look."""
    yield "none", lambda image: image, 1.0
    for quality in (90, 75, 50):
        yield f"JPEG {quality}", partial(_compressed, file_format="JPEG", quality=quality), 1.0
    yield "WebP 80", partial(_compressed, file_format="WEBP", quality=80), 1.0
    yield "half size", partial(_smaller, factor=0.5), 1.0
    for percent in (90, 75, 50):
        yield f"crop to {percent} %", partial(_cropped, area=percent / 100), (percent / 100) ** 0.5
    yield "noise 5", _noisy, 1.0
    yield "blur 1", lambda image: image.filter(ImageFilter.GaussianBlur(1)), 1.0
    yield "brightness 1.2", lambda image: ImageEnhance.Brightness(image).enhance(1.2), 1.0
    yield "chain", lambda image: _compressed(_smaller(_compressed(image, "JPEG", 75), 0.75), "WEBP", 80), 1.0


def _compressed(image: Image.Image, file_format: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=quality)
    return Image.open(buffer).convert("RGB")


def _smaller(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, area: float) -> Image.Image:
    """So much of the area, from a place off the centre."""
    width, height = (round(side * area**0.5) for side in image.size)
    left, top = (image.width - width) // 3, (image.height - height) * 2 // 3
    return image.crop((left, top, left + width, top + height))


def _noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 5, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))
