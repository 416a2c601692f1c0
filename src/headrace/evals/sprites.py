"""Finding drawn objects in pixels: which place and size explain the picture best, and which object explains a place.

What is compared is always the picture with the sprite laid over the background and the picture with the background
alone: the *gain* of a sprite at a place is by how much it lowers the sum of squared differences to the pixels. All
places are tried at once by correlation, whatever the background is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from headrace.evals.backgrounds import Backdrop, Floats, fast_length, shrink
from headrace.world import objects
from headrace.world.scene import ORDINARY, Box, Look

COARSE = 64
"""Shorter side of the picture in which objects are looked for, in pixels."""

SIDES = tuple(np.geomspace(0.15, 0.80, 14))
"""Sides of an object's cell that are tried, as shares of the picture's shorter side."""

CELL = 26
"""Side to which an object's cell is brought to say which object it is, in pixels."""

SCALES = (0.87, 1.0, 1.15)
"""Sizes beside its own at which other objects are tried in a place."""

FINE = (0.93, 0.965, 1.0, 1.035, 1.07)
"""Sizes between those that are looked for."""

SLACK = 0.2
"""How far from a place other objects are tried, as a share of its side."""

APART = 0.75
"""The middles of two things are at least so far apart, across or down, as a share of the larger one's side."""

PART = 0.3
"""A sprite that explains less than this of what is near it is a patch of something else that happens to be like it."""

ROOM, ALONE_ROOM = 1.5, 2.5
"""How far that is looked at, in sides of its place: among other things, and where it is alone."""

FAINT = 0.15
"""A sprite that explains less than this of its own contrast with the background is not there."""


