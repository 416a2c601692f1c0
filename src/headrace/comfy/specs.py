"""The ComfyUI nodes that Headrace knows: inputs, outputs and what else a saved workflow holds for them, as data.

Names, types, ranges and orders are those that ComfyUI gives under `/object_info` and, for the GGUF loaders, those of
city96's ComfyUI-GGUF. Inputs stand in ComfyUI's order, which is what `widgets_values` in a saved workflow counts by. No
node of this set gives lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Value = str | int | float | bool

# What an input or output of this type accepts or gives depends on what it is linked to.
ANY = "*"

# Inputs of these types are widgets: they hold a value of their own where nothing is linked to them.
WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})

MAX_SEED = 2**64 - 1
MAX_SIDE = 16_384
_MAX_PRIMITIVE = 2**63 - 1


@dataclass(frozen=True)
class Input:
    """One input of a node.

    type: what may be linked to it; where it is one of WIDGET_TYPES, also what kind of value it holds.
    default: the value a new node has; None where there is none, as for links and files.
    minimum, maximum: inclusive bounds of a number. grid: the step that ComfyUI's page rounds a primitive's number to,
    and before that to `precision`, where it is given.
    options: what a COMBO may be; empty where that is not a fixed list.
    folder: where a COMBO names a file, the folder under `models/` (or `input`) that it is looked for in.
    required: whether the node is refused without it.
    control: a seed, after which a saved workflow keeps what becomes of it after a run ("fixed", "randomize" ...).
    upload: a file, for which a saved workflow keeps a further value at the end.
    dynamic_prompt: a text in which ComfyUI's page replaces `{a|b}` by one of the choices before it sends it.
    """

    name: str
    type: str
    default: Value | None = None
    minimum: float | None = None
    maximum: float | None = None
    grid: float = 1
    precision: float | None = None
    options: tuple[str, ...] = ()
    folder: str | None = None
    required: bool = True
    control: bool = False
    upload: bool = False
    dynamic_prompt: bool = False

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGET_TYPES


@dataclass(frozen=True)
class Output:
    name: str
    type: str


@dataclass(frozen=True)
class NodeSpec:
    """A node class. `saves`: what it makes leaves the graph (an output node, in ComfyUI's words)."""

    class_type: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    saves: bool = False

    def input(self, name: str) -> Input | None:
        return next((entry for entry in self.inputs if entry.name == name), None)

    def widget_slots(self) -> Iterator[Input | None]:
        """What each entry of `widgets_values` belongs to; None for those that only ComfyUI's page uses."""
        for entry in self.inputs:
            if entry.is_widget:
                yield entry
                if entry.control:
                    yield None
        yield from (None for entry in self.inputs if entry.upload)


def _link(name: str, kind: str | None = None, *, required: bool = True) -> Input:
    return Input(name, kind or name.upper(), required=required)


def _integer(name: str, default: int, minimum: int, maximum: int, *, grid: int = 1, required: bool = True) -> Input:
    return Input(name, "INT", default, minimum, maximum, grid, required=required)


def _number(
    name: str, default: float, minimum: float, maximum: float, *, grid: float = 0.01, precision: float | None = None
) -> Input:
    return Input(name, "FLOAT", default, minimum, maximum, grid, precision)


def _size(default: int, grid: int) -> tuple[Input, Input]:
    return _integer("width", default, 16, MAX_SIDE, grid=grid), _integer("height", default, 16, MAX_SIDE, grid=grid)


def _seed(name: str) -> Input:
    return Input(name, "INT", 0, 0, MAX_SEED, control=True)


def _choice(name: str, options: tuple[str, ...], *, required: bool = True) -> Input:
    return Input(name, "COMBO", options[0], options=options, required=required)


def _file(name: str, folder: str) -> Input:
    return Input(name, "COMBO", folder=folder, upload=folder == "input")


def _prompt(name: str) -> Input:
    return Input(name, "STRING", "", dynamic_prompt=True)


_RESAMPLING = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
_WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
_SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
_SAMPLERS = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0",
    "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm",
    "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip

# Which types there are changes with every version of ComfyUI, so they are not listed.
_CLIP_TYPE = Input("type", "COMBO")
_SAMPLED = (Output("output", "LATENT"), Output("denoised_output", "LATENT"))
_SPLIT = (Output("high_sigmas", "SIGMAS"), Output("low_sigmas", "SIGMAS"))


def _node(
    class_type: str, inputs: tuple[Input, ...], outputs: tuple[Output | str, ...], *, saves: bool = False
) -> NodeSpec:
    named = tuple(output if isinstance(output, Output) else Output(output, output) for output in outputs)
    return NodeSpec(class_type, inputs, named, saves)


_NODES = (
    # Files in.
    _node("UNETLoader", (_file("unet_name", "diffusion_models"), _choice("weight_dtype", _WEIGHT_DTYPES)), ("MODEL",)),
    _node("UnetLoaderGGUF", (_file("unet_name", "diffusion_models"),), ("MODEL",)),
    _node(
        "CLIPLoader",
        (_file("clip_name", "text_encoders"), _CLIP_TYPE, _choice("device", ("default", "cpu"), required=False)),
        ("CLIP",),
    ),
    _node("CLIPLoaderGGUF", (_file("clip_name", "text_encoders"), _CLIP_TYPE), ("CLIP",)),
    _node("VAELoader", (_file("vae_name", "vae"),), ("VAE",)),
    _node(
        "LoraLoader",
        (
            _link("model"),
            _link("clip"),
            _file("lora_name", "loras"),
            _number("strength_model", 1.0, -100.0, 100.0),
            _number("strength_clip", 1.0, -100.0, 100.0),
        ),
        ("MODEL", "CLIP"),
    ),
    _node(
        "LoraLoaderModelOnly",
        (_link("model"), _file("lora_name", "loras"), _number("strength_model", 1.0, -100.0, 100.0)),
        ("MODEL",),
    ),
    _node("LoadImage", (_file("image", "input"),), ("IMAGE", "MASK")),
    _node("LoadImageMask", (_file("image", "input"), _choice("channel", ("alpha", "red", "green", "blue"))), ("MASK",)),
    # Pictures.
    _node(
        "ImageScale",
        (
            _link("image"),
            _choice("upscale_method", _RESAMPLING),
            _integer("width", 512, 0, MAX_SIDE),
            _integer("height", 512, 0, MAX_SIDE),
            _choice("crop", ("disabled", "center")),
        ),
        ("IMAGE",),
    ),
    _node(
        "ImageScaleBy",
        (_link("image"), _choice("upscale_method", _RESAMPLING), _number("scale_by", 1.0, 0.01, 8.0)),
        ("IMAGE",),
    ),
    _node(
        "ImageScaleToTotalPixels",
        (
            _link("image"),
            _choice("upscale_method", _RESAMPLING),
            _number("megapixels", 1.0, 0.01, 16.0),
            # Required since it exists, which workflows from before December 2025 cannot know.
            _integer("resolution_steps", 1, 1, 256, required=False),
        ),
        ("IMAGE",),
    ),
    _node("FluxKontextImageScale", (_link("image"),), ("IMAGE",)),
    _node("ImageBatch", (_link("image1", "IMAGE"), _link("image2", "IMAGE")), ("IMAGE",)),
    _node(
        "GetImageSize",
        (_link("image"),),
        (Output("width", "INT"), Output("height", "INT"), Output("batch_size", "INT")),
    ),
    _node(
        "SaveImage",
        (_link("images", "IMAGE"), Input("filename_prefix", "STRING", "ComfyUI")),
        (Output("images", "IMAGE"),),
        saves=True,
    ),
    _node("PreviewImage", (_link("images", "IMAGE"),), (Output("images", "IMAGE"),), saves=True),
    # Words.
    _node("CLIPTextEncode", (_prompt("text"), _link("clip")), ("CONDITIONING",)),
    _node("ConditioningZeroOut", (_link("conditioning"),), ("CONDITIONING",)),
    _node("FluxGuidance", (_link("conditioning"), _number("guidance", 3.5, 0.0, 100.0, grid=0.1)), ("CONDITIONING",)),
    _node("FluxDisableGuidance", (_link("conditioning"),), ("CONDITIONING",)),
    _node("ReferenceLatent", (_link("conditioning"), _link("latent", required=False)), ("CONDITIONING",)),
    _node(
        "FluxKontextMultiReferenceLatentMethod",
        (
            _link("conditioning"),
            _choice("reference_latents_method", ("offset", "index", "uxo/uno", "index_timestep_zero")),
        ),
        ("CONDITIONING",),
    ),
    # Latents.
    _node("EmptyFlux2LatentImage", (*_size(1024, 16), _integer("batch_size", 1, 1, 4096)), ("LATENT",)),
    _node("EmptySD3LatentImage", (*_size(1024, 16), _integer("batch_size", 1, 1, 4096)), ("LATENT",)),
    _node(
        "EmptyLatentImage",
        (*_size(512, 8), _integer("batch_size", 1, 1, 4096)),
        ("LATENT",),
    ),
    _node("VAEEncode", (_link("pixels", "IMAGE"), _link("vae")), ("LATENT",)),
    _node(
        "VAEEncodeForInpaint",
        (_link("pixels", "IMAGE"), _link("vae"), _link("mask"), _integer("grow_mask_by", 6, 0, 64)),
        ("LATENT",),
    ),
    _node("SetLatentNoiseMask", (_link("samples", "LATENT"), _link("mask")), ("LATENT",)),
    _node("VAEDecode", (_link("samples", "LATENT"), _link("vae")), ("IMAGE",)),
    # Models.
    _node("FluxKVCache", (_link("model"),), ("MODEL",)),
    _node(
        "ModelSamplingFlux",
        (
            _link("model"),
            _number("max_shift", 1.15, 0.0, 100.0),
            _number("base_shift", 0.5, 0.0, 100.0),
            *_size(1024, 8),
        ),
        ("MODEL",),
    ),
    # Sampling.
    _node("RandomNoise", (_seed("noise_seed"),), ("NOISE",)),
    _node("DisableNoise", (), ("NOISE",)),
    _node("KSamplerSelect", (_choice("sampler_name", _SAMPLERS),), ("SAMPLER",)),
    _node("Flux2Scheduler", (_integer("steps", 20, 1, 4096), *_size(1024, 1)), ("SIGMAS",)),
    _node(
        "BasicScheduler",
        (
            _link("model"),
            _choice("scheduler", _SCHEDULERS),
            _integer("steps", 20, 1, 10_000),
            _number("denoise", 1.0, 0.0, 1.0),
        ),
        ("SIGMAS",),
    ),
    _node("SplitSigmas", (_link("sigmas"), _integer("step", 0, 0, 10_000)), _SPLIT),
    _node("SplitSigmasDenoise", (_link("sigmas"), _number("denoise", 1.0, 0.0, 1.0)), _SPLIT),
    _node("BasicGuider", (_link("model"), _link("conditioning")), ("GUIDER",)),
    _node(
        "CFGGuider",
        (
            _link("model"),
            _link("positive", "CONDITIONING"),
            _link("negative", "CONDITIONING"),
            _number("cfg", 8.0, 0.0, 100.0, grid=0.1, precision=0.01),
        ),
        ("GUIDER",),
    ),
    _node(
        "SamplerCustomAdvanced",
        (_link("noise"), _link("guider"), _link("sampler"), _link("sigmas"), _link("latent_image", "LATENT")),
        _SAMPLED,
    ),
    _node(
        "KSampler",
        (
            _link("model"),
            _seed("seed"),
            _integer("steps", 20, 1, 10_000),
            _number("cfg", 8.0, 0.0, 100.0, grid=0.1, precision=0.01),
            _choice("sampler_name", _SAMPLERS),
            _choice("scheduler", _SCHEDULERS),
            _link("positive", "CONDITIONING"),
            _link("negative", "CONDITIONING"),
            _link("latent_image", "LATENT"),
            _number("denoise", 1.0, 0.0, 1.0),
        ),
        ("LATENT",),
    ),
    # Values.
    _node(
        "ComfySwitchNode",
        (
            Input("switch", "BOOLEAN", False),
            _link("on_false", ANY, required=False),
            _link("on_true", ANY, required=False),
        ),
        (Output("output", ANY),),
    ),
    _node("PrimitiveInt", (Input("value", "INT", 0, -_MAX_PRIMITIVE, _MAX_PRIMITIVE, control=True),), ("INT",)),
    _node("PrimitiveFloat", (_number("value", 0.0, -_MAX_PRIMITIVE, _MAX_PRIMITIVE, grid=0.1),), ("FLOAT",)),
    _node("PrimitiveBoolean", (Input("value", "BOOLEAN", False),), ("BOOLEAN",)),
    _node("PrimitiveString", (Input("value", "STRING", ""),), ("STRING",)),
    _node("PrimitiveStringMultiline", (Input("value", "STRING", ""),), ("STRING",)),
)

SPECS: Mapping[str, NodeSpec] = {spec.class_type: spec for spec in _NODES}

_SERVICE = "it calls a service; a FLUX.2 template such as image_flux2_klein_text_to_image runs here"
_KSAMPLER = "use KSampler, or SamplerCustomAdvanced"
_SWITCH = "use ComfySwitchNode (If/Else Switch)"
_SAVE = "use SaveImage"
_LOADERS = "use UNETLoader, CLIPLoader and VAELoader"
_LORA = "use LoraLoaderModelOnly, one for each LoRA"
_REFERENCES = "use CLIPTextEncode, with ReferenceLatent for each picture"

# What to use instead of nodes that people meet; a name's beginning stands for all nodes that share it.
_INSTEAD = {
    "Any Switch": _SWITCH,
    "CheckpointLoader": _LOADERS,
    "CLIPTextEncodeFlux": "use CLIPTextEncode and FluxGuidance",
    "ControlNet": "FLUX.2 takes the picture itself: use ReferenceLatent",
    "DualCLIPLoader": "FLUX.2 has one text encoder: use CLIPLoader",
    "EmptyHunyuanLatentVideo": "use EmptyFlux2LatentImage",
    "Flux2ImageNode": _SERVICE,
    "Flux2MaxImageNode": _SERVICE,
    "Flux2ProImageNode": _SERVICE,
    "FluxKontextMaxImageNode": _SERVICE,
    "FluxKontextProImageNode": _SERVICE,
    "FluxProUltraImageNode": _SERVICE,
    "ComfyCloudFlux2": _SERVICE,
    "ByteDance": _SERVICE,
    "Gemini": _SERVICE,
    "Headrace": "it runs inside ComfyUI; here use headrace generate, or the template klein_text_to_image",
    "Grok": _SERVICE,
    "IdeogramV": _SERVICE,
    "OpenAI": _SERVICE,
    "Recraft": _SERVICE,
    "Stability": _SERVICE,
    "Image Save": _SAVE,
    "ImageResize": "use ImageScale",
    "ImageScaleToMaxDimension": "use ImageScale or ImageScaleToTotalPixels",
    "KSampler": _KSAMPLER,
    "LoadImageOutput": "use LoadImage",
    "LoraLoaderStack": _LORA,
    "Lora Loader": _LORA,
    "Nunchaku": _LOADERS,
    "Power Lora Loader": _LORA,
    "ResizeImageMaskNode": "use ImageScale or ImageScaleToTotalPixels",
    "SamplerCustom": "use SamplerCustomAdvanced",
    "SaveAnimated": _SAVE,
    "SaveImage": _SAVE,
    "Seed (": "use RandomNoise",
    "TextEncodeQwenImageEdit": _REFERENCES,
    "UltimateSDUpscale": "use ImageScale before VAEEncode",
    "UnetLoaderGGUFAdvanced": "use UnetLoaderGGUF",
    "VAEDecodeTiled": "use VAEDecode, which takes little memory here",
    "VAEEncodeTiled": "use VAEEncode",
}


def instead(class_type: str) -> str | None:
    """What a person could use instead of a node that is not known; None where nothing is known to come near."""
    matches = [start for start in _INSTEAD if class_type.startswith(start)]
    return _INSTEAD[max(matches, key=len)] if matches else None
