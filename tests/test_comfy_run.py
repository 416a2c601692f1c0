"""Graphs run without ComfyUI: its numbers, its pictures, its files and folders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import comfy_reference
import headrace
from checkpoint_files import CONFORMANCE, drawn, write_tensors
from comfy_files import DEV, KLEIN, lora_file, tamed, transformer_file, write_models
from headrace.checkpoints.shapes import transformer_shapes
from headrace.comfy.engine import Settings
from headrace.comfy.folders import model_folders
from headrace.comfy.graph import Graph, ModelFile, check, from_api
from headrace.comfy.models import Model
from headrace.comfy.nodes.image import resized
from headrace.comfy.nodes.sampling import basic_scheduler, flux2_scheduler
from headrace.comfy.run import Job, Prepared, prepare, run
from headrace.comfy.sampling import draw, place_references
from headrace.comfy.saving import next_number, save_place
from headrace.comfy.workflow import read_workflow
from headrace.errors import RequestError
from headrace.memory import claims
from headrace.memory.networks import Networks
from headrace.memory.plan import Budget
from headrace.nn.config import TransformerConfig
from headrace.provenance.metadata import DIGITAL_SOURCE_TYPE
from lora_files import DIALECTS

NUMBERS = json.loads((comfy_reference.FOLDER / "numbers.json").read_text())
FP32 = Settings(precision="fp32", device="cpu")
NOON = datetime(2026, 3, 4, 15, 6, 7)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and pictures that a real ComfyUI had."""
    folder = tmp_path_factory.mktemp("comfyui")
    comfy_reference.write_models(folder / "models")
    comfy_reference.write_inputs(folder / "input")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folder with small files under the names that its templates use, and one picture."""
    folder = tmp_path_factory.mktemp("small")
    write_models(folder / "models")
    lora_file(folder / "models", "a.safetensors", "kohya", KLEIN)
    lora_file(folder / "models", "sub/b.safetensors", "lokr-lycoris", KLEIN)
    for name in ("Flux_2-Turbo-LoRA_comfyui", "Flux2TurboComfyv2"):
        lora_file(folder / "models", f"{name}.safetensors", "ai-toolkit", DEV)
    comfy_reference.write_inputs(folder / "input")
    return folder


def prepared(graph: dict[str, Any], folder: Path, output: Path, **settings: Any) -> Prepared:
    settings = {"precision": "fp32", "device": "cpu"} | settings
    checked = check(from_api(graph))
    return prepare(Job(checked, model_folders(folder), folder / "input", output, Settings(**settings), graph))


def executed(graph: dict[str, Any], folder: Path, output: Path, **settings: Any) -> list[Path]:
    written, _ = run(prepared(graph, folder, output, **settings))
    return written


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def small_graph(steps: int = 2) -> dict[str, Any]:
    """Text to picture with files of `small`."""
    graph = comfy_reference.workflows()["distilled"]
    graph["1"]["inputs"]["unet_name"] = "flux-2-klein-4b.safetensors"
    graph["2"]["inputs"]["clip_name"] = "qwen_3_4b.safetensors"
    graph["3"]["inputs"]["vae_name"] = "flux2-vae.safetensors"
    graph["13"]["inputs"]["steps"] = steps
    return graph


@pytest.mark.parametrize("name", NUMBERS["flux2"])
def test_flux2_times_are_comfyuis_bit_for_bit(name: str) -> None:
    size, steps = name.split("/")
    width, height = map(int, size.split("x"))
    (sigmas,) = flux2_scheduler(int(steps), width, height)
    assert [float(sigma).hex() for sigma in sigmas] == NUMBERS["flux2"][name]


@pytest.mark.parametrize("name", NUMBERS["basic"])
def test_basic_times_are_comfyuis_bit_for_bit(name: str) -> None:
    scheduler, steps = name.split("/")
    (sigmas,) = basic_scheduler(Model(Path("any")), scheduler, int(steps), 1.0)
    assert [float(sigma).hex() for sigma in sigmas] == NUMBERS["basic"][name][-(int(steps) + 1) :]


@pytest.mark.parametrize("seed", NUMBERS["noise"])
def test_noise_is_comfyuis_bit_for_bit(seed: str) -> None:
    noise = draw(int(seed), (2, 128, 2, 3))
    assert hashlib.sha256(noise.numpy().tobytes()).hexdigest() == NUMBERS["noise"][seed]["sha256"]


@pytest.mark.parametrize("name", comfy_reference.workflows())
def test_pictures_are_comfyuis(name: str, base: Path, tmp_path: Path) -> None:
    written = executed(comfy_reference.workflows()[name], base, tmp_path)
    expected = sorted(comfy_reference.FOLDER.glob(f"{name}-*.png"))
    assert len(written) == len(expected)
    for path, reference in zip(written, expected, strict=True):
        difference = abs(pixels(path) - pixels(reference))
        assert difference.max() <= 1
        assert difference.mean() < 0.01


# Their API forms are not run as well: that they are what the templates become is for test_comfy_workflow.
PUBLISHED = [
    path
    for path in (
        sorted(CONFORMANCE.glob("comfy_templates/**/image_flux2*.json"))
        or sorted(comfy_reference.FOLDER.glob("image_flux2*.json"))
    )
    if not path.name.endswith(".api.json")
]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_published_templates_run(path: Path, small: Path, tmp_path: Path) -> None:
    read = read_workflow(path.read_bytes(), path.name)
    graph = read.graph.to_api()
    for node in graph.values():
        shrink(node, small / "input")
    job = Job(check(from_api(graph)), model_folders(small), small / "input", tmp_path, FP32, graph, read.saved)
    (written,), _ = run(prepare(job))
    with Image.open(written) as image:
        assert json.loads(image.text["prompt"]) == graph
        assert ("workflow" in image.text) == (read.saved is not None)
        assert DIGITAL_SOURCE_TYPE in image.text["XML:com.adobe.xmp"]
        sides = sorted(image.size)
        assert sides in ([64, 64], [80, 112])


def lora_graph(*loras: tuple[str, float]) -> dict[str, Any]:
    """As `small_graph`, one picture with LoRAs in a row."""
    graph = small_graph()
    graph["14"]["inputs"]["batch_size"] = 1
    for index, (name, strength) in enumerate(loras):
        node = "LoraLoader" if index % 2 else "LoraLoaderModelOnly"
        inputs = {"model": graph["10"]["inputs"]["model"], "lora_name": name, "strength_model": strength}
        if node == "LoraLoader":
            inputs |= {"clip": ["2", 0], "strength_clip": 1.0}
        graph[f"8{index}"] = {"class_type": node, "inputs": inputs}
        graph["10"]["inputs"]["model"] = [f"8{index}", 0]
    return graph


def made(graph: dict[str, Any], folder: Path, output: Path, **settings: Any) -> list[Any]:
    (path,) = executed(graph, folder, output, **settings)
    return pixels(path).tolist()


def test_loras_in_a_row_make_the_picture_that_generate_makes(small: Path, tmp_path: Path) -> None:
    graph = lora_graph(("a.safetensors", 0.5), ("sub/b.safetensors", -0.25))
    (path,) = executed(graph, small, tmp_path)
    models = small / "models"
    pipeline = headrace.load(
        models / "diffusion_models" / "flux-2-klein-4b.safetensors",
        autoencoder=models / "vae" / "flux2-vae.safetensors",
        text_encoder=models / "text_encoders" / "qwen_3_4b.safetensors",
        variant="distilled",
        precision="fp32",
        device="cpu",
    )
    loras = [(models / "loras" / "a.safetensors", 0.5), (models / "loras" / "sub" / "b.safetensors", -0.25)]
    options: dict[str, Any] = {"seed": 42, "steps": 2, "size": (48, 64), "convention": "comfy"}
    expected = pipeline.generate(comfy_reference.PROMPT, loras=loras, **options)
    plain = pipeline.generate(comfy_reference.PROMPT, **options)
    assert np.array_equal(pixels(path), np.asarray(expected.image))
    assert abs(pixels(path) - np.asarray(plain.image)).max() > 8
    with Image.open(path) as image:
        for record in expected.recipe.loras:
            assert f"sha256:{record.sha256}" in image.text["XML:com.adobe.xmp"]


def test_a_lora_is_in_the_plan_and_in_a_tight_budget(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = deep_model(small)
    lora = lora_file(small / "models", "deep.safetensors", "kohya", config)
    graph, plain_graph = lora_graph(("deep.safetensors", 0.5)), lora_graph()
    graph["1"]["inputs"]["unet_name"] = plain_graph["1"]["inputs"]["unet_name"] = "deep.safetensors"
    budget = Budget(2**34, 0)
    monkeypatch.setattr(claims, "measured_budget", lambda *_: budget)
    (kept,), (plan,) = run(prepared(graph, small, tmp_path / "kept"))
    _, (plain,) = run(prepared(plain_graph, small, tmp_path / "plain"))
    assert 0.7 * lora.stat().st_size < plan.peak_bytes - plain.peak_bytes <= lora.stat().st_size
    budget = replace(budget, memory=plan.minimum_bytes)
    (streamed,), (tight,) = run(prepared(graph, small, tmp_path / "streamed"))
    assert not tight.keeps_all
    assert np.array_equal(pixels(streamed), pixels(kept))
    budget = replace(budget, memory=plan.minimum_bytes - 1)
    with pytest.raises(RequestError, match="the smallest budget that works is"):
        run(prepared(graph, small, tmp_path / "none"))


def test_one_model_with_different_loras_in_one_graph(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once, unless it is streamed."""
    lora_file(small / "models", "heavy.safetensors", "kohya", deep_model(small))
    graph = lora_graph(("heavy.safetensors", 0.5))
    graph["1"]["inputs"]["unet_name"] = "deep.safetensors"
    for node in ("10", "15", "90", "91"):  # a second branch without it
        inputs = {
            name: [f"{value[0]}b", value[1]] if isinstance(value, list) and value[0] in ("10", "15", "90") else value
            for name, value in graph[node]["inputs"].items()
        }
        graph[f"{node}b"] = {"class_type": graph[node]["class_type"], "inputs": inputs}
    graph["10b"]["inputs"]["model"] = ["1", 0]
    loaded = []
    load = Networks._transformer
    monkeypatch.setattr(Networks, "_transformer", lambda self, plan: loaded.append(plan) or load(self, plan))
    budget = Budget(2**34, 0)
    monkeypatch.setattr(claims, "measured_budget", lambda *_: budget)
    both, (plan,) = run(prepared(graph, small, tmp_path / "both"))
    assert len(loaded) == 1
    alone = []
    for loras in ([("heavy.safetensors", 0.5)], []):
        single = lora_graph(*loras)
        single["1"]["inputs"]["unet_name"] = "deep.safetensors"
        alone.append(made(single, small, tmp_path / "one"))
    assert sorted(pixels(path).tolist() for path in both) == sorted(alone)
    assert alone[0] != alone[1]
    budget = replace(budget, memory=plan.minimum_bytes)
    streamed, (tight,) = run(prepared(graph, small, tmp_path / "streamed"))
    assert not tight.keeps_all
    assert [pixels(path).tolist() for path in streamed] == [pixels(path).tolist() for path in both]


