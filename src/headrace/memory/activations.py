"""How much memory the networks' intermediate results take at the worst moment of a forward. Without torch.

Each function counts the tensors alive at the moments that can be the worst, as the code in `headrace.nn` makes them;
the tests compare the counts with what torch allocates. Results are in bytes, `value_bytes` being those of one value.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.nn.config import (
    ATTENTION_ROWS,
    AutoencoderConfig,
    LanguageModelConfig,
    TransformerConfig,
    VisionConfig,
    strip_rows,
)

FLOAT_BYTES = 4


def transformer_activations(
    config: TransformerConfig,
    batch: int,
    text: int,
    picture: int,
    value_bytes: int,
    cached: int = 0,
    one_by_one: bool = True,
) -> int:
    """One forward of the transformer, its inputs not counted.

    batch: sequences, both branches of classifier-free guidance among them. text, picture: tokens of each, joined
    references counting as picture. cached: reference tokens whose keys and values come from a cache. one_by_one:
    whether they pass through a block one after another, as on a CPU, so that only the streams of the others wait.
    """
    mlp, tokens = config.mlp_ratio, text + picture
    # Counted in vectors of the hidden size. A rotation has the values and four halves of them in float32.
    turning = 6.0 if value_bytes < FLOAT_BYTES else 2.0
    # Both streams; queries, keys and values of each, then turned, then joined; the attention's result.
    attended = 10 * tokens + 2 * cached
    double = max(
        # Both streams after attention; of one its norm, gate and up, the gate's SiLU, their product.
        attended + tokens + max(text, picture) * (1 + 4 * mlp),
        6 * tokens + picture * (1 + turning),
    )
    # The joined streams, the first layer's result, keys and values with the cache's.
    projected = (4 + 2 * mlp) * tokens + (tokens + 2 * cached if cached else 0)
    single = max(
        projected + tokens * (4 + 2 * mlp),  # queries, keys, the result; gated, and joined with that
        projected + tokens * (2 + turning),
        projected + tokens * 4 + _scores(config, tokens, tokens + cached, value_bytes),
    )
    worst = max(double if config.depth else 0, single if config.depth_single_blocks else 0)
    angles = tokens * config.head_dim * FLOAT_BYTES
    alive = worst + (batch - 1) * tokens if one_by_one else batch * worst
    return int(alive * config.hidden_size * value_bytes) + angles


def _scores(config: TransformerConfig, queries: int, keys: int, value_bytes: int) -> float:
    """A piece's scores before and after the softmax, where attention goes by rows, in vectors of the hidden size."""
    if value_bytes == FLOAT_BYTES or keys < ATTENTION_ROWS:
        return 0.0
    return 2 * min(queries, ATTENTION_ROWS) * keys / config.hidden_size


def text_activations(config: LanguageModelConfig, length: int, outputs: int, value_bytes: int) -> int:
    """One prompt of `length` tokens through the language model, of which `outputs` hidden states are kept."""
    # Kept states; a layer's input, what attention added, its norm; gate and up, or the gate's SiLU and the product.
    vectors = (outputs + 3) * config.hidden_size + 3 * config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    turning = 6 if value_bytes < FLOAT_BYTES else 2
    attending = (outputs + 2) * config.hidden_size + (2 + turning) * queries + 3 * keys
    joined = 2 * outputs * config.hidden_size
    return length * value_bytes * max(vectors, attending, joined)


def writing_activations(config: LanguageModelConfig, tokens: int, new_tokens: int, value_bytes: int) -> int:
    """A text of so many tokens read at once, and written on: without the cache of keys and values."""
    # Who may look at whom, as booleans and as what is added to scores; logits of one token in two precisions, sorted.
    mask = tokens * (tokens + new_tokens) * (1 + value_bytes)
    logits = config.vocab_size * (value_bytes + 8 * FLOAT_BYTES)
    return text_activations(config, tokens, 1, value_bytes) + mask + logits


def vision_activations(config: VisionConfig, width: int, height: int, value_bytes: int) -> int:
    """A picture of this size, in pixels, through the vision tower and the projector."""
    patches = width * height // config.patch_size**2
    hidden, pixels = config.hidden_size, 3 * width * height
    vectors = 3 * hidden + 3 * config.intermediate_size
    turning = 6 if value_bytes < FLOAT_BYTES else 2
    attending = (6 + turning) * hidden
    tokens = patches // config.merge_size**2
    projected = tokens * (2 * config.merge_size**2 * hidden + 3 * config.text_size)
    angles = patches * config.head_dim * FLOAT_BYTES
    return value_bytes * (pixels + max(patches * max(vectors, attending), 2 * patches * hidden + projected)) + angles


