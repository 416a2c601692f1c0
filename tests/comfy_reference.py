"""Small models, and workflows that a real ComfyUI ran on them on a CPU: made by `python tests/comfy_reference.py`.

ComfyUI knows no small text encoder, so the server that made the references had a custom node that set the sizes below
in its Qwen3-4B configuration and had every text encoder taken for that one. Everything else is as shipped; its version
and how it was started are in `case.json`.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor

from headrace.catalog import FLUX2_AUTOENCODER, QWEN3_4B
from headrace.checkpoints.shapes import autoencoder_shapes, language_model_shapes, transformer_shapes
from headrace.nn.config import TransformerConfig
from lora_files import DIALECTS

FOLDER = Path(__file__).parent / "data" / "comfy"

TEXT_ENCODER = replace(
    QWEN3_4B.config, hidden_size=32, intermediate_size=48, num_layers=28, num_heads=2, num_kv_heads=1, head_dim=16
)
KLEIN = TransformerConfig(
    context_in_dim=96, hidden_size=256, num_heads=2, depth=1, depth_single_blocks=2, guidance_embed=False
)
DEV = replace(KLEIN, guidance_embed=True)
LORAS = ("ai-toolkit", "kohya")

PROMPT = "a red apple on a table"
# What Qwen's tokenizer makes of the prompt in its template.
TOKENS = {
    "<|im_start|>": 151644, "user": 872, "\n": 198, "a": 64, " red": 2518, " apple": 23268, " on": 389, " a": 264,
    " table": 1965, "<|im_end|>": 151645, "assistant": 77091, "<think>": 151667, "\n\n": 271, "</think>": 151668,
    "<|endoftext|>": 151643,
}  # fmt: skip


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Each tensor from a generator of its own, so that order does not matter."""

    def one(name: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            return torch.tensor(0)
        if name.endswith("running_var"):
            return 0.5 + torch.rand(shape, generator=generator)
        if len(shape) > 1:
            fan = int(np.prod(shape[1:]))
            # The velocity is made large, so that what steers it shows in the picture.
            gain = 5.0 if name == "final_layer.linear.weight" else 1.5 if "blocks" in name else 1.0
            return gain * torch.randn(shape, generator=generator) / fan**0.5
        if name.endswith("scale") or ("norm" in name and name.endswith("weight")):
            return 1 + 0.1 * torch.randn(shape, generator=generator)
        return 0.05 * torch.randn(shape, generator=generator)

    return {name: one(name, shape) for name, shape in shapes.items()}


def write_models(folder: Path) -> None:
    """The files that the workflows name, in ComfyUI's folders."""
    files = {
        "diffusion_models/klein.safetensors": transformer_shapes(KLEIN),
        "diffusion_models/dev.safetensors": transformer_shapes(DEV),
        "vae/vae.safetensors": autoencoder_shapes(FLUX2_AUTOENCODER),
        "text_encoders/qwen.safetensors": {
            f"model.{name}": shape for name, shape in language_model_shapes(TEXT_ENCODER, norm=True).items()
        },
    }
    for name, shapes in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            save_file(drawn(shapes), folder / name)
    (folder / "loras").mkdir(exist_ok=True)
    for dialect in LORAS:
        DIALECTS[dialect](KLEIN).save(folder / "loras" / f"{dialect}.safetensors")
    tokenizer = Tokenizer(models.WordLevel(dict(TOKENS), unk_token="\n"))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TOKENS])
    (folder / "text_encoders/qwen").mkdir(exist_ok=True)
    tokenizer.save(str(folder / "text_encoders/qwen/tokenizer.json"))


