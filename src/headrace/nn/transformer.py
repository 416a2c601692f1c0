"""The FLUX.2 transformer: noisy picture tokens, text embeddings and a time to the velocity of the flow.

Double-stream blocks give text and picture their own weights and let them meet in attention; single-stream blocks then
treat both as one sequence. Modulation is computed once and shared by all blocks of a kind, every feed-forward layer is
a gated SiLU, and there is no bias anywhere. Parameter names are those of Black Forest Labs' checkpoints.

The sequence is always text, then picture, then references. Shapes below: B pictures, L text tokens, N picture tokens,
M reference tokens, D the hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.nn.attention import Rotation, attention, rotate, rotation
from headrace.nn.config import TIME_CHANNELS, TransformerConfig
from headrace.nn.linear import Linear

NORM_EPS = 1e-6
TIME_FACTOR = 1000.0
TIME_MAX_PERIOD = 10000.0


class KeyValue(NamedTuple):
    """Rotated keys and values of the references in one block, each (1 or B, heads, M, head_dim)."""

    key: Tensor
    value: Tensor

    def rows(self, part: slice) -> KeyValue:
        """Those of some pictures of a batch, or the ones that serve all."""
        return KeyValue(_rows(self.key, part), _rows(self.value, part))


class Modulation(NamedTuple):
    """How one residual branch is steered, each (1 or B, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def modulate(self, x: Tensor) -> Tensor:
        """Layer norm without learned parts, then scale and shift."""
        return modulated_norm(x, self.shift, self.scale)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """The residual `x` with what the branch made of it."""
        return x + self.gate * branch

    def rows(self, part: slice) -> Modulation:
        """That of some pictures of a batch, or the one that serves all."""
        return Modulation(*(_rows(tensor, part) for tensor in self))


class SplitModulation(NamedTuple):
    """One branch's modulation of a sequence whose last `length` tokens are steered by another time than the others."""

    others: Modulation
    last: Modulation
    length: int

    def modulate(self, x: Tensor) -> Tensor:
        """As `Modulation.modulate`, each part by its own."""
        return torch.cat([self.others.modulate(x[:, : -self.length]), self.last.modulate(x[:, -self.length :])], dim=1)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """As `Modulation.add`, each part by its own."""
        others = self.others.add(x[:, : -self.length], branch[:, : -self.length])
        return torch.cat([others, self.last.add(x[:, -self.length :], branch[:, -self.length :])], dim=1)

    def rows(self, part: slice) -> SplitModulation:
        """As `Modulation.rows`."""
        return SplitModulation(self.others.rows(part), self.last.rows(part), self.length)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`(1 + scale) * layer_norm(x) + shift`."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def time_embedding(time: Tensor, channels: int = TIME_CHANNELS) -> Tensor:
    """Sinusoids of `1000 * time`, cosines first (Vaswani et al. 2017, section 3.5).

    time: (B,) in float32. Returns (B, channels).
    """
    half = channels // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=time.device) * (-math.log(TIME_MAX_PERIOD) / half)
    )
    angles = (time.float() * TIME_FACTOR)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLPEmbedder(nn.Module):
    """Two linear layers with a SiLU between: time or guidance sinusoids to a vector of the hidden size."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = Linear(TIME_CHANNELS, hidden_size)
        self.out_layer = Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class SharedModulation(nn.Module):
    """The time vector to `branches` triples of shift, scale and gate, shared by all blocks of a kind."""

    def __init__(self, hidden_size: int, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.lin = Linear(hidden_size, 3 * branches * hidden_size)

    def forward(self, vector: Tensor) -> tuple[Modulation, ...]:
        parts = self.lin(F.silu(vector))[:, None, :].chunk(3 * self.branches, dim=-1)
        return tuple(Modulation(*parts[3 * i : 3 * i + 3]) for i in range(self.branches))


class QKNorm(nn.Module):
    """Root-mean-square norm of every head's queries and keys."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = Scale(head_dim)
        self.key_norm = Scale(head_dim)


