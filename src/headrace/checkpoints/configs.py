"""Configurations: read from diffusers' and transformers' JSON files, or worked out from the shapes of the tensors.

Numbers come from outside, so each is checked for its type and bounded before anything is built by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.checkpoints.headers import Shape
from headrace.checkpoints.weights import read_json
from headrace.errors import RequestError
from headrace.nn.config import AutoencoderConfig, LanguageModelConfig, TransformerConfig, VisionConfig

MAX_WIDTH = 2**20
MAX_NUMBER = 1e15
MAX_BLOCKS = 1024
ROTARY_AXES = 4
# What transformers assumes where a configuration leaves a number out.
DEFAULT_ROPE_THETA = 10000.0
TRANSFORMERS_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "mistral": {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8},
    "qwen3": {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32},
}


@dataclass(frozen=True)
class Fields:
    """The fields of one configuration file, read with a check of type and range."""

    source: Path
    values: Mapping[str, Any]

    def whole(self, name: str, default: int | None = None, *, at_least: int = 1, at_most: int = MAX_WIDTH) -> int:
        value = self._given(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not at_least <= value <= at_most:
            raise self._wrong(name, value, f"a whole number from {at_least} to {at_most}")
        return value

    def number(self, name: str, default: float | None = None, *, at_most: float = MAX_NUMBER) -> float:
        value = self._given(name, default)
        if type(value) not in (int, float) or not 0 < value <= at_most:
            raise self._wrong(name, value, f"a number above 0 and up to {at_most:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._given(name, default)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._given(name, default)
        if not isinstance(value, str) or not 0 < len(value) <= 200:
            raise self._wrong(name, value, "a short text")
        return value

    def whole_numbers(self, name: str, default: tuple[int, ...] | None = None, *, at_least: int = 1) -> tuple[int, ...]:
        value = self._given(name, default)
        if (
            not isinstance(value, list | tuple)
            or not 1 <= len(value) <= 64
            or not all(type(number) is int and at_least <= number <= MAX_WIDTH for number in value)
        ):
            raise self._wrong(name, value, f"a list of whole numbers from {at_least}")
        return tuple(value)

    def must_be(self, name: str, *accepted: Any) -> None:
        """Refuses a setting that changes the network in a way that no published FLUX.2 model uses."""
        value = self.values.get(name, accepted[0])
        if value not in accepted:
            raise RequestError(
                f"{self.source} sets {name} to {_shown(value)}; only {accepted[0]!r} is known of FLUX.2."
            )

    def _given(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise RequestError(f"{self.source} does not say {name}.")
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> RequestError:
        return RequestError(f"{self.source} sets {name} to {_shown(value)}, which is not {wanted}.")


def read_fields(path: Path) -> Fields:
    return Fields(path, read_json(path))


def read_transformer_config(path: Path) -> TransformerConfig:
    """Reads the config.json of diffusers' Flux2Transformer2DModel."""
    fields = read_fields(path)
    fields.must_be("_class_name", "Flux2Transformer2DModel")
    fields.must_be("patch_size", 1)
    fields.must_be("eps", 1e-6)
    fields.must_be("timestep_guidance_channels", 256)
    in_channels = fields.whole("in_channels", 128)
    fields.must_be("out_channels", None, in_channels)
    heads, head_dim = fields.whole("num_attention_heads", 48), fields.whole("attention_head_dim", 128)
    axes = fields.whole_numbers("axes_dims_rope", (32, 32, 32, 32))
    if sum(axes) != head_dim or len(axes) != ROTARY_AXES or any(axis % 2 for axis in axes):
        raise RequestError(
            f"{path} shares heads of {head_dim} among rotary axes {list(axes)}: "
            "there must be four even numbers with that sum."
        )
    return TransformerConfig(
        in_channels=in_channels,
        context_in_dim=fields.whole("joint_attention_dim", 15360),
        hidden_size=heads * head_dim,
        num_heads=heads,
        depth=fields.whole("num_layers", 8, at_least=0, at_most=MAX_BLOCKS),
        depth_single_blocks=fields.whole("num_single_layers", 48, at_least=0, at_most=MAX_BLOCKS),
        axes_dim=axes,
        theta=fields.whole("rope_theta", 2000),
        mlp_ratio=fields.number("mlp_ratio", 3.0),
        guidance_embed=fields.flag("guidance_embeds", True),
    )