def test_a_lora_at_strength_zero_is_as_if_it_were_not_there(small: Path, tmp_path: Path) -> None:
    nothing = made(lora_graph(("a.safetensors", 0.0), ("sub/b.safetensors", 0.0)), small, tmp_path)
    assert nothing == made(lora_graph(), small, tmp_path)


def test_a_lora_for_another_model_is_refused_before_anything_is_loaded(small: Path, tmp_path: Path) -> None:
    DIALECTS["kohya"](comfy_reference.KLEIN).save(small / "models" / "loras" / "large.safetensors")
    with pytest.raises(RequestError, match=r"large\.safetensors was not made for flux-2-klein-4b"):
        prepared(lora_graph(("large.safetensors", 1.0)), small, tmp_path)


@pytest.mark.parametrize("path", [path for path in PUBLISHED if b"Turbo" in path.read_bytes()], ids=lambda p: p.name)
def test_the_switch_of_published_templates_turns_their_lora_on(path: Path, small: Path, tmp_path: Path) -> None:
    graph = read_workflow(path.read_bytes(), path.name).graph.to_api()
    for node in graph.values():
        shrink(node, small / "input")
    switches = [node for node in graph.values() if node["class_type"] == "PrimitiveBoolean"]
    if not switches:
        pytest.skip("older templates have no switch")
    pictures = []
    for on in (False, True):
        switches[0]["inputs"]["value"] = on
        ready = prepared(graph, small, tmp_path)
        assert [line.partition(" ")[0].startswith("Flux") for line in ready.loras] == [True] * on
        ((picture,), _) = run(ready)
        pictures.append(pixels(picture).tolist())
    assert pictures[0] != pictures[1]


