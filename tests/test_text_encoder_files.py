"""Text encoders that come as one file: ComfyUI's with the tokenizer inside, llama.cpp's GGUF, and what is missing."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor

from checkpoint_files import write_tensors
from headrace.catalog import MISTRAL, QWEN
from headrace.checkpoints import inspect
from headrace.checkpoints.components import language_model_component
from headrace.checkpoints.load import fill_module
from headrace.checkpoints.text_encoders import find_text_encoder
from headrace.errors import RequestError
from headrace.nn.language_model import LanguageModel
from headrace.quant.apply import quantise
from headrace.text.tokens import load_tokenizer
from headrace.text.vocabularies import tekken

gguf = pytest.importorskip("gguf")

TEXTS = ("a red apple, HELLO 42", "Un chat  noir\n\n déjà-vu!", "日本語 🙂 mixed\tTabs  ", "[INST]<s>")
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 64, 4, 2, 16, 320


def tekken_document(vocabulary: int = VOCABULARY, special: int = 20) -> dict[str, Any]:
    """A description as Mistral's: special tokens, the 256 bytes, and pieces that are common in `TEXTS`."""
    pieces = [bytes([byte]) for byte in range(256)]
    pieces += [b" a", b"re", b"ed", b" r", b" red", b"pp", b"le", b"pple", b" apple", b"ch", b"at", b" ch", b" chat"]
    pieces += ["é".encode(), "日".encode(), b"  ", b"\n\n", b"LO", b"HE", b"HEL"]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]
    return {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "default_vocab_size": vocabulary,
            "default_num_special_tokens": special,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [{"rank": rank, "token_str": name} for rank, name in enumerate(names)],
    }


def merged(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """As tiktoken does it: what is a token is one; else again and again the first pair that makes the lowest rank."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        made = [ranks.get(a + b) for a, b in pairwise(parts)]
        known = [rank for rank in made if rank is not None]
        if not known:
            return [ranks[part] for part in parts]
        place = made.index(min(known))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def test_tekken_is_merged_by_rank() -> None:
    import regex

    document = tekken_document()
    tokenizer = tekken(document)
    ranks = {base64.b64decode(piece["token_bytes"]): rank for rank, piece in enumerate(document["vocab"])}
    words = regex.compile(document["config"]["pattern"])
    for text in TEXTS[:3]:
        expected = [20 + rank for word in words.findall(text) for rank in merged(word.encode(), ranks)]
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected
        assert tokenizer.decode(expected) == text
    assert tokenizer.encode(TEXTS[3], add_special_tokens=False).ids == [3, 1]


def weights(qk_norm: bool, layers: int) -> dict[str, Tensor]:
    """A language model's by Hugging Face's names without prefix, up to a layer, and without the final norm."""
    torch.manual_seed(0)
    shapes = {"embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(layers):
        layer = f"layers.{index}."
        shapes |= {
            f"{layer}input_layernorm.weight": (HIDDEN,),
            f"{layer}self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{layer}self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{layer}post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}mlp.gate_proj.weight": (96, HIDDEN),
            f"{layer}mlp.up_proj.weight": (96, HIDDEN),
            f"{layer}mlp.down_proj.weight": (HIDDEN, 96),
        }
        if qk_norm:
            shapes |= {f"{layer}self_attn.{norm}_norm.weight": (HEAD_DIM,) for norm in "qk"}
    return {
        name: torch.randn(shape) * shape[-1] ** -0.5 if len(shape) > 1 else 1 + 0.1 * torch.randn(shape)
        for name, shape in shapes.items()
    }


NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(weight: Tensor, heads: int) -> Tensor:
    """As llama.cpp's convert_hf_to_gguf.py has queries and keys of the Llama family."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, tensors: dict[str, Tensor], family: str, layers: int, **changes: Any) -> Path:
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(layers)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *characters, "re", "red", "Ġred"]
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "qwen2"))
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * (len(tokens) - 5))
    writer.add_token_merges(changes.get("merges", ["r e", "re d", "Ġ red"]))
    for name, value in tensors.items():
        if name == "embed_tokens.weight":
            own = "token_embd.weight"
        else:
            _, number, inside = name.split(".", 2)
            own = f"blk.{number}.{NAMES[inside.removesuffix('.weight')]}.weight"
        if family != "qwen3" and own.endswith(("attn_q.weight", "attn_k.weight")):
            value = permuted(value, HEADS if "attn_q" in own else KV_HEADS)
        if value.ndim > 1 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(own, gguf.quantize(value.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_gguf(tmp_path: Path, family: str) -> None:
    """Against transformers, with the weights that gguf decodes."""
    import transformers

    tensors = weights(family == "qwen3", 3)
    file = write_gguf(tmp_path / "x.gguf", tensors, family, 4)
    found = find_text_encoder(file)
    assert found.text == (QWEN if family == "qwen3" else MISTRAL)
    component = language_model_component(found.weights, found.config, 3)
    assert set(component.formats) == {name.removesuffix(".weight") for name in tensors if "proj" in name}
    with torch.device("meta"):
        network = LanguageModel(found.config, layers=3)
    quantise(network, component.formats)
    fill_module(network, component, "cpu")
    kind = gguf.GGMLQuantizationType.Q8_0
    decoded = {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(value.numpy(), kind), kind)) if value.ndim > 1 else value
        for name, value in tensors.items()
    }
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6}
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    kinds = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model),
        "llama": (transformers.MistralConfig, transformers.MistralModel),
    }
    config, model = kinds[family]
    extra = {} if family == "qwen3" else {"sliding_window": None}
    theirs = model(config(**sizes, **extra, rope_parameters=rope)).eval()
    assert not theirs.load_state_dict(decoded, strict=False).unexpected_keys
    ids = torch.randint(0, VOCABULARY, (1, 20))
    with torch.inference_mode():
        expected = theirs(ids, output_hidden_states=True).hidden_states[1:4]
        made = network.hidden_states(ids, torch.ones_like(ids), (1, 2, 3))
    torch.testing.assert_close(made, torch.cat(expected, dim=-1), rtol=1e-4, atol=1e-4)
    (seen,) = inspect(file).networks
    assert (seen.kind, seen.missing, seen.unused) == ("text encoder", tuple(seen.missing), ())
    assert set(seen.formats.values()) == {"q8_0"}


