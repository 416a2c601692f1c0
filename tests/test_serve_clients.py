"""The clients that people have, unchanged, against a running server."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from served import QUICK, Served

PROMPT = "a red apple on a blue background"


def png(color: str = "red", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def size_of(data: bytes | str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data)).size


@pytest.fixture
def openai_client(served: Served) -> Any:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key) as client:
        yield client


def test_openai_generates(openai_client: Any) -> None:
    assert "flux-2-pro" in [model.id for model in openai_client.models.list()]
    extra = {"steps": 1, "seed": 3}
    made = openai_client.images.generate(model="gpt-image-1", prompt=PROMPT, size="64x64", n=2, extra_body=extra)
    assert [size_of(picture.b64_json) for picture in made.data] == [(64, 64)] * 2
    assert made.data[0].b64_json != made.data[1].b64_json
    assert made.usage.output_tokens == 32
    linked = openai_client.images.generate(prompt=PROMPT, size="64x64", response_format="url", extra_body=extra)
    assert linked.data[0].url.startswith("http://127.0.0.1")


def test_openai_streams_partial_pictures(openai_client: Any) -> None:
    stream = openai_client.images.generate(
        model="flux-2-flex", prompt=PROMPT, size="128x128", stream=True, partial_images=2, extra_body={"steps": 12}
    )
    events = list(stream)
    assert events[-1].type == "image_generation.completed"
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * (len(events) - 1)
    assert len(events) >= 2
    assert all(size_of(event.b64_json) == (128, 128) for event in events)


def test_openai_edits(openai_client: Any) -> None:
    extra = {"steps": 1}
    pictures = [png(), png("blue")]
    made = openai_client.images.edit(image=pictures, prompt="image 1 beside image 2", extra_body=extra)
    assert size_of(made.data[0].b64_json) == (64, 64)
    mask = Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    masked = openai_client.images.edit(
        model="flux-2-pro", image=png(), mask=buffer.getvalue(), prompt=PROMPT, extra_body={"steps": 2}
    )
    kept = Image.open(io.BytesIO(base64.b64decode(masked.data[0].b64_json)))
    assert kept.getpixel((60, 30)) == (255, 0, 0)
    events = list(openai_client.images.edit(image=png(), prompt=PROMPT, stream=True, extra_body=extra))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_openai_reads_our_errors(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="size"):
        openai_client.images.generate(prompt=PROMPT, size="large")
    with pytest.raises(openai.BadRequestError, match="content policy"):
        openai_client.images.generate(prompt="something forbidden", size="64x64")


def test_replicate_runs(served: Served) -> None:
    replicate = pytest.importorskip("replicate")
    client = replicate.Client(api_token=served.key, base_url=served.url)
    fields = {"aspect_ratio": "custom", "output_format": "png", **QUICK}
    made = client.run("black-forest-labs/flux-2-pro", input=fields)
    assert size_of(served.ask("GET", str(made))[2]) == (64, 64)
    prediction = client.predictions.create(
        model="black-forest-labs/flux-2-pro", input=fields | {"steps": 50, "width": 256, "height": 256}
    )
    prediction.cancel()
    prediction.wait()
    assert prediction.status == "canceled"


def test_together_generates(served: Served) -> None:
    together = pytest.importorskip("together", reason="together is not installed (pip install together)")
    # From version 3 on it adds /v1 itself.
    base = served.url if int(together.__version__.split(".")[0]) >= 3 else f"{served.url}/v1"
    client = together.Together(base_url=base, api_key=served.key)
    fields: dict[str, Any] = {"model": "flux-2-pro", "response_format": "base64", **QUICK}
    assert size_of(client.images.generate(**fields).data[0].b64_json) == (64, 64)


def test_webuiapi_draws_and_redraws(served: Served) -> None:
    webuiapi = pytest.importorskip("webuiapi")
    where = urlsplit(served.url)
    client = webuiapi.WebUIApi(host=where.hostname, port=where.port, username="me", password=served.key)
    made = client.txt2img(prompt=PROMPT, width=64, height=64, steps=1, seed=5)
    assert made.image.size == (64, 64)
    assert made.info["seed"] == 5
    assert "Seed: 5" in made.image.info["parameters"]
    again = client.img2img(images=[made.image], prompt=PROMPT, steps=2, denoising_strength=0.5)
    assert again.image.size == (64, 64)
    assert client.get_options()["sd_model_checkpoint"] == "sprite"
    assert client.get_progress()["progress"] == 0
    assert client.interrupt() == {}
    assert client.png_info(made.image).info.startswith(PROMPT)


def test_comfyui_nodes_find_their_proxy(served: Served) -> None:
    """What comfy_api_nodes/nodes_bfl.py sends: no key where nobody is logged in, so the server's must be sent along."""
    body = QUICK | {
        "prompt_upsampling": True,
        "input_image_9": base64.b64encode(png()).decode(),
        "output_format": "png",
    }
    submitted = served.json("POST", "/proxy/bfl/flux-2-pro/generate", body)
    key, served.key = served.key, ""
    try:
        task = served.wait(submitted)
    finally:
        served.key = key
    assert task["status"] == "Ready"
    assert size_of(served.ask("GET", task["result"]["sample"])[2]) == (64, 64)


def test_blackforest_generates(served: Served) -> None:
    blackforest = pytest.importorskip("blackforest", reason="blackforest is not installed (it pins an old Pillow)")
    from blackforest.types.general.client_config import ClientConfig

    client = blackforest.BFLClient(api_key=served.key, base_url=served.url)
    fields = {"prompt": PROMPT, "width": 256, "height": 256, "steps": 1}
    made = client.generate("flux-dev", fields, ClientConfig(sync=True))
    assert made.result["sample"].startswith(served.url)


@pytest.mark.slow
def test_the_ai_sdk_generates(served: Served, tmp_path: Path) -> None:
    modules = os.environ.get("HEADRACE_NODE_MODULES")
    if shutil.which("node") is None or modules is None:
        pytest.skip("set HEADRACE_NODE_MODULES to a node_modules with ai@6 and @ai-sdk/black-forest-labs@1")
    (tmp_path / "node_modules").symlink_to(modules)
    script = tmp_path / "client.mjs"
    script.write_text(
        "import { createBlackForestLabs } from '@ai-sdk/black-forest-labs';\n"
        "import { experimental_generateImage as generateImage } from 'ai';\n"
        "const bfl = createBlackForestLabs({ baseURL: process.argv[2] + '/v1', apiKey: process.argv[3] });\n"
        "for (const extra of [{ size: '64x64' }, { aspectRatio: '4:3' }]) {\n"
        "  const { image, providerMetadata } = await generateImage(\n"
        "    { model: bfl.image('flux-2-pro'), prompt: 'a red apple', seed: 7, ...extra });\n"
        "  console.log(image.mediaType, providerMetadata.blackForestLabs.images[0].seed);\n"
        "}\n"
    )
    command = ["node", str(script), served.url, served.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["image/jpeg 7"] * 2, done.stderr