def infer_transformer_config(source: Path, shapes: Mapping[str, Shape]) -> TransformerConfig:
    """Works out a transformer's configuration from its tensors, by Black Forest Labs' names.

    Tensors do not say how rotary positions are shared out; as in every published model, each of the four axes gets a
    quarter of the head and the base is 2000.
    """
    hidden, in_channels = _matrix(source, shapes, "img_in.weight")
    _, context = _matrix(source, shapes, "txt_in.weight")
    depth, depth_single = count_numbered(shapes, "double_blocks."), count_numbered(shapes, "single_blocks.")
    if depth == 0 and depth_single > 0:
        head_dim = _vector(source, shapes, "single_blocks.0.norm.query_norm.scale")
        mlp_size = _matrix(source, shapes, "single_blocks.0.linear2.weight")[1] - hidden
    else:
        head_dim = _vector(source, shapes, "double_blocks.0.img_attn.norm.query_norm.scale")
        _, mlp_size = _matrix(source, shapes, "double_blocks.0.img_mlp.2.weight")
    if head_dim % (2 * ROTARY_AXES) or hidden % head_dim:
        raise RequestError(
            f"{source} has heads of {head_dim} in a width of {hidden}, which cannot be FLUX.2's rotary attention."
        )
    return TransformerConfig(
        in_channels=in_channels,
        context_in_dim=context,
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        depth=depth,
        depth_single_blocks=depth_single,
        axes_dim=(head_dim // ROTARY_AXES,) * ROTARY_AXES,
        theta=2000,
        mlp_ratio=mlp_size / hidden,
        guidance_embed="guidance_in.in_layer.weight" in shapes,
    )


def read_autoencoder_config(path: Path) -> AutoencoderConfig:
    """Reads the config.json of diffusers' AutoencoderKLFlux2."""
    fields = read_fields(path)
    fields.must_be("_class_name", "AutoencoderKLFlux2")
    fields.must_be("act_fn", "silu")
    fields.must_be("in_channels", 3)
    fields.must_be("out_channels", 3)
    fields.must_be("patch_size", [2, 2])
    for part in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        fields.must_be(part, True)
    channels = fields.whole_numbers("block_out_channels", (128, 256, 512, 512))
    decoder_channels = None
    if fields.values.get("decoder_block_out_channels"):
        decoder_channels = fields.whole_numbers("decoder_block_out_channels")
    config = AutoencoderConfig(
        channels=channels,
        decoder_channels=None if decoder_channels == channels else decoder_channels,
        layers_per_block=fields.whole("layers_per_block", 2, at_most=MAX_BLOCKS),
        latent_channels=fields.whole("latent_channels", 32),
        norm_groups=fields.whole("norm_num_groups", 32),
        batch_norm_eps=fields.number("batch_norm_eps", 1e-4),
    )
    return _checked_autoencoder(path, config)


def infer_autoencoder_config(source: Path, shapes: Mapping[str, Shape], *, norm_groups: int = 32) -> AutoencoderConfig:
    """Works out an autoencoder's configuration from its tensors, by Black Forest Labs' names.

    Tensors do not say how many groups their norms have: the published 32, unless the caller knows better.
    """
    if "bn.running_mean" not in shapes:
        raise RequestError(
            f"{source} is an autoencoder, but not FLUX.2's: it has no batch-norm statistics (bn.running_mean)."
        )
    levels = count_numbered(shapes, "encoder.down.")
    decoder_levels = count_numbered(shapes, "decoder.up.")
    if decoder_levels != levels:
        raise RequestError(f"{source} has {levels} levels in its encoder but {decoder_levels} in its decoder.")
    channels = tuple(_vector(source, shapes, f"encoder.down.{level}.block.0.norm2.weight") for level in range(levels))
    decoder = tuple(_vector(source, shapes, f"decoder.up.{level}.block.0.norm2.weight") for level in range(levels))
    config = AutoencoderConfig(
        channels=channels,
        decoder_channels=None if decoder == channels else decoder,
        layers_per_block=count_numbered(shapes, "encoder.down.0.block."),
        latent_channels=_vector(source, shapes, "decoder.post_quant_conv.bias"),
        norm_groups=norm_groups,
    )
    return _checked_autoencoder(source, config)


def _checked_autoencoder(source: Path, config: AutoencoderConfig) -> AutoencoderConfig:
    for width in (*config.channels, *(config.decoder_channels or ())):
        if width % config.norm_groups:
            raise RequestError(
                f"{source} has a level of {width} channels, which cannot be shared among the {config.norm_groups} "
                "groups of its norms."
            )
    if config.decoder_channels is not None and len(config.decoder_channels) != len(config.channels):
        raise RequestError(f"{source} has not the same number of levels in its encoder and its decoder.")
    return config


def read_language_model_config(path: Path) -> tuple[LanguageModelConfig, str]:
    """Reads the config.json of a Hugging Face language model, as transformers 4 or 5 writes it.

    Returns the configuration and the model's kind, "mistral" or "qwen3". A vision-language model's text part counts.
    """
    fields = read_fields(path)
    text = fields.values.get("text_config")
    # Of a model with eyes transformers reads this one setting outside, and takes it for true where it is left out.
    tied = fields.flag("tie_word_embeddings", isinstance(text, dict))
    if isinstance(text, dict):
        fields = Fields(path, text)
    kind = fields.values.get("model_type")
    if kind not in ("mistral", "qwen3"):
        raise RequestError(
            f"{path} describes a language model of type {_shown(kind)}; FLUX.2's text encoders are Mistral 3 "
            "(FLUX.2-dev) and Qwen3 (FLUX.2-klein)."
        )
    fields.must_be("hidden_act", "silu")
    fields.must_be("attention_bias", False)
    fields.must_be("mlp_bias", False)
    # transformers 4 leaves out of a vision-language model's text part whatever is its class's default.
    defaults = TRANSFORMERS_DEFAULTS[kind]
    hidden = fields.whole("hidden_size", 4096)
    heads = fields.whole("num_attention_heads", 32)
    layers = fields.whole("num_hidden_layers", 32, at_most=MAX_BLOCKS)
    kv_heads = fields.whole("num_key_value_heads", defaults["num_key_value_heads"])
    head_dim = fields.whole("head_dim", 128 if kind == "qwen3" else hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise RequestError(
            f"{path} has {heads} query heads for {kv_heads} key heads of {head_dim}: they do not divide."
        )
    config = LanguageModelConfig(
        vocab_size=fields.whole("vocab_size", defaults["vocab_size"], at_most=2**24),
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size", defaults["intermediate_size"]),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=_rope_theta(fields),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        qk_norm=kind == "qwen3",
        sliding_window=_sliding_window(fields, kind, layers),
        tie_word_embeddings=tied,
    )
    return config, str(kind)


def read_vision_config(path: Path, text: LanguageModelConfig) -> VisionConfig | None:
    """What the config.json of a language model says of its eyes; None where it has none.

    text: the language model, which the projector leads to.
    """
    fields = read_fields(path)
    tower = fields.values.get("vision_config")
    if not isinstance(tower, dict):
        return None
    fields.must_be("projector_hidden_act", "gelu")
    fields.must_be("vision_feature_layer", -1)
    own = Fields(path, tower)
    own.must_be("model_type", "pixtral")
    own.must_be("num_channels", 3)
    activation = own.text("hidden_act", "gelu")
    if activation not in ("silu", "gelu"):
        raise RequestError(f"{path} has a vision tower with {_shown(activation)}; only silu and gelu are known.")
    hidden, heads = own.whole("hidden_size", 1024), own.whole("num_attention_heads", 16)
    if hidden % (4 * heads):
        raise RequestError(f"{path} has a vision tower {hidden} wide, which {heads} heads do not share.")
    patch, merge = own.whole("patch_size", 14), fields.whole("spatial_merge_size", 2, at_most=16)
    return VisionConfig(
        text_size=text.hidden_size,
        norm_eps=text.rms_norm_eps,
        hidden_size=hidden,
        intermediate_size=own.whole("intermediate_size", 4096),
        num_layers=own.whole("num_hidden_layers", 24, at_most=MAX_BLOCKS),
        num_heads=heads,
        image_size=own.whole("image_size", 1540, at_least=patch * merge, at_most=8192),
        patch_size=patch,
        rope_theta=_rope_theta(own, ("axial",)),
        activation="silu" if activation == "silu" else "gelu",
        merge_size=merge,
        projector_bias=fields.flag("multimodal_projector_bias", False),
        picture_token=fields.whole("image_token_index", 10, at_least=0),
    )


def _rope_theta(fields: Fields, kinds: tuple[str, ...] = ()) -> float:
    """transformers 4 writes rope_theta and rope_scaling, transformers 5 both within rope_parameters."""
    parameters = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"{fields.source} has rotary settings that are not an object.")
    rope = Fields(fields.source, {"rope_theta": fields.values.get("rope_theta"), **parameters})
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind not in ("default", *kinds):
        raise RequestError(
            f"{fields.source} scales its rotary positions by {_shown(kind)}; only 'default' is supported."
        )
    return rope.number("rope_theta", DEFAULT_ROPE_THETA)


def _sliding_window(fields: Fields, kind: str, layers: int) -> int | None:
    """The attention window of all layers, as transformers understands the settings of each kind of model."""
    if kind == "mistral":
        # Left out, transformers takes 4096; null means no window.
        return None if fields.values.get("sliding_window", 4096) is None else fields.whole("sliding_window", 4096)
    if not fields.flag("use_sliding_window", False) or fields.values.get("sliding_window", 4096) is None:
        return None
    kinds = fields.values.get("layer_types")
    if kinds is None:
        first = fields.values.get("max_window_layers", 28)
        if type(first) is not int:
            raise RequestError(
                f"{fields.source} sets max_window_layers to {_shown(first)}, which is not a whole number."
            )
        kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]
    if all(layer == "full_attention" for layer in kinds):
        return None
    if all(layer == "sliding_attention" for layer in kinds):
        return fields.whole("sliding_window", 4096)
    raise RequestError(
        f"{fields.source} uses a sliding window in some layers only, which no published text encoder does."
    )


def _matrix(source: Path, shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    shape = _shape(source, shapes, name, 2)
    return shape[0], shape[1]


def _vector(source: Path, shapes: Mapping[str, Shape], name: str) -> int:
    return _shape(source, shapes, name, 1)[0]


def _shape(source: Path, shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise RequestError(f"{source} has no tensor {name}, so its sizes cannot be worked out.")
    if len(shape) != dimensions or not all(1 <= size <= MAX_WIDTH for size in shape):
        raise RequestError(f"{source} holds {name} with shape {list(shape)}, which FLUX.2 cannot have.")
    return shape


def count_numbered(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in the tensors' names, without a gap from 0."""
    numbers = {name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)}
    count = 0
    while str(count) in numbers:
        count += 1
    return count


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
