"""The header reader believes nothing: whatever the bytes, it reads a sound file or refuses in one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from checkpoint_files import write_header, write_json, write_tensors
from headrace.checkpoints.headers import DTYPE_BITS, MAX_HEADER_BYTES, read_header
from headrace.checkpoints.weights import read_json, read_weights
from headrace.errors import RequestError

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(sorted(DTYPE_BITS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": json_values | st.sampled_from(sorted(DTYPE_BITS)),
        "shape": json_values | st.lists(st.integers(-1, 2**70), max_size=4),
        "data_offsets": json_values | st.lists(st.integers(-1, 2**70), min_size=2, max_size=2),
    }
)


@IN_FOLDER
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


@IN_FOLDER
@given(header=st.dictionaries(st.text(max_size=8), entries | json_values, max_size=4), data=st.binary(max_size=40))
def test_any_header_is_sound_or_refused(tmp_path: Path, header: dict[str, object], data: bytes) -> None:
    path = write_header(tmp_path / "x.safetensors", json.dumps(header).encode(), data)
    try:
        tensors = read_header(path).tensors
    except RequestError:
        return
    assert sum(entry.size for entry in tensors.values()) == len(data)
    for entry in tensors.values():
        assert entry.elements * DTYPE_BITS[entry.dtype] == 8 * entry.size
        assert entry.offset + entry.size <= path.stat().st_size


@IN_FOLDER
@given(
    shapes=st.dictionaries(
        st.text("abc._", min_size=1, max_size=6), st.lists(st.integers(0, 3), max_size=3), max_size=5
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64]),
)
def test_reads_what_safetensors_writes(tmp_path: Path, shapes: dict[str, list[int]], dtype: torch.dtype) -> None:
    path = write_tensors(
        tmp_path / "x.safetensors", {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    )
    tensors = read_header(path).tensors
    with safe_open(path, "pt") as file:
        assert {name: list(entry.shape) for name, entry in tensors.items()} == {
            name: file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118
        }


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.safetensors", b"", "not a safetensors file"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.safetensors", b"GGUF" + bytes(20), "GGUF"),
        ("a.safetensors", b"PK\x03\x04" + bytes(20), "pickle"),
        ("a.bin", b"anything", "pickle"),
        ("a.ckpt", b"anything", "pickle"),
        ("a.safetensors", struct.pack("<Q", 2**63), "not a safetensors file"),
        ("a.safetensors", struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(50), "not a safetensors file"),
        ("a.safetensors", struct.pack("<Q", 100) + b"{", "not downloaded whole"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=sentence):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "data", "sentence"),
    [
        ({"a": ENTRY}, b"1234567", r"ends at byte \d+ of \d+: it was not downloaded whole; download it again"),
        ({"a": ENTRY}, b"123456789", "1 bytes follow its last tensor"),
        ({"a": ENTRY, "b": ENTRY}, b"12345678", "do not follow"),
        ({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16), "do not follow"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "no valid byte range"),
        ({"a": {**ENTRY, "shape": [2**60, 2**60]}}, bytes(8), "no valid shape"),
        ({"a": {**ENTRY, "shape": [3]}}, bytes(8), "its shape does not need"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, bytes(8), "no valid shape"),
        ({"a": {**ENTRY, "dtype": "Q9"}}, bytes(8), "not known: 'Q9'"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', bytes(4), "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b"[]", b"", "not a JSON object"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: object, data: bytes, sentence: str) -> None:
    path = write_header(tmp_path / "a.safetensors", header, data)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=sentence) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model-00001-of-00002.safetensors", {"a": torch.zeros(1)})
    write_tensors(tmp_path / "model-00002-of-00002.safetensors", {"b": torch.zeros(2)})
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": index})
    assert set(read_weights(tmp_path).tensors) == {"a", "b"}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert {name: shard.name for name, shard in read_weights(tmp_path).absent.items()} == {"b": index["b"]}


@pytest.mark.parametrize(
    "weight_map",
    [None, {}, [], {"a": "../a.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {"a": ["b"]}, {"a": "a.bin"}],
)
def test_an_index_names_nothing_but_files_beside_it(tmp_path: Path, weight_map: object) -> None:
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(RequestError, match="index"):
        read_weights(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        write_tensors(tmp_path / f"{shard}.safetensors", {"x": torch.zeros(1)})
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    with pytest.raises(RequestError, match="both hold 'x'"):
        read_weights(tmp_path)


def test_several_files_need_a_name(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    assert set(read_weights(tmp_path).tensors) == {"a"}
    write_tensors(tmp_path / "b.safetensors", {"b": torch.zeros(1)})
    with pytest.raises(RequestError, match="several files"):
        read_weights(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"c": torch.zeros(1)})
    assert set(read_weights(tmp_path).tensors) == {"c"}


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="pickles"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\udcff"])
def test_configurations_are_json_objects(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RequestError, match=r"config\.json is not"):
        read_json(path)
