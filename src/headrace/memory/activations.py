"""How much memory the networks' intermediate results take at the worst moment of a forward. Without torch.

Each function counts the tensors alive at the moments that can be the worst, as the code in `headrace.nn` makes them;
the tests compare the counts with what torch allocates. Results are in bytes, `value_bytes` being those of one value.
"""

from __future__ import annotations

from headrace.nn.config import ATTENTION_ROWS, AutoencoderConfig, LanguageModelConfig, TransformerConfig

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


def encoder_activations(config: AutoencoderConfig, width: int, height: int, value_bytes: int) -> int:
    """A reference of this size, in pixels, through the encoder."""
    # At full resolution: a block's input, its first result, its norm and SiLU, and the second convolution's copies.
    return width * height * value_bytes * 6 * config.channels[0]


def decoder_activations(config: AutoencoderConfig, width: int, height: int, value_bytes: int) -> int:
    """A picture of this size, in pixels, out of the decoder."""
    channels = config.decoder_channels or config.channels
    # At full resolution, where the last level's first block still has the width of the level before it.
    return width * height * value_bytes * 4 * channels[min(1, len(channels) - 1)]
