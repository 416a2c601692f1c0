"""Tokenizers that come inside weight files: Mistral's tekken in ComfyUI's, llama.cpp's vocabularies in GGUF files.

Both are byte-level BPE. Tekken ranks the pieces of bytes there are and merges what makes the lowest rank; the merges
that this comes to are worked out. GGUF lists them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headrace.checkpoints.gguf import read_gguf
from headrace.checkpoints.headers import TensorEntry
from headrace.errors import RequestError

T = TypeVar("T")

MAX_TEKKEN_BYTES = 64 * 2**20
MAX_TOKENS = 2**20
# llama.cpp's numbers for tokens that text cannot make.
CONTROL, USER_DEFINED = 3, 4

# How text is cut into words before they are cut into tokens, by llama.cpp's name of the way; the expressions are those
# of Qwen2's and Mistral's own tokenizer files.
WORDS: Mapping[str, str] = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def tekken_tokenizer(entry: TensorEntry) -> Tokenizer:
    """From a stored tensor that holds tekken.json. Raises RequestError where it is none."""
    if entry.size > MAX_TEKKEN_BYTES:
        raise RequestError(f"{entry.file} holds a tokenizer of {entry.size} bytes, larger than any.")
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            return tekken(json.loads(file.read(entry.size)))
    except OSError as error:
        raise RequestError(f"{entry.file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise RequestError(f"{entry.file} is damaged: the tokenizer in it is not one of Mistral's.") from error


def tekken(document: Mapping[str, Any]) -> Tokenizer:
    """From Mistral's description: the special tokens come first, then pieces of bytes by their rank."""
    settings = document["config"]
    special_count = int(settings["default_num_special_tokens"])
    count = int(settings["default_vocab_size"]) - special_count
    if not 0 <= special_count <= MAX_TOKENS or not 0 < count <= MAX_TOKENS:
        raise ValueError("no such number of tokens")
    ranks = {base64.b64decode(piece["token_bytes"]): rank for rank, piece in enumerate(document["vocab"][:count])}
    special = {str(token["token_str"]): int(token["rank"]) for token in document.get("special_tokens") or ()}
    for rank in range(special_count):
        if rank not in special.values():
            special[f"<SPECIAL_{rank}>"] = rank
    merges = [
        (rank, ranks[piece[:cut]], ranks[piece[cut:]], piece, cut)
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    merges.sort(key=lambda merge: merge[:3])
    vocabulary = {_spelled(piece): rank + special_count for piece, rank in ranks.items()} | special
    pairs = [(_spelled(piece[:cut]), _spelled(piece[cut:])) for _, _, _, piece, cut in merges]
    return _byte_level(vocabulary, pairs, str(settings["pattern"]), list(special), whole_words=True)


def gguf_tokenizer(path: Path) -> Tokenizer:
    """From the fields of a GGUF file. Raises RequestError where they are not there or of another kind."""
    fields = read_gguf(path).fields
    words = str(fields.get("tokenizer.ggml.pre"))
    tokens = _list_of(str, fields.get("tokenizer.ggml.tokens"))
    merges = _list_of(str, fields.get("tokenizer.ggml.merges"))
    kinds = _list_of(int, fields.get("tokenizer.ggml.token_type"))
    known = fields.get("tokenizer.ggml.model") == "gpt2" and words in WORDS
    if not known or not tokens or merges is None or kinds is None or len(kinds) != len(tokens):
        raise RequestError(f"{path} holds no tokenizer that is read: put the text encoder's tokenizer.json beside it.")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        return _byte_level(vocabulary, pairs, WORDS[words], special, normalised=words == "qwen2")
    except Exception as error:  # the library raises bare Exception for a merge of tokens that there are not
        raise RequestError(f"{path} is damaged: its tokenizer cannot be used ({error}).") from error


def _byte_level(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    words: str,
    special: Sequence[str],
    *,
    whole_words: bool = False,
    normalised: bool = False,
) -> Tokenizer:
    """whole_words: whether a word that is a token is never cut. normalised: whether text is put into form C first."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    if normalised:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _spelled(piece: bytes) -> str:
    """Bytes as byte-level BPE writes them: one printable character each."""
    return "".join(_CHARACTERS[byte] for byte in piece)


def _characters() -> list[str]:
    """GPT-2's characters for the bytes: those that are printable in Latin-1, and for the others what follows."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


_CHARACTERS = _characters()


def _list_of(kind: type[T], value: object) -> list[T] | None:
    return value if isinstance(value, list) and all(isinstance(item, kind) for item in value) else None
