"""What a pipeline promises: the same bits from the same recipe, few forwards, order, cancelling, clear refusals."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import headrace
from headrace.flow.conventions import find_convention
from headrace.flow.denoise import denoise
from headrace.nn.transformer import Transformer
from headrace.pipeline import Pipeline, Step
from reference_pipelines import save_pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ("dev", "klein", "klein-base", "klein-kv"):
        made[kind] = tmp_path_factory.mktemp(kind)
        save_pipeline(made[kind], kind, channels=(8, 8, 16, 16), norm_groups=4)  # type: ignore[arg-type]
    return made


@pytest.fixture
def klein(folders: dict[str, Path]) -> Pipeline:
    return headrace.load(folders["klein"], device="cpu")


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The batch size of every forward of the transformer."""
    sizes: list[int] = []
    original = Transformer.forward

    def counted(self: Transformer, img: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sizes.append(img.shape[0])
        return original(self, img, *arguments, **options)

    monkeypatch.setattr(Transformer, "forward", counted)
    return sizes


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *((kind, precision) for kind in ("dev", "klein", "klein-base", "klein-kv") for precision in ("fp32", "bf16")),
        ("klein", "fp8"),
        ("klein", "int8"),
    ],
)
def test_a_picture_is_the_same_alone_in_a_batch_in_another_order_and_after_another_model(
    kind: str, precision: str, folders: dict[str, Path]
) -> None:
    prompts = ["a red apple", "two green trees", "the old house", "un chat noir, text HELLO"]
    references = [picture(1), picture(2, 48, 80)]
    request: dict[str, Any] = {"references": references, "size": (48, 64), "steps": 2}
    together = headrace.load(folders[kind], precision=precision, device="cpu").generate(prompts, seed=7, **request)
    backwards = headrace.load(folders[kind], precision=precision, device="cpu").generate(
        prompts[::-1], seed=[10, 9, 8, 7], **request
    )
    other = headrace.load(folders["klein" if kind == "dev" else "dev"], device="cpu")
    other.generate("something else", size=(32, 32), steps=1)
    for index, (prompt, batched) in enumerate(zip(prompts, together, strict=True)):
        alone = headrace.load(folders[kind], precision=precision, device="cpu").generate(
            prompt, seed=7 + index, **request
        )
        assert alone.recipe == batched.recipe == backwards[-1 - index].recipe
        assert alone.image.tobytes() == batched.image.tobytes() == backwards[-1 - index].image.tobytes()


@settings(max_examples=12, deadline=None)
@given(width=st.integers(1, 6), height=st.integers(1, 6), count=st.integers(2, 5), references=st.integers(0, 2))
def test_bits_do_not_depend_on_the_batch_at_any_size(
    folders: dict[str, Path], width: int, height: int, count: int, references: int
) -> None:
    pipeline = headrace.load(folders["klein"], device="cpu")
    request: dict[str, Any] = {
        "references": [picture(k, 16 * k + 16, 32) for k in range(references)],
        "size": (16 * width, 16 * height),
        "steps": 1,
    }
    together = pipeline.generate("a cat", count=count, seed=1, **request)
    last = pipeline.generate("a cat", seed=count, **request)
    assert together[-1].image.tobytes() == last.image.tobytes()


def test_pictures_of_one_layout_share_every_forward(klein: Pipeline, forwards: list[int]) -> None:
    klein.generate(["a cat", "a dog"], count=2, size=(32, 32), steps=3, seed=1)
    assert forwards == [4, 4, 4]


def test_classifier_free_guidance_runs_both_branches_in_one_forward(
    folders: dict[str, Path], forwards: list[int]
) -> None:
    pipeline = headrace.load(folders["klein-base"], device="cpu")
    pipeline.generate("a cat", size=(32, 32), steps=2, guidance=3.0, seed=1)
    pipeline.generate("a cat", size=(32, 32), steps=2, guidance=1.0, seed=1)
    assert forwards == [2, 2, 1, 1]


def test_pictures_of_different_layouts_are_grouped_and_come_back_in_order(klein: Pipeline, forwards: list[int]) -> None:
    references = [[picture(1)], [], [picture(2)], []]
    pictures = klein.generate(
        ["one", "two", "three", "four"], references=references, size=(32, 32), steps=1, seed=[4, 3, 2, 1]
    )
    assert forwards == [2, 2]
    assert [made.recipe.prompt for made in pictures] == ["one", "two", "three", "four"]
    assert [made.recipe.seed for made in pictures] == [4, 3, 2, 1]
    assert [len(made.recipe.references) for made in pictures] == [1, 0, 1, 0]


