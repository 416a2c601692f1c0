"""Learns the tokenizer of a small text encoder: byte-level BPE whose capitals and digits stand alone.

Words can then be spelled and ``#RRGGBB`` read digit by digit, and any other text still has tokens: its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
from tokenizers.trainers import BpeTrainer

PAD = "<|endoftext|>"
SPECIAL = (PAD, "<|im_start|>", "<|im_end|>", "<think>", "</think>")

TEMPLATE_PIECES = ("user\n", "assistant\n", "\n\n", "\n")
"""What the Qwen chat template puts between the special tokens: each becomes one token."""

CHAT_TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
"""The part of Qwen3's chat template that FLUX.2 uses."""


def learn_tokenizer(captions: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most ``vocabulary`` tokens, special ones first (ids 0 to 4)."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    pieces = [piece for piece in TEMPLATE_PIECES for _ in range(50_000)]
    tokenizer.train_from_iterator([*pieces, *captions], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer as transformers does, so that it loads there too."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "backend": "tokenizers",
        "eos_token": "<|im_end|>",
        "model_max_length": 4096,
        "pad_token": PAD,
        "padding_side": "right",
        "tokenizer_class": "TokenizersBackend",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _pre_tokenizer() -> PreTokenizer:
    words = r"\Auser\n|\Aassistant\n|\n+|\p{Lu}|\d| ?\p{Ll}+| ?[^\s\p{L}\d]"
    return Sequence([Split(Regex(words), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
