"""The contents of an image, as plain data. Lengths are in units of the image's shorter side; y grows downwards."""

from dataclasses import dataclass, field

from mllama_cli.sketch.scenes.palette import Rgb

SHAPES = (
    "circle",
    "oval",
    "square",
    "rectangle",
    "triangle",
    "diamond",
    "star",
    "heart",
    "cross",
    "ring",
    "arrow",
    "line",
)
COMPACT = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
"""Shapes about as wide as high: the only ones whose sizes are compared."""

DIRECTIONS = ("right", "down", "left", "up")
"""Where arrows point, in quarter turns clockwise."""


@dataclass(frozen=True)
class Shape:
    """One drawn object.

    Attributes:
        kind: its name, of SHAPES.
        colour: the name of its colour; ``rgb`` is one value of that name.
        x, y: the centre of its bounding box.
        width, height: of the bounding box, before rotation by ``angle`` (degrees, clockwise).
        line: stroke width of an outline, 0 for a filled shape.
        border: the colour of a thin edge around a filled shape, None for none.
        hatch: the space between crayon strokes that fill the shape, 0 for an even fill.
        wobble: how unsteady the hand was, 0 for a ruler.
        detail: a number from 0 to 1 that varies the shape's own proportions.
    """

    kind: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    width: float
    height: float
    angle: float = 0.0
    line: float = 0.0
    border: Rgb | None = None
    hatch: float = 0.0
    wobble: float = 0.0
    detail: float = 0.5
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def size(self) -> float:
        return max(self.width, self.height)

    @property
    def direction(self) -> str:
        """Return where an arrow points."""
        return DIRECTIONS[round(self.angle / 90) % 4]


@dataclass(frozen=True)
class Lettering:
    """Printed text. ``size`` is the height of a line; ``font`` a file, empty for Pillow's own."""

    text: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    width: float
    size: float
    font: str = ""
    angle: float = 0.0


@dataclass(frozen=True)
class Background:
    """``kind``: plain, gradient, grain, grid, ruled or paper; ``colour`` its name where that is unambiguous.

    ``axes`` is the distance of a plot's frame from the edges, as a fraction of the image's sides; 0 for no plot.
    """

    rgb: Rgb
    kind: str = "plain"
    colour: str | None = None
    other: Rgb | None = None
    strength: float = 0.0
    frame: Rgb | None = None
    axes: float = 0.0


@dataclass(frozen=True)
class Finish:
    """Effects applied to the image after drawing."""

    smooth: bool = True
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    shade: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A whole image: ``width`` x ``height`` units (the shorter is 1) at ``pixels`` per unit."""

    width: float
    height: float
    pixels: int
    background: Background
    shapes: tuple[Shape, ...] = ()
    lettering: Lettering | None = None
    finish: Finish = field(default_factory=Finish)
    seed: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        return max(8, round(self.width * self.pixels)), max(8, round(self.height * self.pixels))