class Scale(nn.Module):
    """Root-mean-square norm with a learned scale per channel; the result is in float32, for the rotation after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        # torch's own rms_norm is put together from more passes over the values on a CPU, which took twice as long.
        values = x.float()
        mean_square = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square() / x.shape[-1]
        return values * torch.rsqrt(mean_square + NORM_EPS) * self.scale


def split_heads(qkv: Tensor, norm: QKNorm, spin: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S, 3D) -> queries, keys (normed and rotated) and values, each (B, heads, S, head_dim)."""
    head_dim = norm.query_norm.scale.shape[0]
    q, k, v = qkv.view(*qkv.shape[:-1], 3, -1, head_dim).permute(2, 0, 3, 1, 4)
    return rotate(norm.query_norm(q), spin).to(q.dtype), rotate(norm.key_norm(k), spin).to(k.dtype), v


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, S, head_dim) -> (B, S, D)."""
    return x.transpose(1, 2).flatten(2)


def gated_silu(x: Tensor) -> Tensor:
    """(…, 2F) -> (…, F): the SiLU of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def with_references(own: Tensor, references: Tensor, text_length: int) -> Tensor:
    """Insert cached keys or values between text and picture: (B, heads, L + N, d) -> (B, heads, L + M + N, d)."""
    cached = references.expand(own.shape[0], -1, -1, -1)
    return torch.cat([own[:, :, :text_length], cached, own[:, :, text_length:]], dim=2)


class Keeper(NamedTuple):
    """Keeps keys and values of the last `length` tokens, the references, of every block that runs."""

    length: int
    kept: list[KeyValue]

    def keep(self, keys: Tensor, values: Tensor) -> None:
        """Take those of one block, (B, heads, S, head_dim) each."""
        self.kept.append(KeyValue(keys[:, :, -self.length :].clone(), values[:, :, -self.length :].clone()))


