"""The recipe inside the file: exact for Headrace, readable for others, and marked as made by a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

from headrace.errors import RequestError
from headrace.provenance import read_recipe, save_picture
from headrace.provenance.metadata import check_prompt_fits, parameters_text
from headrace.recipe import MAX_PROMPT_CHARACTERS, MAX_SEED, LoraRecord, Recipe, ReferenceRecord

ENDINGS = ["png", "jpg", "webp"]
PICTURE = Image.new("RGB", (16, 32), "teal")
RECIPE = Recipe(
    model="klein-4b",
    model_hash="sha256:0123456789abcdef" + "0" * 48,
    variant="klein",
    precision="bf16",
    prompt="a red apple, on a blue background",
    width=16,
    height=32,
    steps=4,
    guidance=1.0,
    seed=42,
    convention="diffusers",
    text_length=512,
    version="0.1.0",
    references=(ReferenceRecord("f" * 64, 512, 768),),
)

AWKWARD_PROMPTS = [
    'She said "hello", \\ and left: {it}, <b> & </b>',
    "first line\nSteps: 3, Sampler: DDIM, CFG scale: 9, Seed: 1, Size: 8x8\nlast line",
    "Negative prompt: none\nNegative prompt: nor this",
    "un café, 日本語, עברית, 🍎🍏",
    "  spaces around, tabs\t, carriage\r\nreturns ",
    "controls \x00\x01\x1b\x7f\x85\u2028\ufffe\uffff and half a pair \ud83d",
    "]]> <!DOCTYPE x> <?xpacket?> &amp; &#0;",
    "x" * 20_000,
]


def save(folder: Path, ending: str, recipe: Recipe) -> Path:
    return save_picture(PICTURE, recipe, folder / f"a.{ending}")


READ: list[Image.Image] = []


def parsed(path: Path) -> PromptInfo | None:
    """What sd-parsers finds. It remembers what it read by `id` of the picture, so none of them may go."""
    READ.append(Image.open(path))
    READ[-1].load()
    return ParserManager().parse(READ[-1])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("prompt", AWKWARD_PROMPTS)
def test_awkward_prompts_come_back(tmp_path: Path, ending: str, prompt: str) -> None:
    recipe = replace(RECIPE, prompt=prompt)
    assert read_recipe(save(tmp_path, ending, recipe)) == recipe


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(min_size=1, max_size=300),
    model=st.text(min_size=1, max_size=60),
    seed=st.integers(0, MAX_SEED),
    guidance=st.floats(0, 100),
    references=st.lists(st.tuples(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(16, 4096))),
)
def test_every_recipe_comes_back(
    tmp_path: Path,
    ending: str,
    prompt: str,
    model: str,
    seed: int,
    guidance: float,
    references: list[tuple[str, int]],
) -> None:
    records = tuple(ReferenceRecord(sha256, side, side) for sha256, side in references)
    recipe = replace(RECIPE, prompt=prompt, model=model, seed=seed, guidance=guidance, references=records)
    assert read_recipe(save(tmp_path, ending, recipe)) == recipe


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("prompt", [RECIPE.prompt, *AWKWARD_PROMPTS])
def test_other_tools_read_it(tmp_path: Path, ending: str, prompt: str) -> None:
    found = parsed(save(tmp_path, ending, replace(RECIPE, prompt=prompt)))
    assert found is not None
    (sampler,) = found.samplers
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ("Euler", "klein-4b", "0123456789")
    assert {name: str(value) for name, value in sampler.parameters.items()} == {
        "steps": "4",
        "cfg_scale": "1.0",
        "seed": "42",
    }
    assert found.metadata["Size"] == "16x32"
    if prompt == RECIPE.prompt:
        assert [text.value for text in sampler.prompts] == [prompt]


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_tools_read_a_model_with_an_awkward_name(tmp_path: Path, ending: str) -> None:
    recipe = replace(RECIPE, model='my, model: x\nSteps: 9, "Model": y')
    found = parsed(save(tmp_path, ending, recipe))
    assert found is not None
    (sampler,) = found.samplers
    assert (sampler.model.name, sampler.model.hash) == ('my model x Steps 9 "Model" y', "0123456789")
    assert str(sampler.parameters["steps"]) == "4"
    assert read_recipe(tmp_path / f"a.{ending}").model == recipe.model


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_says_that_a_model_made_it(tmp_path: Path, ending: str) -> None:
    with Image.open(save(tmp_path, ending, RECIPE)) as image:
        packet = image.info["xmp"]
        software = image.getexif().get(0x0131)
    source_type = ElementTree.fromstring(packet).find(
        ".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    )
    assert source_type is not None
    assert source_type.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    if ending != "png":
        assert software == "headrace 0.1.0; AI generated"


def test_png_keeps_the_recipe_as_text(tmp_path: Path) -> None:
    with Image.open(save(tmp_path, "png", RECIPE)) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert json.loads(image.text["headrace"]) == RECIPE.as_dict()
        assert image.text["parameters"] == parameters_text(RECIPE)


def test_the_line_other_tools_read() -> None:
    assert parameters_text(RECIPE) == (
        "a red apple, on a blue background\n"
        "Steps: 4, Sampler: Euler, CFG scale: 1.0, Seed: 42, Size: 16x32, Model hash: 0123456789, Model: klein-4b, "
        "Version: headrace 0.1.0"
    )


def test_loras_stand_in_the_line_and_are_found_by_their_hashes(tmp_path: Path) -> None:
    loras = (LoraRecord("style, <v2>: new", "0123456789" + "a" * 54, 0.8), LoraRecord("pose", "b" * 64, -1.0))
    recipe = replace(RECIPE, loras=loras)
    prompt, values = parameters_text(recipe).split("\n")
    assert prompt == "a red apple, on a blue background <lora:style v2 new:0.8> <lora:pose:-1>"
    assert ', Hashes: {"lora:style v2 new": "0123456789", "lora:pose": "bbbbbbbbbb"}, Version: ' in values
    for ending in ENDINGS:
        read = parsed(save(tmp_path, ending, recipe))
        assert read is not None
        assert read.metadata["Hashes"] == {"lora:style v2 new": "0123456789", "lora:pose": "bbbbbbbbbb"}
        assert read_recipe(tmp_path / f"a.{ending}") == recipe


def test_an_attribute_serves_as_well_as_an_element(tmp_path: Path) -> None:
    """Tools that rewrite XMP fold simple properties into attributes."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:h="urn:headrace:recipe:1#" h:recipe="{}"/></rdf:RDF></x:xmpmeta>'
    ).format(json.dumps(RECIPE.as_dict()).replace('"', "&quot;"))
    PICTURE.save(tmp_path / "a.webp", xmp=packet.encode())
    assert read_recipe(tmp_path / "a.webp") == RECIPE


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_picture_without_a_recipe(tmp_path: Path, ending: str) -> None:
    PICTURE.save(tmp_path / f"a.{ending}")
    with pytest.raises(RequestError, match="carries no Headrace recipe"):
        read_recipe(tmp_path / f"a.{ending}")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("", "not JSON"),
        ('{"model": ', "not JSON"),
        (nested(100_000), "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("{}", "lacks"),
        (json.dumps(RECIPE.as_dict() | {"new": 1}), r"\bnew\b"),
        (json.dumps(RECIPE.as_dict() | {"seed": "42"}), r"\bseed\b"),
        (json.dumps(RECIPE.as_dict() | {"references": [{"sha256": "x"}]}), "reference"),
        (json.dumps(RECIPE.as_dict() | {"references": 7}), "reference"),
        (json.dumps(RECIPE.as_dict() | {"loras": [{"name": "x", "sha256": "y", "strength": "1"}]}), "strength"),
        (json.dumps(RECIPE.as_dict() | {"loras": {}}), "loras"),
        (json.dumps(RECIPE.as_dict() | {"prompt": "x" * 2**20}), "larger than 1 MiB"),
    ],
)
def test_a_damaged_recipe(tmp_path: Path, document: str, sentence: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("headrace", document)
    PICTURE.save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(RequestError, match=sentence):
        read_recipe(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [
        (b"\xff\xfe<", "XMP in the picture .* is damaged"),
        (b"<x:xmpmeta", "XMP in the picture .* is damaged"),
        (b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "carries no Headrace recipe"),
    ],
)
def test_a_damaged_packet(tmp_path: Path, packet: bytes, sentence: str) -> None:
    PICTURE.save(tmp_path / "a.webp", xmp=packet)
    with pytest.raises(RequestError, match=sentence):
        read_recipe(tmp_path / "a.webp")


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(RequestError, match="not a picture"):
        read_recipe(tmp_path / "a.png")


@pytest.mark.parametrize("character", ["x", "é", "日", "🍎", '"', "<"])
def test_the_longest_prompt_fits_or_is_refused_before_the_work(tmp_path: Path, character: str) -> None:
    recipe = replace(RECIPE, prompt=character * MAX_PROMPT_CHARACTERS)
    for ending in ("png", "webp"):
        check_prompt_fits(recipe.prompt, f"a.{ending}")
        assert read_recipe(save(tmp_path, ending, recipe)) == recipe
    with pytest.raises(RequestError, match="longer than a JPEG"):
        check_prompt_fits(recipe.prompt, "a.jpg")
    with pytest.raises(RequestError, match="longer than a JPEG"):
        save(tmp_path, "jpg", recipe)
    assert not (tmp_path / "a.jpg").exists()


@pytest.mark.parametrize("character", ["x", "é", "日", "🍎", '"', "<"])
def test_a_prompt_that_just_fits_a_jpeg_is_written(tmp_path: Path, character: str) -> None:
    few, many = 1, MAX_PROMPT_CHARACTERS
    while many - few > 1:
        middle = (few + many) // 2
        try:
            check_prompt_fits(character * middle, "a.jpg")
            few = middle
        except RequestError:
            many = middle
    references = RECIPE.references * 10
    recipe = replace(RECIPE, prompt=character * few, references=references)
    path = save(tmp_path, "jpg", recipe)
    assert read_recipe(path) == recipe
    found = parsed(path)
    assert found is not None
    assert found.samplers[0].parameters["seed"] in (42, "42")