def shrink(node: dict[str, Any], inputs: Path) -> None:
    """Sizes and steps that small models manage in no time; pictures that are there."""
    given = node["inputs"]
    if node["class_type"] == "LoadImage":
        (inputs / given["image"]).write_bytes((inputs / "first.png").read_bytes())
    if node["class_type"] == "PrimitiveInt" and given["value"] >= 256:
        given["value"] = 64
    for name, value in (("megapixels", 0.01), ("width", 64), ("height", 64), ("steps", 2)):
        if name in given and not isinstance(given[name], list):
            given[name] = value


def test_missing_files_are_named_with_their_folder_and_source(small: Path, tmp_path: Path) -> None:
    graph = small_graph()
    graph["1"]["inputs"]["unet_name"] = "klein/none.safetensors"
    graph["3"]["inputs"]["vae_name"] = "lost.safetensors"
    files = (ModelFile("klein/none.safetensors", "diffusion_models", "https://example.org/none"),)
    checked = Graph(check(from_api(graph)).nodes, files=files)
    with pytest.raises(RequestError) as caught:
        prepare(Job(checked, model_folders(small), small / "input", tmp_path))
    message = str(caught.value)
    assert "2 model files that are not there" in message
    assert (
        f"klein/none.safetensors in {small / 'models' / 'diffusion_models'}, from https://example.org/none" in message
    )
    assert "lost.safetensors in" in message


