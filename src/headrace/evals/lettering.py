"""Reading words from pixels: where a word stands in which face and size, and which letter explains each place best."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.evals.backgrounds import Backdrop, Floats, fast_length
from headrace.world import letters
from headrace.world.colors import Color
from headrace.world.scene import CORNERS, Box, Glyph, Text

SMALLEST = 10
"""The smallest font size that is looked for, in pixels."""

SOFTNESS = 0.6
"""Letters are compared after both have been smoothed by a Gaussian of so many pixels."""

FAINT = 0.25
"""A word that explains less than this share of its own ink is not there."""

_EDGE = 2

EXTRA = 0.5
"""Ink beside the word, as a share of an average letter's, from which on it is another letter."""


@dataclass(frozen=True)
class Reading:
    """A word as it was found: the nearest drawn one, what each letter looks like, and its colour.

    text: what is read, a letter of each place of the word that was looked for, with what stands before and behind it as
    "?". explained: the share of its ink that the picture has. color: RGB in 0..255.
    """

    drawn: Text
    text: str
    explained: float
    color: Floats


def read_text(pixels: npt.NDArray[np.uint8] | Floats, backdrop: Backdrop, asked: Text) -> Reading:
    """The word of ``asked`` where it explains the picture best, in any face and size, about where it was asked for."""
    picture = np.asarray(pixels, np.float32)
    color = np.array(asked.color.rgb, np.float32)
    drawn, _ = _find(_ink(picture, backdrop.pixels, color), asked)
    # The colour is the model's: once the word is found it is measured, and ink is told by it.
    color = _color(picture, backdrop.pixels, drawn)
    ink = _ink(picture, backdrop.pixels, color)
    drawn, explained = _find(ink, asked)
    color = _color(picture, backdrop.pixels, drawn)
    return Reading(drawn, _spelled(ink, drawn), explained, color)


def _ink(picture: Floats, behind: Floats, color: Floats) -> Floats:
    """How much of the way from the background to the text's colour each pixel is; what is off that way counts less."""
    way = color - behind
    length = np.maximum(np.square(way).sum(-1), 400.0)
    off = picture - behind
    share = np.clip((off * way).sum(-1) / length, -0.5, 1.5)
    beside = np.linalg.norm(off - share[..., None] * way, axis=-1)
    return _soft((share * np.exp(-np.square(beside / 70))).astype(np.float32))


def _find(ink: Floats, asked: Text) -> tuple[Text, float]:
    """The word as the faces draw it where it explains the ink best, and the share of its own ink that it explains."""
    height, width = ink.shape
    size = fast_length(height), fast_length(width)
    spectrum = np.fft.rfft2(ink, size)
    best: tuple[float, Text, float] | None = None
    for face in letters.FACES:
        for points in _sizes(asked.text, face, width, height):
            word, mask = _word(asked.text, face, points)
            rows, columns = height - mask.shape[0] + 1, width - mask.shape[1] + 1
            if rows < 1 or columns < 1:
                break
            own = float(np.square(mask).sum())
            gain = 2 * np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(mask, size)), size)[:rows, :columns] - own
            gain = np.where(_allowed(asked.place, rows, columns), gain, -np.inf)
            y, x = np.unravel_index(int(gain.argmax()), gain.shape)
            found = float(gain[y, x])
            if best is None or found > best[0]:
                best = found, _moved(word, int(x), int(y)), found / own
    assert best is not None  # the smallest size of a word that was drawn goes into the picture
    return best[1], best[2]


