"""Name and shape of every tensor of the three networks, from their configurations alone: without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from headrace.checkpoints.headers import Shape
from headrace.nn.config import TIME_CHANNELS, AutoencoderConfig, LanguageModelConfig, TransformerConfig, VisionConfig

# Running statistics are read with the weights, but nothing learns them, so they are not counted as parameters.
STATISTICS = frozenset({"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"})


def transformer_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Black Forest Labs' names, as in `headrace.nn.transformer.Transformer`."""
    return dict(_transformer(config))


def autoencoder_shapes(config: AutoencoderConfig) -> dict[str, Shape]:
    """Black Forest Labs' names, as in `headrace.nn.autoencoder.Autoencoder`; statistics included."""
    return dict(_autoencoder(config))


def language_model_shapes(
    config: LanguageModelConfig, *, layers: int | None = None, norm: bool = False, head: bool = False
) -> dict[str, Shape]:
    """Hugging Face's names without their prefix, for the first `layers` layers (default: all).

    norm, head: with the final norm and, where it is not the embedding, the output head.
    """
    return dict(_language_model(config, config.num_layers if layers is None else layers, norm, head))


def vision_shapes(config: VisionConfig) -> dict[str, Shape]:
    """Hugging Face's names, as in `headrace.nn.vision.Vision`."""
    return dict(_vision(config))