@dataclass(frozen=True)
class Place:
    """A square cell in pixels of the picture, and how much of its contrast a sprite explains there, at most 1."""

    left: float
    top: float
    side: float
    gain: float
    explained: float

    @property
    def center(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2

    @property
    def box(self) -> Box:
        right, bottom = self.left + self.side, self.top + self.side
        return Box(round(self.left), round(self.top), round(right), round(bottom))


Spectra = npt.NDArray[np.complexfloating]

Kind = tuple[str, Look]
"""An object's name and its look."""


class Canvas:
    """A picture and its background, as they are and in the size in which objects are looked for.

    What has been found can be painted out: it becomes a part of the background.
    """

    def __init__(self, pixels: npt.NDArray[np.uint8] | Floats, backdrop: Backdrop) -> None:
        self.full = np.asarray(pixels, np.float32)
        self.behind = np.array(backdrop.pixels, np.float32)
        self.scale = min(1.0, COARSE / min(self.full.shape[:2]))
        self.coarse = shrink(self.full, self.scale)
        self.coarse_behind = shrink(self.behind, self.scale)
        self.unit = min(self.full.shape[:2])

    def find(self, kind: Kind, count: int = 1, sides: tuple[float, float] = (0.0, 1.0)) -> list[Place]:
        """The ``count`` places, best first and apart from each other, where a sprite explains the picture best.

        sides: the smallest and the largest cell to be tried, as shares of the shorter side.
        """
        unit = min(self.coarse.shape[:2])
        tried = [max(5, round(side * self.unit * self.scale)) for side in SIDES if sides[0] <= side <= sides[1]]
        tried = [side for side in dict.fromkeys(tried) if side < 1.1 * unit]
        pad = self._pad
        evidence = self._evidence()
        gains, explained, merits = [], [], []
        for side in tried:
            gain, share = _match(evidence, self._padded, *_kernels(kind, side))
            gains.append(gain)
            explained.append(share)
            # By gain alone one large sprite over several copies could beat each of them.
            merits.append(gain * np.abs(share))
        found: list[Place] = []
        for _ in range(count):
            index = int(np.argmax([merit.max() for merit in merits]))
            y, x = (int(at) for at in np.unravel_index(int(merits[index].argmax()), merits[index].shape))
            side = tried[index]
            place = Place(
                (x - pad) / self.scale,
                (y - pad) / self.scale,
                side / self.scale,
                float(gains[index][y, x]) / self.scale**2,
                float(explained[index][y, x]),
            )
            found.append(place)
            # Cells whose middles are near this one's are of the same thing.
            for other, merit in zip(tried, merits, strict=True):
                reach = APART * max(side, other)
                down, across = y + (side - other) / 2, x + (side - other) / 2
                rows = slice(max(0, round(down - reach)), max(0, round(down + reach) + 1))
                merit[rows, max(0, round(across - reach)) : max(0, round(across + reach) + 1)] = -np.inf
        return found

    def match(self, rgba: Floats) -> tuple[float, int, int] | None:
        """Where a sprite of coarse pixels fits best: its merit there, left and top; None where it is too large."""
        pad, (height, width) = self._pad, self._padded
        if rgba.shape[0] > height or rgba.shape[1] > width:
            return None
        gain, share = _match(self._evidence(), self._padded, *kernels(rgba))
        merit = gain * np.abs(share)
        y, x = (int(at) for at in np.unravel_index(int(merit.argmax()), merit.shape))
        return float(merit[y, x]), x - pad, y - pad

    @property
    def _pad(self) -> int:
        """How far a sprite may stand out of the picture, in coarse pixels."""
        return max(1, round(0.04 * min(self.coarse.shape[:2])))

    @property
    def _padded(self) -> tuple[int, int]:
        return self.coarse.shape[0] + 2 * self._pad, self.coarse.shape[1] + 2 * self._pad

    def _evidence(self) -> Spectra:
        size = fast_length(self._padded[0]), fast_length(self._padded[1])
        return np.fft.rfft2(_evidence(self.coarse, self.coarse_behind, self._pad), size, axes=(1, 2))

    def paint_out(self, kind: Kind, place: Place) -> None:
        """Makes a sprite part of the background."""
        for behind, scale in ((self.behind, 1.0), (self.coarse_behind, self.scale)):
            side = max(1, round(place.side * scale))
            left, top = round(place.left * scale), round(place.top * scale)
            rgba = np.asarray(objects.sprite(*kind, side), np.float32)
            rows = slice(max(0, top), max(0, min(behind.shape[0], top + side)))
            columns = slice(max(0, left), max(0, min(behind.shape[1], left + side)))
            part = rgba[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            alpha = part[..., 3:] / 255
            behind[rows, columns] += alpha * (part[..., :3] - behind[rows, columns])

    def fitted(self, place: Place, kind: Kind) -> Place:
        """The place with the side, within a step of those that were looked for, that suits the sprite best."""
        x, y = place.center
        tried = [
            replace(place, left=x - side / 2, top=y - side / 2, side=side)
            for side in (place.side * factor for factor in FINE)
        ]
        return max(tried, key=lambda one: float(self._gains(one, [kind], (1.0,))[0]) * one.side**2)

    def gains(self, place: Place, kinds: Sequence[Kind]) -> Floats:
        """How well each sprite explains this place, in any size and shift near it: its gain, in a common unit."""
        return self._gains(place, kinds, SCALES)

    def _gains(self, place: Place, kinds: Sequence[Kind], scales: Sequence[float]) -> Floats:
        scale = CELL / place.side
        room = round((SCALES[-1] + 2 * SLACK) * CELL)
        crop, behind = (_crop(picture, place, scale, room) for picture in (self.full, self.behind))
        size = fast_length(room), fast_length(room)
        seen = np.fft.rfft2(_evidence(crop, behind, 0), size, axes=(1, 2)).reshape(8, -1)
        best = np.full(len(kinds), -np.inf, np.float32)
        for factor in scales:
            side = round(factor * CELL)
            spectra, constants = _spectra(tuple(kinds), side, size)
            products = np.einsum("kcf,cf->kf", spectra, seen).reshape(len(kinds), size[0], -1)
            valid = room - side + 1
            gain = np.fft.irfft2(products, size, axes=(1, 2))[:, :valid, :valid].max(axis=(1, 2)) - constants
            best = np.maximum(best, gain)
        return best

    def part(self, place: Place, room: float) -> float:
        """A sprite's gain in its place as a share of all that is not background in a square ``room`` times as large."""
        reach = room * place.side / 2
        x, y = place.center
        left, top, right, bottom = (
            max(0, round(edge * self.scale)) for edge in (x - reach, y - reach, x + reach, y + reach)
        )
        squares = np.square(self.coarse[top:bottom, left:right] - self.coarse_behind[top:bottom, left:right])
        return place.gain * self.scale**2 / max(1.0, float(squares.sum()))

    def unexplained(self, side: float) -> float:
        """The largest mean square, over a cell of this side, of what the background and all painted into it leave."""
        squares = np.square(self.coarse - self.coarse_behind).sum(-1)
        window = max(1, round(side * self.scale))
        sums = np.pad(squares, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        totals = sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
        return float(totals.max()) / window**2

    def difference(self, place: Place) -> float:
        """The mean square by which a cell differs from the background."""
        squares = np.square(self.full - self.behind).sum(-1)
        box = place.box
        return float(squares[max(0, box.top) : box.bottom, max(0, box.left) : box.right].mean())


def rivals(kind: Kind, others: Sequence[Kind] = ()) -> list[Kind]:
    """The sprite, first, and what it must be told from: all other objects in its look, itself untinted, ``others``."""
    name, look = kind
    alike = [(other.name, look) for other in objects.kinds() if other.name != name]
    itself = [] if look == ORDINARY else [(name, ORDINARY)]
    return list(dict.fromkeys([kind, *alike, *itself, *others]))


def seen(
    canvas: Canvas, kind: Kind, against: Sequence[Kind], *, alone: bool = False, tries: int = 3
) -> tuple[Place | None, str]:
    """Where an object is, if it explains one of its likeliest places best of ``against``, else what is wrong.

    against: sprites, of which ``kind`` is the first. alone: whether nothing else should be near. A place that is only a
    part of something larger does not count.
    """
    there = ""
    for rough in canvas.find(kind, tries):
        if rough.explained < FAINT:
            break
        place = canvas.fitted(rough, kind)
        best = int(canvas.gains(place, against).argmax())
        if best == 0 and canvas.part(place, ALONE_ROOM if alone else ROOM) > PART:
            return place, ""
        there = there or (against[best][0] if best else "something larger")
    if not there:
        return None, f"no {kind[0]}"
    return None, f"{kind[0]} in another look" if there == kind[0] else f"{there} in place of {kind[0]}"


def _evidence(picture: Floats, behind: Floats, pad: int) -> Floats:
    """What the gain of a sprite is computed from by correlation with `_kernels`: (8, height, width)."""
    if pad:
        edges = ((pad, pad), (pad, pad), (0, 0))
        picture, behind = np.pad(picture, edges, mode="edge"), np.pad(behind, edges, mode="edge")
    off = picture - behind
    channels = [
        2 * off,
        -2 * (off * behind).sum(-1, keepdims=True),
        2 * behind,
        -np.square(behind).sum(-1, keepdims=True),
    ]
    return np.moveaxis(np.concatenate(channels, axis=-1), -1, 0)


def _match(evidence: Spectra, within: tuple[int, int], kernels: Floats, constant: float) -> tuple[Floats, Floats]:
    """The gain of a sprite at each place of a picture of ``within`` pixels, and the share of its contrast explained."""
    size = fast_length(within[0]), fast_length(within[1])
    spectra = np.conj(np.fft.rfft2(kernels, size, axes=(1, 2)))
    rows, columns = within[0] - kernels.shape[1] + 1, within[1] - kernels.shape[2] + 1
    gain = np.fft.irfft2((evidence * spectra).sum(0), size)[:rows, :columns] - constant
    contrast = constant - np.fft.irfft2((evidence[4:] * spectra[4:]).sum(0), size)[:rows, :columns]
    # Where the picture differs from the background even more than the sprite does, it explains no more than itself.
    share = np.minimum(gain / np.maximum(contrast, 1), 1)
    return gain.astype(np.float32), share.astype(np.float32)


@functools.lru_cache(maxsize=2048)
def _kernels(kind: Kind, side: int) -> tuple[Floats, float]:
    return kernels(np.asarray(objects.sprite(*kind, side), np.float32))


def kernels(rgba: Floats) -> tuple[Floats, float]:
    """A sprite as what `_evidence` is correlated with, (8, height, width), and the constant to be taken off.

    With picture p, background b, sprite s and coverage a the gain |p - b|^2 - |p - b - a (s - b)|^2 is
    2 (p - b) . a s - 2 (p - b) . b a + 2 b . a^2 s - b . b a^2 - a^2 s . s.
    """
    color, alpha = rgba[..., :3], rgba[..., 3:] / 255
    stacked = np.concatenate([alpha * color, alpha, alpha**2 * color, alpha**2], axis=-1)
    return np.moveaxis(stacked, -1, 0), float(np.square(alpha * color).sum())


@functools.lru_cache(maxsize=48)
def _spectra(kinds: tuple[Kind, ...], side: int, size: tuple[int, int]) -> tuple[Spectra, Floats]:
    kernels, constants = zip(*(_kernels(kind, side) for kind in kinds), strict=True)
    spectra = np.conj(np.fft.rfft2(np.stack(kernels), size, axes=(2, 3)))
    return spectra.reshape(len(kinds), 8, -1).astype(np.complex64), np.array(constants, np.float32)


def _crop(picture: Floats, place: Place, scale: float, room: int) -> Floats:
    """The surroundings of a place at ``scale``, (room, room, 3), the place in the middle."""
    reach = room / scale / 2
    x, y = place.center
    left, top, right, bottom = (round(edge) for edge in (x - reach, y - reach, x + reach, y + reach))
    height, width = picture.shape[:2]
    rows, columns = np.clip(np.arange(top, bottom), 0, height - 1), np.clip(np.arange(left, right), 0, width - 1)
    return _resized(picture[rows][:, columns], room)


def _resized(picture: Floats, side: int) -> Floats:
    how = Image.Resampling.BOX if side < picture.shape[0] else Image.Resampling.BILINEAR
    channels = [np.asarray(Image.fromarray(one).resize((side, side), how)) for one in np.moveaxis(picture, -1, 0)]
    return np.stack(channels, axis=-1)
