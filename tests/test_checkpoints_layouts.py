"""The table of names is a bijection, on every size a model can have, and agrees with what diffusers really saves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_files import CONFORMANCE, drawn
from headrace.checkpoints.export import assemble
from headrace.checkpoints.headers import Shape
from headrace.checkpoints.layouts import (
    AUTOENCODER_RULES,
    TRANSFORMER_RULES,
    Rule,
    diffusers_names,
    from_diffusers,
    our_name,
    spelled_as_ours,
    to_diffusers,
)
from headrace.checkpoints.shapes import autoencoder_shapes, transformer_shapes
from headrace.checkpoints.weights import read_weights
from headrace.nn.config import AutoencoderConfig, TransformerConfig

transformers = st.builds(
    lambda heads, axis, depth, single, guidance: TransformerConfig(
        in_channels=4,
        context_in_dim=6,
        hidden_size=heads * 4 * axis,
        num_heads=heads,
        depth=depth,
        depth_single_blocks=single,
        axes_dim=(axis,) * 4,
        guidance_embed=guidance,
    ),
    st.integers(1, 3),
    st.sampled_from([2, 4]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
)
autoencoders = st.integers(2, 5).flatmap(
    lambda levels: st.builds(
        AutoencoderConfig,
        channels=st.tuples(*[st.sampled_from([4, 8])] * levels),
        decoder_channels=st.none() | st.tuples(*[st.sampled_from([4, 8])] * levels),
        layers_per_block=st.integers(1, 3),
        latent_channels=st.sampled_from([2, 4]),
        norm_groups=st.just(4),
    )
)


def check_bijection(rules: tuple[Rule, ...], shapes: dict[str, Shape], levels: int) -> None:
    there = to_diffusers(rules, shapes, levels)
    back = from_diffusers(rules, shapes, levels)
    assert set(back) == set(shapes)
    assert sum(math.prod(assembly.shape) for assembly in there.values()) == sum(map(math.prod, shapes.values()))
    for name in shapes:
        found = diffusers_names(rules, name, levels)
        assert found is not None
        rule, theirs = found
        assert all(our_name(rules, their_name, levels) == (rule, name) for their_name in theirs)
    tensors = drawn(shapes)
    stored = assemble(there, tensors)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        name: assembly.shape for name, assembly in there.items()
    }
    again = assemble(back, stored)
    assert all(torch.equal(again[name], tensors[name]) for name in shapes)


@settings(deadline=None, max_examples=20)
@given(config=transformers)
def test_transformer_names_are_a_bijection(config: TransformerConfig) -> None:
    check_bijection(TRANSFORMER_RULES, transformer_shapes(config), 0)


@settings(deadline=None, max_examples=20)
@given(config=autoencoders)
def test_autoencoder_names_are_a_bijection(config: AutoencoderConfig) -> None:
    check_bijection(AUTOENCODER_RULES, autoencoder_shapes(config), len(config.channels))


@given(name=st.text("abdeiklmnoqrstuvw_.0123456789", max_size=40))
def test_other_names_are_nobodys(name: str) -> None:
    for rules in (TRANSFORMER_RULES, AUTOENCODER_RULES):
        ours = our_name(rules, name, 4)
        assert ours is None or diffusers_names(rules, ours[1], 4) is not None


@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.01.img_attn.proj.weight",
        "double_blocks.0.img_attn.proj.bias",
        "decoder.up.4.upsample.conv.weight",
        "encoder.up.0.upsample.conv.weight",
        "ximg_in.weight",
        "img_in.weight\n",
        "img_inxweight",
    ],
)
def test_names_match_exactly(name: str) -> None:
    assert diffusers_names(TRANSFORMER_RULES + AUTOENCODER_RULES, name, 4) is None


def test_the_swap_of_the_last_modulation() -> None:
    shapes = {"final_layer.adaLN_modulation.1.weight": (4, 1)}
    ours = {"final_layer.adaLN_modulation.1.weight": torch.tensor([[1.0], [2.0], [3.0], [4.0]])}
    theirs = assemble(to_diffusers(TRANSFORMER_RULES, shapes), ours)
    assert theirs["norm_out.linear.weight"].flatten().tolist() == [3.0, 4.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("single_blocks.3.norm.query_norm.weight", "single_blocks.3.norm.query_norm.scale"),
        ("double_blocks.0.txt_attn.norm.key_norm.weight", "double_blocks.0.txt_attn.norm.key_norm.scale"),
        ("quant_conv.bias", "encoder.quant_conv.bias"),
        ("post_quant_conv.weight", "decoder.post_quant_conv.weight"),
        ("encoder.quant_conv.bias", "encoder.quant_conv.bias"),
        ("img_in.weight", "img_in.weight"),
    ],
)
def test_other_spellings(name: str, ours: str) -> None:
    assert spelled_as_ours(name) == ours


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="the reference pipelines are not here")
def test_agrees_with_what_diffusers_saved() -> None:
    stored = read_weights(CONFORMANCE / "diffusers" / "dev" / "transformer").tensors
    config = TransformerConfig(
        context_in_dim=144, hidden_size=128, num_heads=4, depth=2, depth_single_blocks=3, axes_dim=(8, 8, 8, 8)
    )
    wanted = to_diffusers(TRANSFORMER_RULES, transformer_shapes(config))
    assert {name: entry.shape for name, entry in stored.items()} == {name: made.shape for name, made in wanted.items()}
    stored = read_weights(CONFORMANCE / "diffusers" / "dev" / "vae").tensors
    shapes = autoencoder_shapes(AutoencoderConfig(channels=(16, 32, 32, 32), layers_per_block=1, norm_groups=8))
    wanted = to_diffusers(AUTOENCODER_RULES, shapes, 4)
    assert {name: entry.shape for name, entry in stored.items()} == {name: made.shape for name, made in wanted.items()}