def test_models_are_found_in_older_folders_and_those_of_extra_model_paths(small: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "unet" / "sub").mkdir(parents=True)
    transformer_file(tmp_path / "elsewhere", "far.safetensors")
    (tmp_path / "models" / "unet" / "sub" / "near.safetensors").write_bytes(b"")
    (tmp_path / "extra_model_paths.yaml").write_text(
        "other:\n  base_path: elsewhere\n  diffusion_models: |\n    none\n    diffusion_models\nempty:\n"
    )
    folders = model_folders(tmp_path)
    assert (
        folders.find("diffusion_models", "far.safetensors") == tmp_path / "elsewhere/diffusion_models/far.safetensors"
    )
    assert folders.find("diffusion_models", "sub\\near.safetensors") is not None
    assert folders.find("diffusion_models", "none.safetensors") is None


@pytest.mark.parametrize("text", ["a: [", "- a", "a: 3", "&a [*a]", "a: {b: " + "[" * 1500, "\x00"])
def test_extra_model_paths_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(RequestError):
        model_folders(tmp_path)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "C:\\a.png", "a/../../b.png", ""])
def test_pictures_come_from_the_input_folder_alone(name: str, small: Path, tmp_path: Path) -> None:
    graph = comfy_reference.workflows()["dev"] | small_graph()
    graph["20"]["inputs"]["image"] = name
    graph["15"]["inputs"]["latent_image"] = ["40", 0]
    with pytest.raises(RequestError, match="does not stay inside its folder"):
        prepared(graph, small, tmp_path)