class StreamAttention(nn.Module):
    """The weights one stream brings to joint attention; the attention itself is the block's."""

    def __init__(self, hidden_size: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.norm = QKNorm(head_dim)
        self.proj = Linear(hidden_size, hidden_size)

    def queries_keys_values(self, x: Tensor, spin: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        return split_heads(self.qkv(x), self.norm, spin)


class GatedMLP(nn.Sequential):
    """Feed-forward layer; a sequence only so that the parameters are named `0` and `2` as published."""

    def __init__(self, hidden_size: int, mlp_size: int) -> None:
        super().__init__(
            Linear(hidden_size, 2 * mlp_size),
            nn.Identity(),
            Linear(mlp_size, hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self[2](gated_silu(self[0](x)))


class DoubleStreamBlock(nn.Module):
    """Text and picture with weights of their own, joined in one attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.img_attn = StreamAttention(config.hidden_size, config.head_dim)
        self.img_mlp = GatedMLP(config.hidden_size, config.mlp_size)
        self.txt_attn = StreamAttention(config.hidden_size, config.head_dim)
        self.txt_mlp = GatedMLP(config.hidden_size, config.mlp_size)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        steering: Steering,
        spin: Rotation,
        references: KeyValue | None = None,
        keeper: Keeper | None = None,
    ) -> tuple[Tensor, Tensor]:
        """img (B, N, D) and txt (B, L, D) -> the same shapes."""
        length = txt.shape[1]
        (img_attn, img_mlp), (txt_attn, txt_mlp) = steering.img, steering.txt
        of_txt = self.txt_attn.queries_keys_values(txt_attn.modulate(txt), spin.slice(0, length))
        of_img = self.img_attn.queries_keys_values(img_attn.modulate(img), spin.slice(length, None))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(of_txt, of_img, strict=True))
        if references is not None:
            k, v = with_references(k, references.key, length), with_references(v, references.value, length)
        if keeper is not None:
            keeper.keep(k, v)
        joined = merge_heads(attention(q, k, v))
        txt = txt_attn.add(txt, self.txt_attn.proj(joined[:, :length]))
        img = img_attn.add(img, self.img_attn.proj(joined[:, length:]))
        txt = txt_mlp.add(txt, self.txt_mlp(txt_mlp.modulate(txt)))
        img = img_mlp.add(img, self.img_mlp(img_mlp.modulate(img)))
        return img, txt

    def references(self, tokens: Tensor, steering: Steering, spin: Rotation) -> tuple[Tensor, KeyValue]:
        """References seeing only each other: (1, M, D) -> the same shape, and their keys and values."""
        attn, mlp = steering.img
        q, k, v = self.img_attn.queries_keys_values(attn.modulate(tokens), spin)
        tokens = attn.add(tokens, self.img_attn.proj(merge_heads(attention(q, k, v))))
        return mlp.add(tokens, self.img_mlp(mlp.modulate(tokens))), KeyValue(k, v)


class SingleStreamBlock(nn.Module):
    """One sequence, attention and feed-forward side by side in two fused linear layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.split = (3 * config.hidden_size, 2 * config.mlp_size)
        self.linear1 = Linear(config.hidden_size, sum(self.split))
        self.linear2 = Linear(config.hidden_size + config.mlp_size, config.hidden_size)
        self.norm = QKNorm(config.head_dim)

    def forward(
        self,
        x: Tensor,
        steering: Steering,
        spin: Rotation,
        text_length: int,
        references: KeyValue | None = None,
        keeper: Keeper | None = None,
    ) -> Tensor:
        """(B, L + N, D) -> the same shape."""
        q, k, v, mlp = self._project(x, steering, spin)
        if references is not None:
            k, v = with_references(k, references.key, text_length), with_references(v, references.value, text_length)
        if keeper is not None:
            keeper.keep(k, v)
        return self._merge(x, steering, attention(q, k, v), mlp)

    def references(self, tokens: Tensor, steering: Steering, spin: Rotation) -> tuple[Tensor, KeyValue]:
        """References seeing only each other: (1, M, D) -> the same shape, and their keys and values."""
        q, k, v, mlp = self._project(tokens, steering, spin)
        return self._merge(tokens, steering, attention(q, k, v), mlp), KeyValue(k, v)

    def _project(self, x: Tensor, steering: Steering, spin: Rotation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        qkv, mlp = self.linear1(steering.single.modulate(x)).split(self.split, dim=-1)
        return *split_heads(qkv, self.norm, spin), mlp

    def _merge(self, x: Tensor, steering: Steering, attended: Tensor, mlp: Tensor) -> Tensor:
        out = self.linear2(torch.cat([merge_heads(attended), gated_silu(mlp)], dim=-1))
        return steering.single.add(x, out)


Block = DoubleStreamBlock | SingleStreamBlock


class FinalLayer(nn.Module):
    """The last modulated norm and the projection from hidden size to velocity channels."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = Linear(config.hidden_size, config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.hidden_size, 2 * config.hidden_size))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector)[:, None, :].chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, scale))


class Steering(NamedTuple):
    """The modulations of all blocks at one time: attention and feed-forward of both streams, and the single stream."""

    img: tuple[Modulation | SplitModulation, ...]
    txt: tuple[Modulation, ...]
    single: Modulation | SplitModulation

    def rows(self, part: slice) -> Steering:
        """The steering of some pictures of a batch, or of all where one serves all."""
        img = tuple(modulation.rows(part) for modulation in self.img)
        txt = tuple(modulation.rows(part) for modulation in self.txt)
        return Steering(img, txt, self.single.rows(part))

    def with_references(self, still: Steering, length: int) -> Steering:
        """This steering, and for the last `length` tokens that of `still`."""

        def split(moving: Modulation | SplitModulation, resting: Modulation | SplitModulation) -> SplitModulation:
            assert isinstance(moving, Modulation)
            assert isinstance(resting, Modulation)
            return SplitModulation(moving, resting, length)

        return Steering(tuple(map(split, self.img, still.img)), self.txt, split(self.single, still.single))


def _parts(batch: Tensor) -> list[slice]:
    """Which pictures of a batch go through a block together: all of them, but on a CPU each one alone.

    CPU kernels choose their order of summation by the size of the whole tensor, so that a picture in a batch would not
    have the bits it has alone. While gradients are recorded speed matters and bits do not.
    """
    if batch.device.type != "cpu" or torch.is_grad_enabled():
        return [slice(None)]
    return [slice(index, index + 1) for index in range(batch.shape[0])]


def _rows(tensor: Tensor, part: slice) -> Tensor:
    """The part's rows of a tensor with one row for each picture, or with one for all."""
    return tensor if tensor.shape[0] == 1 else tensor[part]


class _Sequence:
    """The tokens of some pictures on their way through the blocks: two streams at first, then one."""

    def __init__(
        self, img: Tensor, txt: Tensor, steering: Steering, cache: list[KeyValue] | None, keeper: Keeper | None
    ) -> None:
        self.streams: tuple[Tensor, Tensor] | Tensor = (img, txt)
        self.text_length = txt.shape[1]
        self.steering, self.cache, self.keeper = steering, cache, keeper

    def run(self, block: Block, index: int, spin: Rotation) -> None:
        """Pass through the block with this index."""
        cached = None if self.cache is None else self.cache[index]
        if isinstance(block, DoubleStreamBlock):
            self.streams = block(*self.streams, self.steering, spin, cached, self.keeper)
            return
        if isinstance(self.streams, tuple):
            self.streams = torch.cat(self.streams[::-1], dim=1)
        self.streams = block(self.streams, self.steering, spin, self.text_length, cached, self.keeper)

    def picture(self, length: int) -> Tensor:
        """The picture's `length` tokens as they are now."""
        img = self.streams[0] if isinstance(self.streams, tuple) else self.streams[:, self.text_length :]
        return img[:, :length]


class Transformer(nn.Module):
    """The velocity network. See the module's docstring for the sequence and the letters used for shapes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.img_in = Linear(config.in_channels, size)
        self.txt_in = Linear(config.context_in_dim, size)
        self.time_in = MLPEmbedder(size)
        if config.guidance_embed:
            self.guidance_in = MLPEmbedder(size)
        self.double_stream_modulation_img = SharedModulation(size, branches=2)
        self.double_stream_modulation_txt = SharedModulation(size, branches=2)
        self.single_stream_modulation = SharedModulation(size, branches=1)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(config) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(config) for _ in range(config.depth_single_blocks))
        self.final_layer = FinalLayer(config)

    def blocks(self) -> Iterable[Block]:
        """All blocks in the order they run."""
        for block in (*self.double_blocks, *self.single_blocks):
            yield cast(Block, block)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        timestep: Tensor,
        context: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
        *,
        references: Tensor | None = None,
        reference_ids: Tensor | None = None,
        blocks: Iterable[Block] | None = None,
        reference_cache: Sequence[KeyValue] | None = None,
        still_references: bool = False,
        kept_references: list[KeyValue] | None = None,
    ) -> Tensor:
        """The velocity, noise minus picture, at `timestep`.

        img: (B, N, in_channels) noisy tokens; img_ids: (N, 4) positions (t, h, w, l).
        timestep: (1,) or (B,) in 0..1, 1 being pure noise. guidance: (1,) or (B,), read by models that embed it; None
        adds nothing.
        context: (B, L, context_in_dim) text embeddings; txt_ids: (L, 4).
        references: (B, M, in_channels) clean tokens that join the sequence; reference_ids: (M, 4).
        blocks: the blocks to run, in order (default: this network's own), so that a streamer can lend them loaded.
        reference_cache: from `reference_cache()` or `kept_references`, instead of `references`.
        still_references: references are steered by time 0, as ComfyUI does for klein-kv.
        kept_references: an empty list, which gets the references' keys and values of every block as they are here,
        having seen the whole sequence.
        Returns (B, N, in_channels).
        """
        ids = torch.cat([txt_ids, img_ids] if reference_ids is None else [txt_ids, img_ids, reference_ids])
        spin = rotation(ids, self.config.axes_dim, self.config.theta)
        vector = self._vector(timestep, guidance, img.dtype)
        steering = self._steering(vector)
        count = 0 if references is None else references.shape[1]
        if still_references and count:
            zero = self._vector(torch.zeros_like(timestep), guidance, img.dtype)
            steering = steering.with_references(self._steering(zero), count)
        sequences = [
            _Sequence(
                img=self.img_in(img[part] if references is None else torch.cat([img[part], references[part]], dim=1)),
                txt=self.txt_in(context[part]),
                steering=steering.rows(part),
                cache=None if reference_cache is None else [layer.rows(part) for layer in reference_cache],
                keeper=Keeper(count, []) if kept_references is not None and count else None,
            )
            for part in _parts(img)
        ]
        for index, block in enumerate(self.blocks() if blocks is None else blocks):
            for sequence in sequences:
                sequence.run(block, index, spin)
        if kept_references is not None:
            kept = [sequence.keeper.kept for sequence in sequences if sequence.keeper is not None]
            kept_references.extend(
                KeyValue(*map(torch.cat, zip(*layers, strict=True))) for layers in zip(*kept, strict=True)
            )
        velocities = [
            self.final_layer(sequence.picture(img.shape[1]), _rows(vector, part))
            for sequence, part in zip(sequences, _parts(img), strict=True)
        ]
        return torch.cat(velocities)

    def reference_cache(
        self, references: Tensor, reference_ids: Tensor, blocks: Iterable[Block] | None = None
    ) -> list[KeyValue]:
        """Keys and values of the references in every block, for models trained to let references see only each other.

        references: (1, M, in_channels); reference_ids: (M, 4). They are steered by time 0 and depend on nothing else,
        so the result serves every step, seed and prompt (black-forest-labs/FLUX.2-klein-9b-kv).
        """
        spin = rotation(reference_ids, self.config.axes_dim, self.config.theta)
        zero = torch.zeros(1, device=references.device)
        steering = self._steering(self._vector(zero, None, references.dtype))
        tokens = self.img_in(references)
        cache = []
        for block in self.blocks() if blocks is None else blocks:
            tokens, key_value = block.references(tokens, steering, spin)
            cache.append(key_value)
        return cache

    def _vector(self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        vector = self.time_in(time_embedding(timestep).to(dtype))
        if self.config.guidance_embed and guidance is not None:
            vector = vector + self.guidance_in(time_embedding(guidance).to(dtype))
        return vector

    def _steering(self, vector: Tensor) -> Steering:
        return Steering(
            img=self.double_stream_modulation_img(vector),
            txt=self.double_stream_modulation_txt(vector),
            single=self.single_stream_modulation(vector)[0],
        )
