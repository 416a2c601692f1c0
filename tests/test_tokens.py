"""The tokenizer's files: the pad token in either of transformers' spellings, and one sentence for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_files import write_json
from headrace.catalog import QWEN
from headrace.errors import RequestError
from headrace.text.tokens import load_tokenizer
from reference_pipelines import SPECIAL_TOKENS, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer("qwen").backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "pad_token"),
    [
        ({}, "<|endoftext|>"),
        ({"pad_token": None}, "<|endoftext|>"),
        ({"pad_token": "<|im_end|>"}, "<|im_end|>"),
        ({"pad_token": {"content": "<think>", "special": True}}, "<think>"),
    ],
)
def test_the_pad_token(folder: Path, config: dict[str, object], pad_token: str) -> None:
    write_json(folder / "tokenizer_config.json", config)
    assert load_tokenizer(folder / "tokenizer.json", QWEN).pad_id == SPECIAL_TOKENS["qwen"].index(pad_token)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (b'{"pad_token": 5}', "neither a text nor a record"),
        (b'{"pad_token": ["x"]}', "neither a text nor a record"),
        (b'{"pad_token": {}}', "neither a text nor a record"),
        (b'{"pad_token": {"content": 5}}', "neither a text nor a record"),
        (b'{"pad_token": "no such token"}', "does not know its own pad token"),
        (b'{"pad_token": "\\ud800"}', "does not know its own pad token"),
        (b"[" * 100_000, "not valid JSON"),
        (b"caf\xe9", "not valid JSON"),
        (b"[]", "not a JSON object"),
    ],
)
def test_configurations_that_cannot_be(folder: Path, config: bytes, sentence: str) -> None:
    (folder / "tokenizer_config.json").write_bytes(config)
    with pytest.raises(RequestError, match=sentence):
        load_tokenizer(folder / "tokenizer.json", QWEN)