def encoder_activations(config: AutoencoderConfig, width: int, height: int, value_bytes: int) -> int:
    """A reference of this size, in pixels, through the encoder."""
    channels = config.channels
    area = _Area(height, width, strip_rows(channels[0], width))
    peaks, before = [area.values(3 + channels[0])], channels[0]
    for index, after in enumerate(channels):
        peaks.append(_blocks(area, before, after, config.layers_per_block))
        if index < len(channels) - 1:
            half = _Area(area.height // 2, area.width // 2, strip_rows(after, area.width // 2))
            # The strips before and after, and one that is joined of several.
            peaks.append(max(area.values(after) + 2 * area.window(after), half.values(after) + half.strip(after)))
            area = half
        before = after
    peaks.append(_middle(area, channels[-1], value_bytes))
    return max(peaks) * value_bytes


def decoder_activations(config: AutoencoderConfig, width: int, height: int, value_bytes: int) -> int:
    """A picture of this size, in pixels, out of the decoder."""
    channels = config.decoder_channels or config.channels
    scale = 2 ** (len(channels) - 1)
    latent = config.latent_channels * (height // scale) * (width // scale)
    area = _Area(height // scale, width // scale, strip_rows(channels[-1], width // scale))
    peaks, before = [_middle(area, channels[-1], value_bytes)], channels[-1]
    for index, after in reversed(list(enumerate(channels))):
        peaks.append(_blocks(area, before, after, config.layers_per_block + 1))
        if index > 0:
            rows = min(area.rows, strip_rows(after, 2 * area.width) // 2)
            double = _Area(2 * area.height, 2 * area.width, 2 * rows)
            # What was made of the strips, and of the last one: its window, the same repeated, and the convolution's.
            peaks.append(
                double.values(after) + double.window(after) + _Area(area.height, area.width, rows).window(after)
            )
            area = double
        before = after
    peaks.append(area.values(channels[0]) + 3 * area.window(channels[0]))
    return (latent + max(peaks)) * value_bytes


@dataclass(frozen=True)
class _Area:
    """A picture of this size in strips of so many rows. Its methods count values."""

    height: int
    width: int
    rows: int

    def values(self, channels: int) -> int:
        return channels * self.height * self.width

    def strip(self, channels: int) -> int:
        return channels * min(self.rows, self.height) * self.width

    def window(self, channels: int) -> int:
        """A strip with a row of each of its neighbours."""
        return channels * min(self.rows + 2, self.height) * self.width

    def copy(self, channels: int) -> int:
        """A window, where it is not the picture itself."""
        return self.window(channels) if self.rows < self.height else 0


def _blocks(area: _Area, before: int, after: int, count: int) -> int:
    """The most that residual blocks have alive, the first of which takes `before` channels to `after`."""
    return max(_block(area, before, after), _block(area, after, after) if count > 1 else 0)


def _block(area: _Area, before: int, after: int) -> int:
    first, last = area.values(before), area.values(2 * after)
    return max(
        # The first convolution at its first strip and at its last: a window, its norm and SiLU.
        first + area.copy(before) + 2 * area.window(before),
        last - area.strip(2 * after - before) + area.copy(before) + 2 * area.window(before),
        last - area.strip(after) + area.copy(before) + area.window(before) + area.strip(after),
        last + area.copy(before) + (area.strip(before) if before != after else 0),
        # The second at its first strip, which only the window holds any longer.
        last - area.strip(after) + 3 * area.window(after),
    )


def _middle(area: _Area, channels: int, value_bytes: int) -> int:
    """Residual blocks and attention at the lowest resolution."""
    tokens = area.height * area.width
    # The block's input, its norm, queries, keys and values, the result.
    attended = 6 * channels * tokens
    if value_bytes < FLOAT_BYTES and tokens >= ATTENTION_ROWS:
        attended += channels * tokens + 2 * ATTENTION_ROWS * tokens  # scaled queries, scores and their softmax
    return max(_block(area, channels, channels), attended)