def _sizes(text: str, face: str, width: int, height: int) -> list[int]:
    """Font sizes in which the word goes into the picture, a sixteenth apart where they are large."""
    sizes = [SMALLEST]
    while True:
        larger = sizes[-1] + max(1, sizes[-1] // 16)
        extent = letters.extent(text, face, larger)
        if extent[0] > width or extent[1] > 0.6 * height:
            return sizes
        sizes.append(larger)


def _allowed(place: str, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """Where the word's top left corner may be: in the half of the picture that was asked for."""
    x, y = CORNERS.get(place, (0, {"top": -1, "middle": 0, "bottom": 1}[place] if place not in CORNERS else 0))
    down = np.linspace(-1, 1, rows) if rows > 1 else np.zeros(1)
    across = np.linspace(-1, 1, columns) if columns > 1 else np.zeros(1)
    fits_down = down * y >= 0 if y else np.abs(down) <= 0.5
    fits_across = across * x >= 0 if x else np.ones(columns, bool)
    return np.asarray(fits_down[:, None] & fits_across[None, :])


@functools.lru_cache(maxsize=1024)
def _word(text: str, face: str, size: int) -> tuple[Text, Floats]:
    """A word with its box `_EDGE` pixels from the origin, and its soft coverage, with so wide an edge."""
    written = letters.write(text, face, size, Color((0, 0, 0)), "top", (0.0, 0.0))
    written = _moved(written, _EDGE - written.box.left, _EDGE - written.box.top)
    mask = np.zeros((written.box.height + 2 * _EDGE, written.box.width + 2 * _EDGE), np.float32)
    for coverage, box in letters.coverage(written):
        mask[box.top : box.bottom, box.left : box.right] += np.asarray(coverage, np.float32) / 255
    return written, _soft(mask)


def _moved(text: Text, x: int, y: int) -> Text:
    def box(old: Box) -> Box:
        return Box(old.left + x, old.top + y, old.right + x, old.bottom + y)

    glyphs = tuple(Glyph(glyph.character, box(glyph.box)) for glyph in text.glyphs)
    return replace(text, origin=(text.origin[0] + x, text.origin[1] + y), glyphs=glyphs, box=box(text.box))


def _spelled(ink: Floats, drawn: Text) -> str:
    """The letter that explains the ink of each place best, "_" where there is none; "?" for ink beside them."""
    alphabet = _alphabet(drawn.face, drawn.size)
    reach = max(2, round(0.1 * drawn.size)), max(1, drawn.size // 16)
    padded = np.pad(ink, alphabet.side)
    expected = [letters.CHARACTERS.index(glyph.character) for glyph in drawn.glyphs]
    # The corner of each letter's canvas; letters may stand a little closer or wider than the face has them.
    corners = [_corner(alphabet, drawn.face, drawn.size, glyph) for glyph in drawn.glyphs]
    left = padded.copy()
    for (x, y), index in zip(corners, expected, strict=True):
        alphabet.canvas(left, x, y)[...] -= alphabet.masks[index]
    for number, index in enumerate(expected):
        x, y = corners[number]
        alphabet.canvas(left, x, y)[...] += alphabet.masks[index]
        gains = alphabet.gains(alphabet.canvas(left, x, y), reach, [index])
        down, across = np.unravel_index(int(gains[0].argmax()), gains[0].shape)
        x, y = corners[number] = x + int(across) - reach[0], y + int(down) - reach[1]
        alphabet.canvas(left, x, y)[...] -= alphabet.masks[index]
    read = ""
    for (x, y), index in zip(corners, expected, strict=True):
        alphabet.canvas(left, x, y)[...] += alphabet.masks[index]
        gains = alphabet.gains(alphabet.canvas(left, x, y), (2, 1)).max(axis=(1, 2))
        alphabet.canvas(left, x, y)[...] -= alphabet.masks[index]
        best = int(gains.argmax())
        read += letters.CHARACTERS[best] if gains[best] > FAINT * alphabet.energies[best] else "_"
    return read + "?" * _extra(left[alphabet.side :, alphabet.side :], drawn, alphabet.energies[expected].mean())


def _extra(left: Floats, drawn: Text, letter: float) -> int:
    """At how many ends of the word there is ink of one more letter. left: what the letters leave of the ink."""
    rows = slice(drawn.box.top, drawn.box.bottom)
    reach = round(0.75 * drawn.size)
    ends = (
        slice(max(0, drawn.box.left - reach), max(0, drawn.box.left - 1)),
        slice(drawn.box.right + 1, drawn.box.right + reach),
    )
    return sum(float(np.square(np.maximum(left[rows, end], 0)).sum()) > EXTRA * letter for end in ends)


@dataclass(frozen=True)
class _Alphabet:
    """All characters of a face in one size, each on a square canvas, in its middle and on one baseline."""

    side: int
    baseline: int
    masks: Floats
    energies: Floats
    spectra: npt.NDArray[np.complex64]

    def canvas(self, ink: Floats, x: int, y: int) -> Floats:
        """The part of the ink, padded by a canvas on all sides, that a canvas with its corner at (x, y) covers."""
        return ink[y + self.side : y + 2 * self.side, x + self.side : x + 2 * self.side]

    def gains(self, ink: Floats, reach: tuple[int, int], which: list[int] | None = None) -> Floats:
        """Gain of each character at each shift of up to ``reach`` (across, down): (characters, down, across)."""
        spectra, energies = (
            (self.spectra, self.energies)
            if which is None
            else (
                self.spectra[which],
                self.energies[which],
            )
        )
        size = 2 * self.side, 2 * self.side
        products = np.fft.irfft2(np.fft.rfft2(ink, size) * spectra, size)
        rows, columns = (np.arange(-one, one + 1) for one in reach[::-1])
        return np.asarray(2 * products[:, rows[:, None], columns] - energies[:, None, None], np.float32)


@functools.lru_cache(maxsize=256)
def _alphabet(face: str, size: int) -> _Alphabet:
    inks = [letters.ink(face, size, character) for character in letters.CHARACTERS]
    ascent = max(-ink.top for ink in inks) + _EDGE
    descent = max(ink.top + ink.mask.height for ink in inks) + _EDGE
    side = max(ascent + descent, max(ink.mask.width for ink in inks) + 2 * _EDGE)
    masks = np.zeros((len(inks), side, side), np.float32)
    for mask, ink in zip(masks, inks, strict=True):
        left, top = (side - ink.mask.width) // 2, ascent + ink.top
        mask[top : top + ink.mask.height, left : left + ink.mask.width] = np.asarray(ink.mask, np.float32) / 255
        mask[...] = _soft(mask)
    spectra = np.conj(np.fft.rfft2(masks, (2 * side, 2 * side), axes=(1, 2))).astype(np.complex64)
    return _Alphabet(side, ascent, masks, np.square(masks).sum((1, 2)), spectra)


def _corner(alphabet: _Alphabet, face: str, size: int, glyph: Glyph) -> tuple[int, int]:
    """The corner of the canvas on which a glyph stands where it is."""
    ink = letters.ink(face, size, glyph.character)
    return (
        glyph.box.left - (alphabet.side - ink.mask.width) // 2,
        glyph.box.top - ink.top - alphabet.baseline,
    )


def _color(picture: Floats, behind: Floats, drawn: Text) -> Floats:
    """The colour that explains the word's pixels best over the background, in whichever softness suits them."""
    height, width = picture.shape[:2]
    sharp = np.zeros((height, width), np.float32)
    for coverage, box in letters.coverage(drawn):
        sharp[box.top : box.bottom, box.left : box.right] += np.asarray(coverage, np.float32) / 255
    part = np.s_[max(0, drawn.box.top - _EDGE) : drawn.box.bottom + _EDGE]
    best: tuple[float, Floats] | None = None
    for softness in (0.0, 0.4, 0.6, 0.8, 1.1):
        share = _soft(sharp, softness)[part][..., None]
        off = picture[part] - behind[part] * (1 - share)
        color = (share * off).sum((0, 1)) / np.square(share).sum()
        error = float(np.square(off - share * color).sum())
        if best is None or error < best[0]:
            best = error, np.clip(color, 0, 255)
    assert best is not None
    return best[1]


def _soft(mask: Floats, radius: float = SOFTNESS) -> Floats:
    """Smoothed by a Gaussian; nothing is beyond the edges."""
    if radius == 0:
        return mask
    reach = np.arange(-3, 4)
    weights = np.exp(-np.square(reach / radius) / 2)
    weights /= weights.sum()
    padded = np.pad(mask, 3)
    height, width = mask.shape
    across = sum(
        weight * padded[:, 3 + shift : 3 + shift + width] for weight, shift in zip(weights, reach, strict=True)
    )
    down = sum(weight * across[3 + shift : 3 + shift + height] for weight, shift in zip(weights, reach, strict=True))
    return np.asarray(down, np.float32)