def count_parameters(shapes: Mapping[str, Shape]) -> int:
    """Exactly the number of learned values in a network of these shapes."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in STATISTICS)


def _transformer(config: TransformerConfig) -> Iterator[tuple[str, Shape]]:
    size, mlp, head = config.hidden_size, config.mlp_size, config.head_dim
    yield "img_in.weight", (size, config.in_channels)
    yield "txt_in.weight", (size, config.context_in_dim)
    for embedder in ("time_in", "guidance_in") if config.guidance_embed else ("time_in",):
        yield f"{embedder}.in_layer.weight", (size, TIME_CHANNELS)
        yield f"{embedder}.out_layer.weight", (size, size)
    yield "double_stream_modulation_img.lin.weight", (6 * size, size)
    yield "double_stream_modulation_txt.lin.weight", (6 * size, size)
    yield "single_stream_modulation.lin.weight", (3 * size, size)
    for index in range(config.depth):
        for stream in ("img", "txt"):
            attention, feed_forward = f"double_blocks.{index}.{stream}_attn", f"double_blocks.{index}.{stream}_mlp"
            yield f"{attention}.qkv.weight", (3 * size, size)
            yield f"{attention}.norm.query_norm.scale", (head,)
            yield f"{attention}.norm.key_norm.scale", (head,)
            yield f"{attention}.proj.weight", (size, size)
            yield f"{feed_forward}.0.weight", (2 * mlp, size)
            yield f"{feed_forward}.2.weight", (size, mlp)
    for index in range(config.depth_single_blocks):
        block = f"single_blocks.{index}"
        yield f"{block}.linear1.weight", (3 * size + 2 * mlp, size)
        yield f"{block}.linear2.weight", (size, size + mlp)
        yield f"{block}.norm.query_norm.scale", (head,)
        yield f"{block}.norm.key_norm.scale", (head,)
    yield "final_layer.linear.weight", (config.in_channels, size)
    yield "final_layer.adaLN_modulation.1.weight", (2 * size, size)


def _autoencoder(config: AutoencoderConfig) -> Iterator[tuple[str, Shape]]:
    latent, encoder, decoder = config.latent_channels, config.channels, config.decoder_channels or config.channels
    last = len(encoder) - 1
    yield from _convolution("encoder.conv_in", 3, encoder[0], 3)
    for level, width in enumerate(encoder):
        inputs = [encoder[max(level - 1, 0)]] + [width] * (config.layers_per_block - 1)
        yield from _resnets(f"encoder.down.{level}", inputs, width)
        if level < last:
            yield from _convolution(f"encoder.down.{level}.downsample.conv", width, width, 3)
    yield from _middle("encoder.mid", encoder[-1])
    yield from _norm("encoder.norm_out", encoder[-1])
    yield from _convolution("encoder.conv_out", encoder[-1], 2 * latent, 3)
    yield from _convolution("encoder.quant_conv", 2 * latent, 2 * latent, 1)
    yield from _convolution("decoder.post_quant_conv", latent, latent, 1)
    yield from _convolution("decoder.conv_in", latent, decoder[-1], 3)
    yield from _middle("decoder.mid", decoder[-1])
    for level, width in enumerate(decoder):
        inputs = [decoder[min(level + 1, last)]] + [width] * config.layers_per_block
        yield from _resnets(f"decoder.up.{level}", inputs, width)
        if level > 0:
            yield from _convolution(f"decoder.up.{level}.upsample.conv", width, width, 3)
    yield from _norm("decoder.norm_out", decoder[0])
    yield from _convolution("decoder.conv_out", decoder[0], 3, 3)
    yield "bn.running_mean", (config.token_channels,)
    yield "bn.running_var", (config.token_channels,)
    yield "bn.num_batches_tracked", ()


def _resnets(level: str, inputs: list[int], width: int) -> Iterator[tuple[str, Shape]]:
    for index, channels in enumerate(inputs):
        yield from _resnet(f"{level}.block.{index}", channels, width)


def _resnet(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _convolution(f"{name}.conv1", inputs, outputs, 3)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _convolution(f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        yield from _convolution(f"{name}.nin_shortcut", inputs, outputs, 1)


def _middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _resnet(f"{name}.block_1", width, width)
    yield from _norm(f"{name}.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _convolution(f"{name}.attn_1.{projection}", width, width, 1)
    yield from _resnet(f"{name}.block_2", width, width)


def _convolution(name: str, inputs: int, outputs: int, side: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _language_model(config: LanguageModelConfig, layers: int, norm: bool, head: bool) -> Iterator[tuple[str, Shape]]:
    size, queries = config.hidden_size, config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    yield "embed_tokens.weight", (config.vocab_size, size)
    for index in range(layers):
        layer = f"layers.{index}"
        yield f"{layer}.input_layernorm.weight", (size,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, size)
        yield f"{layer}.self_attn.k_proj.weight", (keys, size)
        yield f"{layer}.self_attn.v_proj.weight", (keys, size)
        yield f"{layer}.self_attn.o_proj.weight", (size, queries)
        if config.qk_norm:
            yield f"{layer}.self_attn.q_norm.weight", (config.head_dim,)
            yield f"{layer}.self_attn.k_norm.weight", (config.head_dim,)
        yield f"{layer}.post_attention_layernorm.weight", (size,)
        yield f"{layer}.mlp.gate_proj.weight", (config.intermediate_size, size)
        yield f"{layer}.mlp.up_proj.weight", (config.intermediate_size, size)
        yield f"{layer}.mlp.down_proj.weight", (size, config.intermediate_size)
    if norm:
        yield "norm.weight", (size,)
    if head and not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, size)


def _vision(config: VisionConfig) -> Iterator[tuple[str, Shape]]:
    size, inner, text = config.hidden_size, config.intermediate_size, config.text_size
    yield "vision_tower.patch_conv.weight", (size, 3, config.patch_size, config.patch_size)
    yield "vision_tower.ln_pre.weight", (size,)
    for index in range(config.num_layers):
        layer = f"vision_tower.transformer.layers.{index}"
        yield f"{layer}.attention_norm.weight", (size,)
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}.attention.{projection}.weight", (size, size)
        yield f"{layer}.ffn_norm.weight", (size,)
        yield f"{layer}.feed_forward.gate_proj.weight", (inner, size)
        yield f"{layer}.feed_forward.up_proj.weight", (inner, size)
        yield f"{layer}.feed_forward.down_proj.weight", (size, inner)
    yield "multi_modal_projector.norm.weight", (size,)
    yield "multi_modal_projector.patch_merger.merging_layer.weight", (size, size * config.merge_size**2)
    for layer, inputs in (("linear_1", size), ("linear_2", text)):
        yield f"multi_modal_projector.{layer}.weight", (text, inputs)
        if config.projector_bias:
            yield f"multi_modal_projector.{layer}.bias", (text,)
