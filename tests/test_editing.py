"""Editing a source picture: what must stay stays, what must be made is made, on the published schedule's own times."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import headrace
from headrace.editing import make_edit
from headrace.errors import Cancelled, RequestError
from headrace.flow.conventions import find_convention
from headrace.flow.references import image_to_tensor, mask_to_tokens, prepare_references, tensor_to_image
from headrace.pictures import open_mask
from headrace.pipeline import Pipeline
from headrace.recipe import Recipe, taken_steps
from reference_pipelines import Kind, random_widths, save_pipeline

KINDS: list[Kind] = ["dev", "klein", "klein-base", "klein-kv"]
CASES = [*((kind, "diffusers") for kind in KINDS), ("klein", "comfy"), ("klein", "bfl")]
SMALL: dict[str, Any] = {"channels": (8, 8, 16, 16), "norm_groups": 4}


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def mask(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("L", size, 0)
    for box in boxes:
        image.paste(255, box)
    return image


def pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(image, np.int16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        save_pipeline(made[kind], kind, **SMALL)
    return made


@pytest.fixture
def klein(folders: dict[str, Path]) -> Pipeline:
    return headrace.load(folders["klein"], device="cpu")


@pytest.mark.parametrize(("kind", "seed"), [("klein", 1), ("klein-base", 2)])
def test_inpainting_is_that_of_diffusers(kind: Kind, seed: int, tmp_path: Path) -> None:
    """Where both do the same: a mask along the tokens' edges, the source as the first reference, no pasting back."""
    parts = save_pipeline(tmp_path, kind, seed, **random_widths(seed + 10 * KINDS.index(kind)))
    theirs = Flux2KleinInpaintPipeline(**parts.components, is_distilled=kind == "klein")
    theirs.set_progress_bar_config(disable=True)
    ours = headrace.load(tmp_path, precision="fp32", device="cpu")
    draw = random.Random(seed)
    for references, strength in ((0, 1.0), (1, draw.uniform(0.1, 0.9))):
        source = picture(seed, 16 * draw.randint(2, 4), 16 * draw.randint(2, 4))
        masked = mask(source.size, (16, 0, 32, source.height), (0, 0, 16, 16))
        others = [picture(seed + 5, 70, 50)] * references
        request: dict[str, Any] = {"prompt": "two green trees near the red house", "strength": strength}
        steps, guidance = draw.randint(3, 5), draw.choice([1.0, 3.0])
        expected = theirs(
            **request,
            image=source,
            mask_image=masked,
            image_reference=others or None,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        made = ours.generate(
            **request,
            image=source,
            mask=masked,
            feather=0,
            references=[source, *others],
            steps=steps,
            guidance=guidance,
            seed=seed,
        ).image
        inside = np.asarray(masked) > 0
        assert np.abs(pixels(made) - pixels(expected))[inside].max() <= 1
        assert np.array_equal(pixels(made)[~inside], pixels(source)[~inside])


@pytest.mark.parametrize(("kind", "convention"), CASES)
def test_strength_1_is_no_source_at_all_and_0_its_round_trip(
    kind: str, convention: str, folders: dict[str, Path]
) -> None:
    pipeline = headrace.load(folders[kind], device="cpu")
    source = picture(3)
    request: dict[str, Any] = {
        "prompt": "a cat",
        "steps": 3,
        "seed": 5,
        "convention": convention,
        "references": [picture(4)],
    }
    without = pipeline.generate(size=source.size, **request)
    assert pipeline.generate(image=source, strength=1.0, **request).image.tobytes() == without.image.tobytes()

    steps: list[int] = []
    none = pipeline.generate(image=source, strength=0.0, on_step=lambda step: steps.append(step.index), **request)
    diffusers_autoencoder = _autoencoder(folders[kind])
    with torch.no_grad():
        latent = diffusers_autoencoder.encode(image_to_tensor(source)).latent_dist.mode()
        decoded = diffusers_autoencoder.decode(latent).sample
    assert not steps
    assert np.abs(pixels(none.image) - pixels(tensor_to_image(decoded, rounds=convention == "diffusers"))).max() <= 1


def _autoencoder(folder: Path) -> Any:
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2.from_pretrained(folder, subfolder="vae").eval()


@pytest.mark.parametrize("convention", ["diffusers", "comfy"])
def test_between_them_the_last_of_the_published_times_are_walked(klein: Pipeline, convention: str) -> None:
    seen: dict[float, list[float]] = {}
    for strength in (1.0, 0.75, 0.7, 0.26, 0.25, 0.01):
        times = seen.setdefault(strength, [])
        klein.generate(
            "a cat",
            image=picture(3),
            strength=strength,
            steps=4,
            seed=1,
            convention=convention,
            on_step=lambda step, times=times: times.append(step.sigma),
        )
    assert [len(times) for times in seen.values()] == [4, 3, 3, 2, 1, 1]
    assert all(times == seen[1.0][4 - len(times) :] for times in seen.values())


def test_products_that_are_whole_take_no_step_too_many() -> None:
    for steps in range(1, 101):
        for taken in range(steps + 1):
            assert taken_steps(steps, taken / steps) == taken
        for percent in range(101):
            assert taken_steps(steps, percent / 100) == -(-steps * percent // 100)


@pytest.mark.parametrize(("kind", "convention"), CASES)
def test_outside_the_mask_every_bit_is_the_sources(kind: str, convention: str, folders: dict[str, Path]) -> None:
    source = picture(3, 75, 50)
    masked = mask(source.size, (20, 10, 41, 33))
    made = headrace.load(folders[kind], device="cpu").generate(
        "a cat", image=source, mask=masked, feather=0, steps=2, seed=1, convention=convention, references=[source]
    )
    inside = np.asarray(masked) > 0
    assert made.image.size == source.size == (made.recipe.width, made.recipe.height)
    assert np.array_equal(pixels(made.image)[~inside], pixels(source)[~inside])
    assert (pixels(made.image) != pixels(source)).any(axis=2)[inside].mean() > 0.9


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    margins=st.tuples(*[st.integers(0, 40)] * 4).filter(any),
    feather=st.integers(0, 12),
    masks=st.booleans(),
    seed=st.integers(0, 99),
)
def test_whatever_is_made_the_kept_pixels_are_the_sources(
    width: int, height: int, margins: tuple[int, int, int, int], feather: int, masks: bool, seed: int
) -> None:
    source = picture(seed, width, height)
    chance = np.random.default_rng(seed)
    masked = Image.fromarray(((chance.random((height, width)) < 0.5) * np.uint8(255)).astype(np.uint8))
    edit = make_edit(source, masked if masks else None, margins, None, feather, "crop", None, 16)
    assert edit is not None
    assert edit.mask is not None
    assert edit.size == (width + margins[0] + margins[2], height + margins[1] + margins[3])
    assert all(side % 16 == 0 and 0 <= side - own < 16 for side, own in zip(edit.canvas.size, edit.size, strict=True))
    noise = Image.fromarray(chance.integers(0, 256, (*edit.canvas.size[::-1], 3), dtype=np.uint8))
    finished = edit.finish(noise)
    inner = pixels(finished.crop((margins[0], margins[1], margins[0] + width, margins[1] + height)))
    inside = np.asarray(masked) > 0 if masks else np.zeros((height, width), bool)
    assert np.array_equal(inner[~inside], pixels(source)[~inside])
    if feather == 0:
        whole = np.ones((edit.size[1], edit.size[0]), bool)
        whole[margins[1] : margins[1] + height, margins[0] : margins[0] + width] = inside
        assert np.array_equal(pixels(finished)[whole], pixels(noise.crop((0, 0, *edit.size)))[whole])
    # A token is made where any of its pixels is.
    tokens = mask_to_tokens(edit.mask, 16).reshape(edit.canvas.height // 16, edit.canvas.width // 16).numpy()
    blocks = np.asarray(edit.mask).reshape(tokens.shape[0], 16, tokens.shape[1], 16).max(axis=(1, 3)) / 255
    assert np.array_equal(tokens, blocks)


def test_a_feather_falls_within_the_mask_and_not_at_the_pictures_edge() -> None:
    source = Image.new("RGB", (40, 16), "black")
    edit = make_edit(source, mask(source.size, (10, 0, 40, 16)), None, None, 3, "crop", None, 16)
    assert edit is not None
    row = pixels(edit.finish(Image.new("RGB", (48, 16), "white")))[8, :, 0].tolist()
    assert row == [0] * 10 + [63, 127, 191] + [255] * 27


def test_an_outpainted_picture_has_the_source_in_it_and_something_around(klein: Pipeline) -> None:
    source = picture(3, 50, 40)
    made = klein.generate("a cat", image=source, outpaint="20,8,0,30", steps=2, seed=1)
    assert made.image.size == (70, 78)
    assert made.image.crop((20, 8, 70, 48)).tobytes() == source.tobytes()
    assert made.recipe.edit is not None
    assert (made.recipe.edit.left, made.recipe.edit.top, made.recipe.edit.right, made.recipe.edit.bottom) == (
        20, 8, 0, 30,
    )  # fmt: skip


def test_the_source_comes_to_a_size_by_the_fit(klein: Pipeline) -> None:
    source = picture(3, 90, 60)
    request: dict[str, Any] = {"image": source, "size": "64x64", "steps": 1, "seed": 1}
    records = {}
    for fit in ("crop", "pad", "stretch"):
        made = klein.generate("a cat", strength=0.5, fit=fit, **request)
        assert made.image.size == (64, 64)
        assert made.recipe.fit == fit
        assert made.recipe.edit is not None
        records[fit] = made.recipe.edit
    assert {(edit.source_width, edit.source_height) for edit in records.values()} == {(64, 64), (64, 43)}
    assert len({edit.source_sha256 for edit in records.values()}) == 3
    assert (records["pad"].top, records["pad"].bottom) == (10, 11)
    masked = mask(source.size, (0, 0, 45, 60))
    for fit in ("crop", "stretch"):
        made = klein.generate("a cat", mask=masked, fit=fit, **request)
        assert pixels(made.image)[:, 32:].tobytes() == pixels(_fitted(source, fit))[:, 32:].tobytes()


def _fitted(source: Image.Image, fit: str) -> Image.Image:
    box = (15, 0, 75, 60) if fit == "crop" else None
    return source.resize((64, 64), Image.Resampling.LANCZOS, box=box)


def test_references_come_to_their_size_by_the_fit_and_one_may_be_large(folders: dict[str, Path]) -> None:
    pipeline = headrace.load(folders["klein"], device="cpu")
    request: dict[str, Any] = {"size": "16x16", "steps": 1, "seed": 1}
    sizes = {}
    for fit in ("crop", "pad", "stretch"):
        made = pipeline.generate("a cat", references=[picture(1, 70, 42)], fit=fit, **request)
        sizes[fit] = made.recipe.references[0].width, made.recipe.references[0].height
    assert sizes == {"crop": (64, 32), "pad": (80, 48), "stretch": (64, 48)}
    small = pipeline.generate("a cat", references=[picture(1)], reference_size="full", **request)
    assert small.recipe.reference_size == "full"
    rules = find_convention("diffusers")
    large = picture(1, 3000, 1000)
    for full, size in ((False, (1760, 576)), (True, (3000 // 16 * 16, 1000 // 16 * 16))):
        assert [image.size for image in prepare_references([large], rules, 16, full=full)] == [size]
    assert [image.size for image in prepare_references([large] * 2, rules, 16, full=True)] == [(1760, 576)] * 2
    with pytest.raises(RequestError, match="Only one reference"):
        pipeline.generate("a cat", references=[large, large], reference_size="full", **request)


def test_an_edit_is_the_same_in_a_batch_and_within_a_budget(folders: dict[str, Path], klein: Pipeline) -> None:
    source = picture(3, 75, 50)
    request: dict[str, Any] = {
        "image": source, "mask": mask(source.size, (20, 10, 41, 33)), "strength": 0.7, "feather": 4, "steps": 3,
    }  # fmt: skip
    together = klein.generate("a cat", count=3, seed=1, **request)
    small = headrace.load(folders["klein"], device="cpu", memory="1GB")
    for made, seed in zip(together, (1, 2, 3), strict=True):
        assert klein.generate("a cat", seed=seed, **request).image.tobytes() == made.image.tobytes()
        assert small.generate("a cat", seed=seed, **request).image.tobytes() == made.image.tobytes()


def test_every_step_can_be_seen_with_the_source_around_it_and_cancelled(klein: Pipeline) -> None:
    source = picture(3, 75, 50)
    request: dict[str, Any] = {"image": source, "mask": mask(source.size, (20, 10, 41, 33)), "steps": 3, "seed": 1}
    previews: list[Image.Image] = []
    made = klein.generate("a cat", on_step=lambda step: previews.append(step.preview(0)), **request)
    assert len(previews) == 3
    assert previews[-1].tobytes() == made.image.tobytes()
    assert all(preview.crop((0, 0, 20, 50)).tobytes() == source.crop((0, 0, 20, 50)).tobytes() for preview in previews)
    with pytest.raises(Cancelled):
        klein.generate("a cat", on_step=lambda step: step.index < 1, **request)


def test_the_recipe_says_what_was_edited_and_survives_its_file(klein: Pipeline, tmp_path: Path) -> None:
    from headrace.provenance.metadata import parameters_text, read_recipe

    source = picture(3, 75, 50)
    masks = [mask(source.size, (20, 10, 41, 33)), mask(source.size, (20, 10, 41, 34))]
    made = [klein.generate("a cat", image=source, mask=one, strength=0.6, feather=2, steps=1, seed=1) for one in masks]
    for ending in ("png", "jpg", "webp"):
        made[0].save(tmp_path / f"a.{ending}")
        assert read_recipe(tmp_path / f"a.{ending}") == made[0].recipe
    first, second = (one.recipe.edit for one in made)
    assert first is not None
    assert second is not None
    assert first.mask_sha256 != second.mask_sha256
    assert first == replace(second, mask_sha256=first.mask_sha256)
    assert "Denoising strength: 0.6" in parameters_text(made[0].recipe)
    values = made[0].recipe.as_dict()
    del values["edit"]["feather"]
    with pytest.raises(RequestError, match="edit"):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"mask": mask((64, 48))}, "no picture that the mask"),
        ({"strength": 0.5}, "no picture that the strength"),
        ({"outpaint": (1, 0, 0, 0)}, "no picture that the outpaint"),
        ({"feather": 3}, "no picture that the feather"),
        ({"image": picture(1)}, "Nothing says what is to become"),
        ({"image": picture(1), "strength": 1.5}, "from 0 to 1"),
        ({"image": picture(1), "strength": float("nan")}, "from 0 to 1"),
        ({"image": picture(1), "strength": True}, "not a number"),
        ({"image": picture(1), "strength": 0.5, "feather": 3}, "there is neither"),
        ({"image": picture(1), "mask": mask((64, 48))}, "black all over"),
        ({"image": picture(1), "mask": mask((48, 64))}, "48x64 pixels and the source 64x48"),
        ({"image": picture(1), "mask": mask((64, 48)), "feather": 129}, "0 to 128"),
        ({"image": picture(1), "outpaint": "1,2,3"}, "LEFT,TOP,RIGHT,BOTTOM"),
        ({"image": picture(1), "outpaint": (0, 0, 0, 0)}, "adds nothing"),
        ({"image": picture(1), "outpaint": (-16, 0, 16, 0)}, "adds nothing"),
        ({"image": picture(1), "outpaint": (999_999, 0, 0, 999_999)}, "more than 4 megapixels; add less"),
        ({"image": picture(1), "outpaint": (16, 0, 0, 0), "size": "64x64"}, "decides the size"),
        ({"image": Image.new("RGB", (3000, 2000)), "strength": 0.5}, "such as 2496x1664"),
        ({"image": picture(1), "strength": 0.5, "size": "70x48"}, "multiples of 16"),
        ({"image": picture(1), "strength": 0.5, "fit": "squeeze"}, "no fit 'squeeze'"),
        ({"image": "none.png", "strength": 0.5}, "The source none.png does not exist"),
        ({"image": picture(1), "mask": "none.png"}, "The mask none.png does not exist"),
        ({"references": [picture(1)], "reference_size": "huge"}, "no reference size"),
    ],
)
def test_what_cannot_be_is_one_sentence(klein: Pipeline, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        klein.generate("a cat", **request_)
    assert str(caught.value).count("\n") == 0
    assert klein.held_bytes == 0


def test_masks_of_every_kind(tmp_path: Path) -> None:
    grey = np.zeros((20, 30), np.uint8)
    grey[5:15, 10:20] = 255
    expected = grey.tobytes()
    image = Image.fromarray(grey)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    kinds: dict[str, Image.Image] = {
        "bits.png": image.convert("1"),
        "rgb.png": image.convert("RGB"),
        "palette.gif": image.convert("P"),
        "opaque.png": Image.merge("RGBA", [image] * 3 + [Image.new("L", image.size, 255)]),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "cmyk.tiff": image.convert("CMYK"),
    }
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
        assert open_mask(tmp_path / name).tobytes() == expected, name
        assert open_mask(kind).tobytes() == expected, name
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_mask(tmp_path / "turned.png").tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    image.convert("RGB").save(tmp_path / "a.jpg", quality=60)
    assert open_mask(tmp_path / "a.jpg").tobytes() == expected
    with pytest.raises(RequestError, match="transparency"):
        open_mask(Image.merge("LA", [image, image]))
    with pytest.raises(RequestError, match="mask"):
        open_mask(tmp_path / "cut.png")
