"""GGUF files: what the reference writer writes is read, and nothing else costs more than a sentence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.checkpoints.gguf import BLOCK_TYPES, MAX_HEADER_BYTES, PLAIN_TYPES, GgufFile, read_gguf, read_gguf_header
from headrace.errors import RequestError
from headrace.quant.formats import GGUF_BLOCKS

gguf = pytest.importorskip("gguf")

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(path: Path, version: int = 3) -> bytes:
    """A small file with every kind of field that a writer has."""
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_string("a.text", "größe")
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.fraction", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_array("a.texts", ["x", "yy"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quantize(np.ones((3, 64), dtype=np.float32), kind)
    writer.add_tensor("blocks", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    return content[:4] + version.to_bytes(4, "little") + content[8:]


def test_numbers_of_types() -> None:
    for number, name in BLOCK_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, GGUF_BLOCKS[name])
    for number, (name, size) in PLAIN_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (1, size))


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_gguf_writes(tmp_path: Path, version: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(written(path, version))
    read = read_gguf(path)
    assert read.fields == {
        "general.architecture": "flux",
        "a.text": "größe",
        "a.number": 7,
        "a.fraction": 0.5,
        "a.flag": True,
        "a.texts": ["x", "yy"],
        "a.numbers": [1, 2, 3],
    }
    assert read_gguf_header(path).metadata["a.number"] == "7"
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {name: entry.offset for name, entry in read.tensors.items()} == {
        name: tensor.data_offset for name, tensor in reference.items()
    }
    assert (read.tensors["plain"].dtype, read.tensors["plain"].shape) == ("F32", (2, 3))
    blocks = read.tensors["blocks"]
    assert (blocks.dtype, blocks.shape, blocks.size) == ("Q8_0", (3, 64), 3 * 2 * 34)


def read_or_refuse(path: Path) -> GgufFile | None:
    try:
        return read_gguf(path)
    except RequestError as error:
        sentence = str(error)
    assert "\n" not in sentence
    return None


def refused(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@IN_FOLDER
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    for start in (b"", b"GGUF", b"GGUF\3\0\0\0"):
        path.write_bytes(start + content)
        read = read_or_refuse(path)
        # A file without tensors can be made of few bytes.
        assert read is None or not any(entry.size for entry in read.tensors.values())


@IN_FOLDER
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.gguf"
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        whole.write_bytes(written(whole))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 8))
        value = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f" * 8, b"\xff" * 8, (2**63).to_bytes(8, "little")]))
        content[place : place + len(value)] = value
    path.write_bytes(content)
    read = read_or_refuse(path)
    for entry in read.tensors.values() if read is not None else ():
        assert entry.offset + entry.size <= len(content)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    content = written(path)
    end = max(entry.offset + entry.size for entry in read_gguf(path).tensors.values())
    for length in range(4, end):
        path.write_bytes(content[:length])
        assert "not downloaded whole" in refused(path)


def header(
    *, version: int = 3, tensors: bytes = b"", count: int = 0, fields: bytes = b"", field_count: int = 0
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, field_count) + fields + tensors + bytes(4096)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def described(name: str, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: header(version=1), "version 1"),
        (lambda: header(version=3 << 24), "version"),
        (lambda: header(count=2**40), "announces"),
        (lambda: header(field_count=2**63), "announces"),
        (lambda: header(field_count=1, fields=struct.pack("<Q", 2**62)), "ends inside its header"),
        (lambda: header(field_count=1, fields=text("x") + struct.pack("<IIQ", 9, 8, 2**60)), "ends inside"),
        (lambda: header(field_count=1, fields=text("x") + struct.pack("<IIQ", 9, 0, 2**60)), "ends inside"),
        (lambda: header(field_count=1, fields=text("x") + struct.pack("<IIQ", 9, 9, 1)), "list of type 9"),
        (lambda: header(field_count=1, fields=text("x") + struct.pack("<I", 77)), "type 77"),
        (lambda: header(field_count=2, fields=2 * (text("x") + struct.pack("<II", 4, 1))), "twice"),
        (
            lambda: header(field_count=1, fields=text("general.alignment") + struct.pack("<II", 4, 0)),
            "aligns its tensors to 0",
        ),
        (lambda: header(count=1, tensors=described("x", (1,) * 5, 0)), "5 dimensions"),
        (lambda: header(count=1, tensors=described("x", (2**40, 2**40), 0)), "no valid shape"),
        (lambda: header(count=1, tensors=described("x", (2**40,), 0)), "not downloaded whole"),
        (lambda: header(count=1, tensors=described("x", (256, 2), 23)), "type number 23, which is not read"),
        (lambda: header(count=1, tensors=described("x", (100, 2), 12)), "whole blocks of Q4_K"),
        (lambda: header(count=1, tensors=described("x", (256,), 12)), "whole blocks of Q4_K"),
        (lambda: header(count=1, tensors=described("x", (4,), 0, 3)), "does not begin"),
        (lambda: header(count=2, tensors=2 * described("x", (4,), 0)), "twice"),
        (lambda: header(count=2, tensors=described("x", (9,), 0) + described("y", (9,), 0, 32)), "as well"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: Callable[[], bytes], sentence: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content())
    assert sentence in refused(path)


def test_a_header_without_end(tmp_path: Path) -> None:
    """A text as long as a sparse file of terabytes is not read into memory."""
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, MAX_HEADER_BYTES))
        file.truncate(2**40)
    assert "longer than" in refused(path)


def test_not_a_file(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "none.gguf")