def test_the_tokenizer_of_a_gguf_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", weights(True, 1), "qwen3", 1)
    tokenizer = load_tokenizer(find_text_encoder(file).tokenizer, QWEN)
    plain = tokenizer.tokenizer
    ids = plain.encode("a red bed", add_special_tokens=False).ids
    assert [plain.id_to_token(number) for number in ids] == ["a", "Ġred", "Ġ", "b", "e", "d"]
    assert plain.decode(ids) == "a red bed"
    assert tokenizer("x").ids[0, 0] == 1
    assert tokenizer.pad_id == 0
    for change in ({"model": "llama"}, {"pre": "gpt-4o"}):
        other = write_gguf(tmp_path / f"{next(iter(change))}.gguf", weights(True, 1), "qwen3", 1, **change)
        with pytest.raises(RequestError, match=r"tokenizer\.json"):
            load_tokenizer(other, QWEN)
    wrong = write_gguf(tmp_path / "merges.gguf", weights(True, 1), "qwen3", 1, merges=["no such"])
    with pytest.raises(RequestError, match="cannot be used"):
        load_tokenizer(wrong, QWEN)


def test_a_language_model_of_another_family(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="'gemma3'"):
        find_text_encoder(write_gguf(tmp_path / "x.gguf", weights(True, 1), "gemma3", 1))


def comfy_file(path: Path, **extra: Tensor) -> Path:
    """Mistral's first 30 layers without the final norm, with the tokenizer among the tensors."""
    tensors = {f"model.{name}": value for name, value in weights(False, 30).items()}
    document = torch.tensor(list(json.dumps(tekken_document()).encode()), dtype=torch.uint8)
    return write_tensors(path, tensors | {"tekken_model": document} | extra)


CONFIG = {
    "model_type": "mistral",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 40,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "sliding_window": None,
}


def test_a_file_of_comfyui(tmp_path: Path) -> None:
    file = comfy_file(tmp_path / "mistral.safetensors")
    with pytest.raises(RequestError, match=r"none of .* put its config\.json into"):
        find_text_encoder(file)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = find_text_encoder(file)
    assert (found.tokenizer, found.text) == (file, MISTRAL)
    component = language_model_component(found.weights, found.config, 30)
    assert component.strangers == ()
    tokens = load_tokenizer(found.tokenizer, found.text)("a red apple")
    assert tokens.ids.shape == (1, 512)
    assert tokens.ids[0, 0] == 8
    assert tokens.mask.sum() < 400
    broken = write_tensors(tmp_path / "broken.safetensors", {"tekken_model": torch.tensor([123, 125]).byte()})
    with pytest.raises(RequestError, match="not one of Mistral's"):
        load_tokenizer(broken, MISTRAL)


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = load_file(comfy_file(tmp_path / "x.safetensors"))
    del tensors["tekken_model"]
    file = write_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(RequestError, match=r"comes without its tokenizer"):
        find_text_encoder(file)
    other = tmp_path / "model" / "tokenizer"
    other.mkdir(parents=True)
    (other / "tokenizer.json").write_text("{}")
    assert find_text_encoder(file, other.parent).tokenizer == other / "tokenizer.json"
