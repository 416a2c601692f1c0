"""The nodes for ComfyUI: without it here, and in a real one where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import comfy_reference
from headrace.comfy import pack
from headrace.comfy.pack import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from headrace.errors import RequestError

FOLDER = Path(__file__).parents[1] / "comfyui_headrace"
COMFYUI = os.environ.get("COMFYUI")


def sampled(model: str = "sprite", **changes: Any) -> tuple[pack.SampledLatent, str]:
    (loaded,) = pack.load(model, "auto", "fp32", "cpu", changes.pop("memory", ""))
    (said,) = pack.prompt("a red apple on a blue background")
    if "images" in changes:
        (said,) = pack.references(said, changes.pop("images"))
    given = {"width": 96, "height": 64, "steps": 2, "guidance": 0.0, "seed": 7} | changes
    return pack.sample(loaded, said, **given)


def test_nodes_are_declared_as_comfyui_wants_them() -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        names = node.run.__code__.co_varnames[: node.run.__code__.co_argcount]
        assert tuple(node.INPUT_TYPES()["required"]) == names


def test_the_folder_is_the_pack() -> None:
    spec = importlib.util.spec_from_file_location("headrace_pack", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
    for file in (FOLDER / "example_workflows").glob("*.json"):
        document = json.loads(file.read_text())
        assert {node["type"] for node in document["nodes"]} <= {*NODE_CLASS_MAPPINGS, "SaveImage", "LoadImage"}


def test_a_picture_is_a_function_of_what_it_was_asked_for(tmp_path: Path) -> None:
    latent, plan = sampled()
    (image,) = pack.decode(latent)
    assert image.shape == (1, 64, 96, 3)
    assert 0 <= image.min() < image.max() <= 1
    assert "sprite in fp32 at 96x64, 0 references" in plan
    assert torch.equal(image, pack.decode(sampled()[0])[0])
    assert not torch.equal(image, pack.decode(sampled(seed=8)[0])[0])
    assert not torch.equal(image, pack.decode(sampled(images=torch.rand(1, 32, 32, 3))[0])[0])


def test_a_budget_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(RequestError, match="the smallest budget that works is"):
        sampled(memory="10MB")


def test_sizes_are_those_that_work() -> None:
    with pytest.raises(RequestError, match="the nearest that work"):
        sampled(width=100)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(COMFYUI is None, reason="needs COMFYUI=FOLDER, and COMFYUI_PYTHON where it is another")
def test_the_nodes_run_in_comfyui(tmp_path: Path) -> None:
    assert COMFYUI is not None
    for name in ("custom_nodes", "input", "output", "models", "user"):
        (tmp_path / name).mkdir()
    (tmp_path / "custom_nodes" / "comfyui-headrace").symlink_to(FOLDER)
    comfy_reference.write_inputs(tmp_path / "input")
    port = _free_port()
    server = subprocess.Popen(
        [
            *(os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--listen", "127.0.0.1"),
            *("--port", str(port), "--base-directory", str(tmp_path), "--disable-api-nodes"),
        ],
        cwd=COMFYUI,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, server)
        graph = {
            "1": _node("HeadraceLoad", model="sprite", variant="auto", precision="fp32", device="cpu", memory="4GB"),
            "2": _node("HeadracePrompt", text="a red apple on a blue background"),
            "3": _node("LoadImage", image="first.png"),
            "4": _node("HeadraceReferences", prompt=["2", 0], images=["3", 0]),
            "5": _node(
                "HeadraceSample", model=["1", 0], prompt=["4", 0], width=96, height=64, steps=2, guidance=0.0, seed=7
            ),
            "6": _node("HeadraceDecode", latent=["5", 0]),
            "7": _node("SaveImage", images=["6", 0], filename_prefix="pack"),
        }
        ((subfolder, name),) = comfy_reference.run_in_comfyui(url, graph)
        with Image.open(tmp_path / "output" / subfolder / name) as image:
            made = np.asarray(image.convert("RGB")).astype(int)
    finally:
        server.terminate()
        server.wait(30)
    with Image.open(tmp_path / "input" / "first.png") as image:
        reference = torch.from_numpy(np.asarray(image.convert("RGB")) / np.float32(255))[None]
    (expected,) = pack.decode(sampled(images=reference)[0])
    assert abs(made - (expected[0].numpy() * 255).astype(int)).max() <= 1


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert server.poll() is None, "ComfyUI has ended"
        try:
            comfy_reference._get(f"{url}/system_stats")
            return
        except URLError:
            time.sleep(0.5)
    raise TimeoutError(url)


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