@pytest.mark.parametrize("prefix", ["../a", "/tmp/a", "a/../../b", "sub/../../b", "C:/a"])
def test_pictures_stay_in_the_output_folder(prefix: str, small: Path, tmp_path: Path) -> None:
    graph = small_graph()
    graph["91"]["inputs"]["filename_prefix"] = prefix
    with pytest.raises(RequestError, match=r"does not stay inside|lead out of"):
        prepared(graph, small, tmp_path)


def test_a_link_does_not_lead_out_of_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="lead out of the output folder"):
        save_place("link/a", tmp_path / "out", 1, 1, NOON)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("a", "a"),
        ("%date:yyyy-MM-dd%/x_%date:hhmmss%", "2026-03-04/x_150607"),
        ("%date:d.M.yy h:m%".replace(":m", "m"), "4.3.26 156"),
        ("%year%%month%%day%-%hour%%minute%%second%_%width%x%height%", "20260304-150607_80x64"),
        ("a%batch_num%%other%", "a%batch_num%%other%"),
    ],
)
def test_tokens_in_file_names(prefix: str, expected: str, tmp_path: Path) -> None:
    folder, stem = save_place(prefix, tmp_path, 80, 64, NOON)
    assert folder / stem == tmp_path / expected


def test_numbers_go_on_after_the_largest(tmp_path: Path) -> None:
    assert next_number(tmp_path / "none", "a") == 1
    for name in ("a_00007_.png", "a_3.png", "ab_00009_.png", "a_x_.png", "a_99999999999_.png"):
        (tmp_path / name).write_bytes(b"")
    assert next_number(tmp_path, "a") == 8


def test_pictures_of_a_batch_are_numbered_and_carry_the_workflow(small: Path, tmp_path: Path) -> None:
    graph = small_graph()
    graph["91"]["inputs"]["filename_prefix"] = "sub/p%batch_num%"
    saved = {"nodes": [], "note": "ü"}
    job = prepared(graph, small, tmp_path).job
    written, _ = run(prepare(Job(job.graph, job.folders, job.input, tmp_path, job.settings, graph, saved)))
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["sub/p0_00001_.png", "sub/p1_00002_.png"]
    with Image.open(written[0]) as image:
        assert list(image.text)[:2] == ["prompt", "workflow"]
        assert json.loads(image.text["workflow"]) == saved


def deep_model(folder: Path) -> TransformerConfig:
    """A transformer so deep that it decides what a run takes at least."""
    config = replace(KLEIN, depth_single_blocks=20)
    place = folder / "models" / "diffusion_models" / "deep.safetensors"
    if not place.exists():
        write_tensors(place, tamed(drawn(transformer_shapes(config))))
    return config


