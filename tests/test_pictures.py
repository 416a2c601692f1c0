"""Picture files in: every kind becomes upright RGB or one sentence. Picture files out: whole or absent."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.errors import HeadraceError, RequestError
from headrace.pictures import MAX_PIXELS, check_output, encode_picture, open_picture, write_file

RED, GREEN = (255, 0, 0), (0, 255, 0)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def saved(path: Path, image: Image.Image, **arguments: object) -> Path:
    image.save(path, **arguments)
    return path


def test_plain_rgb_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = open_picture(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), pixels)


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    read = open_picture(saved(tmp_path / "a.png", image))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_a_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    read = open_picture(saved(tmp_path / "a.png", image, transparency=1))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    read = open_picture(saved(tmp_path / f"a.{ending}", Image.fromarray(values)))
    assert np.asarray(read)[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk(tmp_path: Path) -> None:
    read = open_picture(saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100))
    red, green, blue = read.getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN)]
    read = open_picture(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert read.getpixel((0, 0)) == RED


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    read = open_picture(saved(tmp_path / "a.jpg", Image.new("RGB", (32, 16)), exif=exif))
    assert read.size == (16, 32)


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 8), RED), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_picture(path).size == (8, 8)


def test_a_picture_in_memory_is_taken_as_it_is() -> None:
    assert open_picture(Image.new("RGBA", (3, 2), (0, 255, 0, 255))).getpixel((0, 0)) == GREEN


def text_file(folder: Path) -> Path:
    (folder / "a.png").write_text("this is no picture")
    return folder / "a.png"


def empty_file(folder: Path) -> Path:
    (folder / "a.png").touch()
    return folder / "a.png"


def truncated_file(folder: Path) -> Path:
    path = saved(folder / "a.png", Image.effect_noise((64, 64), 50))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def bomb(folder: Path) -> Path:
    (folder / "a.png").write_bytes(png_header(100_000, 100_000))
    return folder / "a.png"


def small_bomb(folder: Path) -> Path:
    side = int(MAX_PIXELS**0.5) + 1
    (folder / "a.png").write_bytes(png_header(side, side))
    return folder / "a.png"


def floating_point(folder: Path) -> Path:
    return saved(folder / "a.tiff", Image.new("F", (4, 4)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (text_file, "is not a picture"),
        (empty_file, "is empty"),
        (truncated_file, "damaged or cut-off PNG"),
        (bomb, "claims more than 64 million pixels"),
        (small_bomb, "claims more than 64 million pixels"),
        (floating_point, "floating-point"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: folder / "none.png", "does not exist"),
        (lambda folder: folder / ("x" * 300), "cannot be read"),
        (lambda _: Path("a\0b"), "cannot be read"),
    ],
)
def test_what_is_no_picture_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], Path], sentence: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        open_picture(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.pictures.MAX_FILE_BYTES", 1000)
    with pytest.raises(RequestError, match="the most that is read"):
        open_picture("/dev/zero")


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_raises_anything_else(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    ending, file_format = [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("gif", "GIF"), ("tiff", "TIFF")][
        seed % 5
    ]
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(buffer, file_format)
    data = bytearray(buffer.getvalue())
    for _ in range(8):
        data[draw.integers(len(data))] = draw.integers(256)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(bytes(data[: draw.integers(16, len(data) + 1)]))
    with contextlib.suppress(RequestError):
        assert open_picture(path).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a.gif", "must end in .png, .jpg"),
        ("a", "must end in .png, .jpg"),
        (".", "is a folder"),
        ("folder.png", "is a folder"),
        ("none/a.png", "does not exist"),
        ("pipe.png", "not a regular file"),
        ("x" * 300 + ".png", "file name too long"),
        ("a\0.png", "null byte"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match=sentence):
        check_output(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RequestError, match="may not be written to"):
        check_output(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.JPEG", "a.webp"])
def test_outputs_that_can_be(tmp_path: Path, name: str) -> None:
    assert check_output(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(("file_format", "most"), [("PNG", 0), ("JPEG", 20), ("WEBP", 40)])
def test_encoding_keeps_the_pixels(file_format: str, most: int) -> None:
    gradient = Image.merge("RGB", [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256))])
    decoded = Image.open(io.BytesIO(encode_picture(gradient, file_format, {})))
    assert decoded.format == file_format
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(gradient).astype(int)).max() <= most


def test_writing_replaces_what_was_there_and_keeps_links(tmp_path: Path) -> None:
    target = tmp_path / "target.png"
    target.write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(target)
    write_file(tmp_path / "link.png", b"new")
    assert target.read_bytes() == b"new"
    assert (tmp_path / "link.png").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.png", "target.png"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_file(tmp_path / "a.png", b"data")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    ("failure", "raised", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), HeadraceError, "disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), HeadraceError, "disk is full"),
        (OSError(errno.EIO, "Input/output error"), HeadraceError, "cannot be written"),
        (OSError(errno.EROFS, "Read-only file system"), RequestError, "cannot be written"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
    sentence: str | None,
) -> None:
    def fail(_: int) -> None:
        raise failure

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(raised, match=sentence) as caught:
        write_file(tmp_path / "a.png", b"new")
    assert caught.type is raised
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"
