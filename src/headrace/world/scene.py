"""A scene: everything that a drawn picture shows, exactly. All lengths and places are in pixels, y pointing down."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.world.colors import RGB, Color


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels; ``right`` and ``bottom`` are the first column and row outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Background:
    """What is behind everything.

    kind: "plain" has one colour, the others two. "gradient" goes from the first colour at the start to the second at
    the end; "striped" has stripes of the two in turn; "checked" has squares of the two.
    direction: where the colours change, "across" (left to right), "down" (top to bottom) or, for gradients and stripes,
    "diagonal" (top left to bottom right); "" for the other kinds.
    band: width of a stripe, or side of a square, in pixels; 0 for the other kinds.
    """

    kind: str
    colors: tuple[Color, ...]
    direction: str = ""
    band: int = 0


@dataclass(frozen=True)
class Look:
    """How one copy of an object or a figure differs from its ordinary looks.

    tint: drawn in shades of this colour. lower: then the lower half is drawn in shades of this one. hue: the hue is
    turned by so many degrees. mirrored: left and right are exchanged. Only ``tint`` is ever said in a caption.
    """

    tint: Color | None = None
    lower: Color | None = None
    hue: int = 0
    mirrored: bool = False


ORDINARY = Look()


@dataclass(frozen=True)
class Group:
    """One or more copies of an object, all of one look and size.

    name: of the object, as in `headrace.world.objects`. size: "large", "medium", "small", or None where the size is
    nothing to speak of. boxes: the square cell of each copy; the object touches two opposite sides of it, and nothing
    of it, save its shadow, is outside.
    """

    name: str
    look: Look
    size: str | None
    boxes: tuple[Box, ...]


Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """COCO-18 keypoints in the order of `headrace.pose.skeleton.KEYPOINTS`; None where a point is not seen.

    name: of the pose, as in `headrace.world.skeletons.POSES`, where it is one that can be asked for.
    """

    keypoints: tuple[Point | None, ...]
    name: str | None = None


@dataclass(frozen=True)
class Skeleton:
    """A pose as OpenPose draws it; ``radius`` of its joints, and half the width of its limbs, in pixels."""

    pose: Pose
    radius: float


@dataclass(frozen=True)
class Figure:
    """A character in a pose. ``look.tint`` is the colour of its body or jacket, ``look.lower`` that of its legs.

    character: as in `headrace.world.figures.CHARACTERS`. box: nothing of the figure, save its shadow, is outside.
    """

    character: str
    look: Look
    pose: Pose
    box: Box


Thing = Group | Figure


def boxes(thing: Thing) -> tuple[Box, ...]:
    """The box of each copy of an object, or the one of a figure."""
    return thing.boxes if isinstance(thing, Group) else (thing.box,)


@dataclass(frozen=True)
class Relation:
    """Where a thing is: ``subject`` and ``others`` are indices into the scene's things.

    kind: "left of", "right of", "above", "below" (one other), "between" (two others), or one of `CORNERS` (none).
    """

    kind: str
    subject: int
    others: tuple[int, ...] = ()


SIDES: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Relations to one other thing, and the direction (x, y) of the subject seen from it."""

CORNERS: dict[str, tuple[int, int]] = {
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
"""The corners of a picture, and their directions (x, y) from its middle."""


@dataclass(frozen=True)
class Glyph:
    """A letter of a text and the tight box of its ink."""

    character: str
    box: Box


@dataclass(frozen=True)
class Text:
    """A word or two to be read.

    face: "sans", "serif" or "typewriter". size: of the font in pixels. place: "top", "middle", "bottom" or one of
    `CORNERS`. glyphs: without the spaces. box: of all the ink.
    """

    text: str
    face: str
    color: Color
    place: str
    size: int
    origin: tuple[int, int]
    glyphs: tuple[Glyph, ...]
    box: Box


LIGHTS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the light can come from, and the direction (x, y) of it from the middle."""


@dataclass(frozen=True)
class Scene:
    """What one picture of ``width`` x ``height`` pixels shows, drawn in this order.

    things: objects and figures, which do not overlap. relations: those that the layout was made for; they hold, but
    others may hold too. texts: nothing covers them. light: one of `LIGHTS`; shadows fall away from it. skeletons:
    poses drawn as OpenPose draws them, in a scene that shows nothing else.
    """

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...] = ()
    relations: tuple[Relation, ...] = ()
    texts: tuple[Text, ...] = ()
    light: str = "above"
    skeletons: tuple[Skeleton, ...] = ()


def plain(color: RGB | Color) -> Background:
    """A background of one colour."""
    return Background("plain", (color if isinstance(color, Color) else Color(color),))