def test_each_network_is_loaded_once_and_within_the_budget(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = small_graph()
    for node in list(graph):  # a second branch with another seed
        if int(node) >= 10:
            inputs = {
                name: [f"{value[0]}b" if int(value[0]) >= 10 else value[0], value[1]]
                if isinstance(value, list)
                else value
                for name, value in graph[node]["inputs"].items()
            }
            graph[f"{node}b"] = {"class_type": graph[node]["class_type"], "inputs": inputs}
    graph["11b"]["inputs"]["noise_seed"] = 43
    deep_model(small)
    graph["1"]["inputs"]["unet_name"] = "deep.safetensors"
    budget = Budget(2**34, 0)
    monkeypatch.setattr(claims, "measured_budget", lambda *_: budget)
    kept, (plan,) = run(prepared(graph, small, tmp_path / "kept"))
    assert plan.keeps_all
    loaded = []
    for name in ("_language_model", "_transformer", "_autoencoder"):
        method = getattr(Networks, name)
        monkeypatch.setattr(Networks, name, lambda self, plan, n=name, m=method: loaded.append(n) or m(self, plan))
    budget = replace(budget, memory=plan.minimum_bytes)
    streamed, (tight,) = run(prepared(graph, small, tmp_path / "streamed"))
    assert not tight.keeps_all
    assert loaded == ["_language_model", "_transformer", "_autoencoder"]
    assert [pixels(path).tolist() for path in streamed] == [pixels(path).tolist() for path in kept]
    assert len(kept) == 4


def test_too_small_a_budget_is_refused_before_anything_is_loaded(small: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the smallest budget that works is"):
        run(prepared(small_graph(), small, tmp_path, memory=10**6))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("node", "given", "message"),
    [
        ("12", {"sampler_name": "heun"}, "'heun', which Headrace has not; choose euler"),
        ("2", {"type": "sdxl"}, "choose flux2"),
        ("13", {"width": 16384, "height": 16384, "steps": 1}, None),
    ],
)
def test_what_nodes_do_not_take(
    node: str, given: dict[str, Any], message: str | None, small: Path, tmp_path: Path
) -> None:
    graph = small_graph()
    graph[node]["inputs"] |= given
    if message is None:
        assert executed(graph, small, tmp_path)
        return
    with pytest.raises(RequestError, match=message):
        prepared(graph, small, tmp_path)


def test_files_of_different_models_are_told_apart(small: Path, tmp_path: Path) -> None:
    graph = small_graph()
    graph["3"]["inputs"]["vae_name"] = "..\\text_encoders\\qwen_3_4b.safetensors"
    with pytest.raises(RequestError, match="does not stay inside"):
        prepared(graph, small, tmp_path)
    graph = small_graph()
    (small / "models" / "vae" / "wrong.safetensors").write_bytes(
        (small / "models" / "text_encoders" / "qwen_3_4b.safetensors").read_bytes()
    )
    graph["3"]["inputs"]["vae_name"] = "wrong.safetensors"
    with pytest.raises(RequestError, match=r"holds no FLUX.2 autoencoder: it is a text encoder"):
        prepared(graph, small, tmp_path)


def test_a_graph_of_pictures_alone_needs_no_model(small: Path, tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "first.png"}},
        "2": {
            "class_type": "ImageScale",
            "inputs": {"image": ["1", 0], "upscale_method": "lanczos", "width": 50, "height": 0, "crop": "center"},
        },
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    (path,) = executed(graph, small, tmp_path)
    assert path.name == "preview_00001_.png"
    with Image.open(path) as image:
        assert image.size == (50, 38)
        assert "XML:com.adobe.xmp" not in image.text


def test_lanczos_goes_through_256_levels_and_the_others_do_not() -> None:
    picture = torch.rand(1, 9, 9, 3)
    levels = resized(picture, "lanczos", 9, 9) * 255
    assert torch.equal(levels.round(), (picture * 255).floor())
    assert torch.equal(resized(picture, "bilinear", 9, 9), picture)
    assert resized(torch.empty(1, 9, 9, 3, device="meta"), "lanczos", 20, 10).shape == (1, 10, 20, 3)


def test_references_are_placed_by_method() -> None:
    sizes = [(2, 3), (1, 4)]
    index = place_references("index", (5, 6), sizes)
    assert index[:, 0].tolist() == [10.0] * 6 + [20.0] * 4
    assert torch.equal(index, place_references("index_timestep_zero", (5, 6), sizes))
    offset = place_references("offset", (5, 6), sizes)
    assert set(offset[:, 0].tolist()) == {1.0}
    assert offset[6:].tolist() == [[1.0, 2.0, float(column), 0.0] for column in range(4)]
    diagonal = place_references("uxo", (5, 6), sizes)
    assert diagonal[0].tolist() == [0.0, 5.0, 6.0, 0.0]
    assert diagonal[6].tolist() == [0.0, 7.0, 9.0, 0.0]