def write_inputs(folder: Path) -> None:
    """Two references and a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:75, 0:100]
    first = np.stack([columns * 255 // 99, rows * 255 // 74, (rows * columns) % 256], axis=-1)
    Image.fromarray(first.astype(np.uint8)).save(folder / "first.png")
    second = np.stack([(rows // 9 + columns // 11) % 2 * 255] * 3, axis=-1)
    second[20:40, 30:70] = (200, 40, 30)
    Image.fromarray(second.astype(np.uint8)).save(folder / "second.png")
    mask = np.zeros((64, 80, 4), dtype=np.uint8)
    mask[..., 3] = 255
    mask[10:50, 20:60, 3] = 0
    Image.fromarray(mask).save(folder / "mask.png")


def workflows() -> dict[str, dict[str, Any]]:
    """API-format graphs by name."""
    return {
        "distilled": _graph(references=0, cfg=1.0, steps=4),
        "references": _graph(references=2, cfg=5.0, steps=3, negative="", method="lanczos"),
        "kv": _graph(references=2, cfg=1.0, steps=3, method="area", cached=True),
        "dev": _graph(references=1, cfg=1.0, steps=3, method="bicubic", dev=True),
        "ksampler": _ksampler(),
        "masked": _masked(),
        "loras": _with_loras(),
    }


def _loaders(dev: bool = False) -> dict[str, Any]:
    name = "dev.safetensors" if dev else "klein.safetensors"
    return {
        "1": _node("UNETLoader", unet_name=name, weight_dtype="default"),
        "2": _node("CLIPLoader", clip_name="qwen.safetensors", type="flux2", device="default"),
        "3": _node("VAELoader", vae_name="vae.safetensors"),
        "4": _node("CLIPTextEncode", text=PROMPT, clip=["2", 0]),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _graph(
    references: int,
    cfg: float,
    steps: int,
    negative: str | None = None,
    method: str = "lanczos",
    cached: bool = False,
    dev: bool = False,
) -> dict[str, Any]:
    nodes = _loaders(dev)
    positive, model = ["4", 0], ["1", 0]
    if negative is None:
        nodes["5"] = _node("ConditioningZeroOut", conditioning=["4", 0])
    else:
        nodes["5"] = _node("CLIPTextEncode", text=negative, clip=["2", 0])
    minus = ["5", 0]
    if dev:
        nodes["6"] = _node("FluxGuidance", conditioning=positive, guidance=4.0)
        positive = ["6", 0]
    for index, name in enumerate(["first.png", "second.png"][:references]):
        load, scale, encode, plus, less = (f"{digit}{index}" for digit in range(2, 7))
        nodes[load] = _node("LoadImage", image=name)
        nodes[scale] = _node(
            "ImageScaleToTotalPixels", image=[load, 0], upscale_method=method, megapixels=0.01, resolution_steps=1
        )
        nodes[encode] = _node("VAEEncode", pixels=[scale, 0], vae=["3", 0])
        nodes[plus] = _node("ReferenceLatent", conditioning=positive, latent=[encode, 0])
        nodes[less] = _node("ReferenceLatent", conditioning=minus, latent=[encode, 0])
        positive, minus = [plus, 0], [less, 0]
    if cached:
        nodes["7"] = _node("FluxKVCache", model=model)
        model = ["7", 0]
    if dev:
        nodes["10"] = _node("BasicGuider", model=model, conditioning=positive)
    else:
        nodes["10"] = _node("CFGGuider", model=model, positive=positive, negative=minus, cfg=cfg)
    nodes["11"] = _node("RandomNoise", noise_seed=42)
    nodes["12"] = _node("KSamplerSelect", sampler_name="euler")
    nodes["13"] = _node("Flux2Scheduler", steps=steps, width=48, height=64)
    nodes["14"] = _node("EmptyFlux2LatentImage", width=48, height=64, batch_size=2 if references == 0 else 1)
    nodes["15"] = _node(
        "SamplerCustomAdvanced",
        noise=["11", 0],
        guider=["10", 0],
        sampler=["12", 0],
        sigmas=["13", 0],
        latent_image=["14", 0],
    )
    return nodes | _saved(["15", 0])


def _ksampler() -> dict[str, Any]:
    nodes = _loaders()
    nodes["5"] = _node("CLIPTextEncode", text="", clip=["2", 0])
    nodes["14"] = _node("EmptySD3LatentImage", width=48, height=64, batch_size=1)
    nodes["15"] = _node(
        "KSampler",
        model=["1", 0],
        seed=2**63 + 5,
        steps=3,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        positive=["4", 0],
        negative=["5", 0],
        latent_image=["14", 0],
        denoise=1.0,
    )
    return nodes | _saved(["15", 0])


def _masked() -> dict[str, Any]:
    """Only a part of a picture made anew, by the last steps of a schedule."""
    nodes = _loaders()
    nodes["20"] = _node("LoadImage", image="first.png")
    nodes["21"] = _node("ImageScale", image=["20", 0], upscale_method="bilinear", width=48, height=64, crop="center")
    nodes["22"] = _node("VAEEncode", pixels=["21", 0], vae=["3", 0])
    nodes["23"] = _node("LoadImageMask", image="mask.png", channel="alpha")
    nodes["14"] = _node("SetLatentNoiseMask", samples=["22", 0], mask=["23", 0])
    nodes["10"] = _node("BasicGuider", model=["1", 0], conditioning=["4", 0])
    nodes["11"] = _node("RandomNoise", noise_seed=7)
    nodes["12"] = _node("KSamplerSelect", sampler_name="euler")
    nodes["16"] = _node("BasicScheduler", model=["1", 0], scheduler="normal", steps=5, denoise=1.0)
    nodes["13"] = _node("SplitSigmas", sigmas=["16", 0], step=2)
    nodes["15"] = _node(
        "SamplerCustomAdvanced",
        noise=["11", 0],
        guider=["10", 0],
        sampler=["12", 0],
        sigmas=["13", 1],
        latent_image=["14", 0],
    )
    return nodes | _saved(["15", 0])


def _with_loras() -> dict[str, Any]:
    """Two LoRAs in a row, in two dialects."""
    nodes = _graph(references=0, cfg=1.0, steps=3)
    nodes["14"]["inputs"]["batch_size"] = 1
    nodes["8"] = _node("LoraLoaderModelOnly", model=["1", 0], lora_name="ai-toolkit.safetensors", strength_model=0.6)
    nodes["9"] = _node(
        "LoraLoader",
        model=["8", 0],
        clip=["2", 0],
        lora_name="kohya.safetensors",
        strength_model=-0.4,
        strength_clip=1.0,
    )
    nodes["4"]["inputs"]["clip"] = ["9", 1]
    nodes["10"]["inputs"]["model"] = ["9", 0]
    return nodes


def _saved(latent: list[Any]) -> dict[str, Any]:
    return {
        "90": _node("VAEDecode", samples=latent, vae=["3", 0]),
        "91": _node("SaveImage", images=["90", 0], filename_prefix="picture"),
    }


def _post(url: str, document: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def run_in_comfyui(server: str, graph: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Queues a graph and waits; sub-folder and name of each picture that was saved."""
    key = _post(f"{server}/prompt", {"prompt": graph})["prompt_id"]
    for _ in range(3000):
        history = _get(f"{server}/history/{key}")
        if key in history and history[key]["status"]["status_str"] != "success":
            raise RuntimeError(json.dumps(history[key]["status"], indent=1)[:3000])
        if key in history:
            images = [image for output in history[key]["outputs"].values() for image in output.get("images", [])]
            return [(image["subfolder"], image["filename"]) for image in images]
        time.sleep(0.2)
    raise TimeoutError(key)


def main() -> None:
    """COMFYUI_URL names a running server, COMFYUI_BASE its base directory; models and inputs are put there."""
    server, base = os.environ["COMFYUI_URL"], Path(os.environ["COMFYUI_BASE"])
    write_models(base / "models")
    write_inputs(base / "input")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, graph in workflows().items():
        for index, (subfolder, file) in enumerate(run_in_comfyui(server, graph)):
            with Image.open(base / "output" / subfolder / file) as image:
                image.convert("RGB").save(FOLDER / f"{name}-{index}.png", optimize=True)
    system = _get(f"{server}/system_stats")["system"]
    arguments = system["argv"][1 : system["argv"].index("--listen")]  # what comes behind is of the machine alone
    case = {"comfyui": system["comfyui_version"], "torch": system["pytorch_version"], "arguments": arguments}
    (FOLDER / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