def test_a_large_call_is_cut_into_batches_of_fixed_size(klein: Pipeline, forwards: list[int]) -> None:
    klein.generate("a cat", count=70, size=(16, 16), steps=1, seed=1)
    assert forwards == [32_768 // 513, 70 - 32_768 // 513]


def test_the_reference_cache_serves_steps_seeds_prompts_and_later_calls(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = Transformer.reference_cache

    def counted(self: Transformer, *arguments: Any) -> Any:
        calls.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Transformer, "reference_cache", counted)
    pipeline = headrace.load(folders["klein-kv"], device="cpu")
    pipeline.generate(["a", "b"], count=2, references=[picture(1)], size=(32, 32), steps=3, seed=1)
    pipeline.generate("c", references=[picture(1)], size=(48, 32), steps=2, seed=9)
    assert len(calls) == 1
    pipeline.generate("c", references=[picture(2)], size=(48, 32), steps=2, seed=9)
    assert len(calls) == 2


def test_every_step_can_be_seen_and_the_last_preview_is_the_picture(klein: Pipeline) -> None:
    steps: list[tuple[int, int, float]] = []
    previews: list[Image.Image] = []

    def look(step: Step) -> None:
        steps.append((step.index, step.steps, step.sigma))
        previews.append(step.preview(0))

    made = klein.generate("a cat", size=(32, 48), steps=3, seed=1, on_step=look)
    assert [(index, total) for index, total, _ in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[-1][2] == 0
    assert all(preview.size == (32, 48) for preview in previews)
    assert np.abs(np.asarray(previews[-1], np.int16) - np.asarray(made.image, np.int16)).max() <= 1


def test_returning_false_cancels_and_the_pipeline_works_again(klein: Pipeline, forwards: list[int]) -> None:
    with pytest.raises(headrace.Cancelled):
        klein.generate("a cat", size=(32, 32), steps=5, seed=1, on_step=lambda step: step.index < 1)
    assert len(forwards) == 2
    again = klein.generate("a cat", size=(32, 32), steps=1, seed=1)
    assert again.image.size == (32, 32)


def test_pictures_stream_as_they_are_done(klein: Pipeline, forwards: list[int]) -> None:
    stream = klein.stream(["one", "two"], references=[[picture(1)], []], size=(32, 32), steps=1, seed=1)
    assert next(stream).recipe.prompt == "one"
    assert len(forwards) == 1
    assert [made.recipe.prompt for made in stream] == ["two"]


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_and_keeps_the_templates_end(klein: Pipeline) -> None:
    with pytest.warns(UserWarning, match="tokens too long for the model's 512"):
        tokens = klein.tokenizer("house " * 600)
    suffix = klein.tokenizer.tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n").ids
    assert tokens.ids.shape == (1, 512)
    assert tokens.ids[0, -len(suffix) :].tolist() == suffix
    assert bool(tokens.mask.all())


def test_a_seed_is_drawn_and_written_down(klein: Pipeline) -> None:
    first, second = (klein.generate("a cat", size=(16, 16), steps=1) for _ in range(2))
    assert first.recipe.seed != second.recipe.seed
    again = klein.generate("a cat", size=(16, 16), steps=1, seed=first.recipe.seed)
    assert again.image.tobytes() == first.image.tobytes()


def test_conventions_differ_where_they_say(folders: dict[str, Path]) -> None:
    dev = headrace.load(folders["dev"], device="cpu")
    made = {
        name: dev.generate("a cat", size=(32, 32), steps=2, seed=1, convention=name)
        for name in ("diffusers", "comfy", "bfl")
    }
    assert {picture.recipe.convention for picture in made.values()} == set(made)
    assert made["diffusers"].image.tobytes() != made["comfy"].image.tobytes()
    brightness = {name: np.asarray(picture.image, np.int16) for name, picture in made.items()}
    difference = brightness["diffusers"] - brightness["bfl"]
    assert set(np.unique(difference)) <= {0, 1}, "in fp32 they differ only in rounding or cutting off pixel values"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": "a \ud800"}, "surrogate"),
        ({"size": "1000x1000"}, "1008x1008 and 992x992"),
        ({"size": "4096x4096"}, "4 megapixels"),
        ({"size": (0, 16)}, "multiples of 16"),
        ({"size": "big"}, "WIDTHxHEIGHT"),
        ({"steps": 0}, "0 steps"),
        ({"guidance": float("nan")}, "guidance of nan"),
        ({"guidance": float("inf")}, "guidance of inf"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64 - 1, "count": 2}, "out of range"),
        ({"seed": [1, 2, 3]}, "3 seeds were given for 1 pictures"),
        ({"count": 0}, "0 pictures"),
        ({"convention": "a1111"}, "no convention"),
        ({"references": [picture(k, 16, 16) for k in range(11)]}, "11 references"),
        ({"references": [picture(1, 8, 300)]}, "at least 16"),
        ({"references": [[picture(1)], [picture(2)]]}, "2 lists"),
        ({"references": ["nowhere.png"]}, "nowhere.png"),
        ({"references": "nowhere.png"}, "nowhere.png"),
        ({"prompt": [3]}, "not text"),
        ({"size": 32}, "not a pair"),
        ({"size": (32.0, 32)}, "width 32.0"),
        ({"steps": 2.5}, "number of steps 2.5"),
        ({"seed": True}, "seed True"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"guidance": "2"}, "guidance '2'"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_anything_is_loaded(
    arguments: dict[str, Any], words: str, klein: Pipeline
) -> None:
    with pytest.raises(headrace.RequestError, match=words):
        klein.generate(**({"prompt": "a cat"} | arguments))
    assert not {"tokenizer", "language_model", "transformer", "autoencoder"} & set(vars(klein))


def test_an_option_that_does_not_exist_is_refused(klein: Pipeline) -> None:
    with pytest.raises(TypeError, match="guidence"):
        klein.generate("a cat", guidence=3.0)  # type: ignore[call-overload]


def test_references_of_one_colour_and_different_shape_are_different(folders: dict[str, Path]) -> None:
    wide, tall = Image.new("RGB", (48, 16), "teal"), Image.new("RGB", (16, 48), "teal")
    request: dict[str, Any] = {"size": (32, 32), "steps": 1, "seed": 1}
    pipeline = headrace.load(folders["klein-kv"], device="cpu")
    pipeline.generate("a cat", references=[wide], **request)
    after = pipeline.generate("a cat", references=tall, **request)
    fresh = headrace.load(folders["klein-kv"], device="cpu").generate("a cat", references=[tall], **request)
    assert after.image.tobytes() == fresh.image.tobytes()
    assert (
        after.recipe.references[0].sha256
        != pipeline.generate("a cat", references=wide, **request).recipe.references[0].sha256
    )


def test_sizes_fit_an_autoencoder_with_larger_tokens(tmp_path: Path) -> None:
    save_pipeline(tmp_path, "klein", channels=(8, 8, 8, 8, 8), norm_groups=4)
    pipeline = headrace.load(tmp_path, device="cpu")
    with pytest.raises(headrace.RequestError, match="multiples of 32 pixels; the nearest that work are 64x96"):
        pipeline.generate("a cat", size=(64, 80))
    assert pipeline.generate("a cat", size=(64, 96), steps=1).image.size == (64, 96)


def test_bfl_rounds_every_operation_on_the_state() -> None:
    latent, slope = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    convention, dtype = find_convention("bfl"), torch.bfloat16
    (step,) = denoise(lambda state, time: slope, latent, [1.0, 0.7], convention, dtype)
    expected = latent.to(dtype) + (0.7 - 1.0) * slope.to(dtype)
    assert torch.equal(step.latent, expected.float())


def test_the_limit_of_references_can_be_changed(folders: dict[str, Path]) -> None:
    pipeline = headrace.load(folders["klein"], device="cpu", reference_limit=1)
    with pytest.raises(headrace.RequestError, match="at most 1"):
        pipeline.generate("a cat", references=[picture(1), picture(2)])
    with pytest.raises(headrace.RequestError, match="-1 references"):
        headrace.load(folders["klein"], device="cpu", reference_limit=-1)


def test_ten_references_of_different_sizes_are_used(klein: Pipeline) -> None:
    references = [picture(k, 16 + 16 * (k % 3), 32 + 16 * (k % 2)) for k in range(10)]
    made = klein.generate("a cat", references=references, size=(32, 32), steps=1, seed=1)
    assert [(record.width, record.height) for record in made.recipe.references] == [r.size for r in references]


def test_nothing_is_warned_of_in_an_ordinary_call(klein: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        klein.generate("a cat", size=(32, 32), steps=1, seed=1)
