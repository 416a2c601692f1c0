"""Picture files in and out: what a user names becomes RGB or one sentence, what is written is whole or absent."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError, RequestError

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64_000_000

# What the system answers where a place cannot be written to at all, whatever its state.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENAMETOOLONG)

# Only decoders that work inside this process on bounded memory: Pillow's EPS reader, for one, starts Ghostscript.
_READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")

_FORMAT_OF_ENDING = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# JPEG without chroma subsampling at 95, as Black Forest Labs' own command line writes it. WebP is lossy at 95 too:
# its lossless mode is PNG's job, and its chroma is always subsampled.
_SAVE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
}


def read_file(path: Path, kind: str, limit: int) -> bytes:
    """The bytes of a file that a request names, at most `limit` of them; `kind` names its role in the error.

    Raises RequestError where the file is missing, a folder, unreadable, empty or larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise RequestError(f"The {kind} {path} does not exist.") from error
    except IsADirectoryError as error:
        raise RequestError(f"The {kind} {path} is a folder; name a file.") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"The {kind} {path} cannot be read ({reason(error)}).") from error
    if len(data) > limit:
        raise RequestError(f"The {kind} {path} has more than {limit / 2**20:g} MiB, the most that is read.")
    if not data:
        raise RequestError(f"The {kind} {path} is empty.")
    return data


def open_picture(source: Image.Image | str | os.PathLike[str], *, kind: str = "reference") -> Image.Image:
    """A picture, or the one in a file, as upright 8-bit RGB.

    The first frame of an animation; EXIF orientation applied; alpha laid on white; 16-bit grey scaled to 8. At most
    256 MiB of file and 64 million pixels, which are checked before anything is decoded. `kind` names the picture's role
    in errors. Raises RequestError for everything that is not such a picture.
    """
    return _upright_rgb(*_decoded(source, kind))


def open_mask(source: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """A mask, or the one in a file, upright and in grey: 255 where it is lighter than middle grey, else 0.

    Read as `open_picture` does. Raises RequestError also where it has transparency, which programs use to either end.
    """
    image, name = _decoded(source, "mask")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise RequestError(
            f"The {name} has transparency; save it as white where the picture is to be made, else black."
        )
    return _upright_rgb(image, name).convert("L").point([0] * 128 + [255] * 128)


def _decoded(source: Image.Image | str | os.PathLike[str], kind: str) -> tuple[Image.Image, str]:
    """A picture with all its pixels, and what errors call it."""
    if not isinstance(source, str | os.PathLike):
        return source, f"{kind} picture"
    name = f"{kind} {source}"
    image = open_bounded(read_file(Path(source), kind, MAX_FILE_BYTES), name)
    # A hostile file can make a decoder raise nearly anything (OSError, SyntaxError, struct.error, KeyError ...).
    try:
        image.load()
    except Exception as error:
        raise RequestError(f"The {name} is a damaged or cut-off {image.format} file.") from error
    return image, name


def extended(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """The picture with so many pixels more on each side, which repeat its outermost ones."""
    if not (left or top or right or bottom):
        return image
    import numpy
    from PIL import Image

    sides = [(top, bottom), (left, right), (0, 0)]
    pixels = numpy.asarray(image)
    return Image.fromarray(numpy.pad(pixels, sides[: pixels.ndim], mode="edge"))


def open_bounded(data: bytes, name: str) -> Image.Image:
    """A picture of which only the header has been read; refused (RequestError) beyond 64 million pixels."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_READABLE)
    except Image.DecompressionBombError as error:
        raise RequestError(_too_many_pixels(name)) from error
    except Exception as error:
        raise RequestError(f"The {name} is not a picture that can be read (PNG, JPEG, WebP, ...).") from error
    if image.width * image.height > MAX_PIXELS:
        raise RequestError(_too_many_pixels(name))
    return image


def _too_many_pixels(name: str) -> str:
    return f"The {name} claims more than {MAX_PIXELS // 10**6} million pixels; make it smaller first."


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image, ImageOps

    if image.mode == "F":
        raise RequestError(f"The {name} holds floating-point pixels; save it with 8 bits a channel first.")
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels, which are fine
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _grey_from_16_bits(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _grey_from_16_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling.
    import numpy
    from PIL import Image

    values = numpy.asarray(image).astype(numpy.int64).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(numpy.uint8))


def picture_format(path: str | os.PathLike[str]) -> str:
    """PNG, JPEG or WEBP (Pillow's names), by a file's ending. Raises RequestError for other endings."""
    ending = Path(path).suffix.lower()
    if ending not in _FORMAT_OF_ENDING:
        raise RequestError(f"The output {path} must end in .png, .jpg (or .jpeg) or .webp.")
    return _FORMAT_OF_ENDING[ending]


def check_output(path: str | os.PathLike[str]) -> Path:
    """The path, after checking that a picture can be written there, so that nothing is computed in vain.

    Raises RequestError for an unknown ending, a folder, a missing parent folder or one that may not be written to, and
    for a name that the system does not take.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:
        raise RequestError(f"The output {path} cannot be written ({reason(error)}).") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise RequestError(f"The output {path} is a folder; name a file in it, such as {path / 'picture.png'}.")
    picture_format(path)
    if mode is not None and not stat.S_ISREG(mode):
        raise RequestError(f"The output {path} is not a regular file; choose another name.")
    if not path.parent.is_dir():
        raise RequestError(f"The folder {path.parent} of the output {path.name} does not exist; make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RequestError(f"The folder {path.parent} may not be written to; choose another for the output.")
    return path


def encode_picture(image: Image.Image, file_format: str, metadata: Mapping[str, Any]) -> bytes:
    """A picture file's bytes. `file_format` is PNG, JPEG or WEBP; `metadata` holds Pillow's arguments for it."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **_SAVE_ARGUMENTS[file_format], **metadata)
    return buffer.getvalue()


def write_file(path: Path, data: bytes) -> None:
    """Put a file in its place whole: written beside it, flushed to the disk, renamed; nothing stays behind on failure.

    Raises RequestError where the place may not be written to, HeadraceError where the disk is full or fails.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".headrace-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HeadraceError(
                f"The disk is full, so {path} was not written; free some space and try again."
            ) from error
        refused = RequestError if error.errno in _REFUSALS else HeadraceError
        raise refused(f"The output {path} cannot be written ({reason(error)}).") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def reason(error: Exception) -> str:
    """What the system says went wrong, in its own few words."""
    return (getattr(error, "strerror", None) or str(error)).lower()
