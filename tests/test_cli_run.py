"""`headrace run` and `headrace templates`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from comfy_files import text_encoder_file, transformer_file, vae_file
from conftest import Run
from headrace.comfy.graph import check
from headrace.comfy.shelf import find_template, read_template, templates
from headrace.comfy.workflow import assign, read_workflow
from headrace.errors import RequestError

DATA = Path(__file__).parent / "data" / "comfy"
SMALL = ("--set", "Width.value=64", "--set", "Height.value=64", "--set", "Flux2Scheduler.steps=2")


def test_a_workflow_is_run(headrace: Run, tmp_path: Path) -> None:
    models = tmp_path / "ComfyUI" / "models"
    transformer_file(models, "flux-2-klein-4b.safetensors")
    text_encoder_file(models, "qwen_3_4b.safetensors")
    vae_file(models, "flux2-vae.safetensors")
    assert headrace("templates", "klein_text_to_image").stdout == "wrote klein_text_to_image.json\n"
    arguments = ("klein_text_to_image.json", "--models", "ComfyUI", *SMALL, "--output", "out")
    done = headrace("run", *arguments)
    assert (done.returncode, done.stdout) == (0, "wrote out/klein_00001_.png\n"), done.stderr
    picture = tmp_path / "out" / "klein_00001_.png"
    with Image.open(picture) as image:
        assert json.loads(image.text["workflow"]) == json.loads((tmp_path / "klein_text_to_image.json").read_text())
    again = headrace("run", picture, "--models", "ComfyUI", "--json", "--memory", "2GB")
    document = json.loads(again.stdout)
    with Image.open(tmp_path / document["images"][0]) as image:
        assert image.tobytes() == Image.open(picture).tobytes()
    assert document["plans"][0]["model"] == "flux-2-klein-4b"
    assert document["peak_memory_bytes"] > 0


def test_what_is_missing_is_said_at_once(headrace: Run, tmp_path: Path) -> None:
    done = headrace("run", DATA / "image_flux2_klein_text_to_image.json")
    assert done.returncode == 2
    assert "needs 3 model files that are not there: flux-2-klein-base-4b.safetensors in" in done.stderr
    assert "from https://huggingface.co/" in done.stderr


def test_own_templates_are_whole() -> None:
    own = [template for template in templates() if template.source == "headrace"]
    assert len(own) >= 3
    for template in own:
        graph = check(read_workflow(read_template(template), template.name).graph)
        assert template.description
        assert {file.name for file in graph.files} >= {"qwen_3_4b.safetensors", "flux2-vae.safetensors"}


def test_the_masked_part_of_steps_can_be_set() -> None:
    workflow = read_workflow(read_template(find_template("klein_base_inpaint")), "template")
    graph = assign(workflow.graph, "SplitSigmasDenoise.denoise=0.5")
    assert any(node.inputs.get("denoise") == 0.5 for node in graph.nodes.values())


def test_installed_templates_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "comfyui_workflow_templates_json" / "templates"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    entries = [
        {"name": "image_flux2", "title": "FLUX.2 Dev"},
        {"name": "other", "title": "Other"},
        {"name": "service", "title": "Service", "openSource": False},
    ]
    (folder / "index.json").write_text(json.dumps([{"templates": entries}]))
    for name in ("image_flux2", "service"):
        (folder / f"{name}.json").write_bytes((DATA / "image_flux2.json").read_bytes())
    (folder / "other.json").write_text('{"nodes": []}')
    monkeypatch.syspath_prepend(tmp_path)
    found = [template for template in templates() if template.source != "headrace"]
    assert [(template.name, template.description) for template in found] == [("image_flux2", "FLUX.2 Dev")]
    assert read_template(found[0]) == (DATA / "image_flux2.json").read_bytes()


def test_a_template_that_is_not_there(headrace: Run) -> None:
    with pytest.raises(RequestError, match="There is no template 'none'; choose klein"):
        find_template("none")
    assert headrace("templates", "-o", "a.json").returncode == 2
    listed = headrace("templates", "--json").stdout
    assert "klein_text_to_image" in [template["name"] for template in json.loads(listed)["templates"]]
