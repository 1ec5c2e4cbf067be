"""Unambiguous facts about a scene: what matches a name, what is where, what is bigger."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from mllama_cli.sketch.language.wording import Ref
from mllama_cli.sketch.scenes.layout import zone_of
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import COMPACT, SHAPES, Scene, Shape

APART = 0.10
"""The fraction of the image's side by which centres must differ for one to be left of or above the other."""

BIGGER = 1.35
"""The ratio from which one shape is called bigger than another."""

AXES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Relation -> (axis, sign)."""

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class SceneQueries:
    """A scene and the facts derived from it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.shapes = scene.shapes

    def matching(self, ref: Ref) -> list[Shape]:
        colour, kind = ref
        return [s for s in self.shapes if colour in (None, s.colour) and kind in (None, s.kind)]

    @cached_property
    def kinds(self) -> list[str]:
        """Return the shapes that occur, in the order of SHAPES."""
        return [kind for kind in SHAPES if any(s.kind == kind for s in self.shapes)]

    @cached_property
    def colours(self) -> list[str]:
        """Return the colours of shapes, in the order of COLOURS."""
        return [colour for colour in COLOURS if any(s.colour == colour for s in self.shapes)]

    @cached_property
    def groups(self) -> list[tuple[int, str]]:
        """Return (count, "red circle") by shape, then by colour: the order of captions."""
        count = Counter((s.kind, s.colour) for s in self.shapes)
        order = sorted(count, key=lambda pair: (SHAPES.index(pair[0]), COLOURS.index(pair[1])))
        return [(count[pair], f"{pair[1]} {pair[0]}") for pair in order]

    def zone(self, x: float, y: float) -> str | None:
        return zone_of(x, y, self.scene.width, self.scene.height)

    def zone_of(self, shape: Shape) -> str | None:
        return self.zone(shape.x, shape.y)

    def unique_refs(self, shape: Shape) -> list[Ref]:
        """Return the names that mean this shape and no other."""
        refs: list[Ref] = [(None, shape.kind), (shape.colour, shape.kind), (shape.colour, None)]
        return [ref for ref in refs if len(self.matching(ref)) == 1]

    def offset(self, one: Shape, other: Shape, axis: int) -> float:
        """Return how much farther right (axis 0) or lower (axis 1) ``one`` is, as a fraction of the image's side."""
        if axis == 0:
            return (one.x - other.x) / self.scene.width
        return (one.y - other.y) / self.scene.height

    def is_related(self, one: Shape, relation: str, other: Shape) -> bool | None:
        """Return whether ``one`` is left of (right of, above, below) ``other``; None where it is ambiguous."""
        axis, sign = AXES[relation]
        distance = self.offset(one, other, axis) * sign
        far = abs(one.x - other.x) if axis == 0 else abs(one.y - other.y)
        if abs(distance) < APART or far < 0.12:
            return None
        return distance > 0

    def outermost(self, relation: str) -> Shape | None:
        """Return the shape that is clearly the farthest left, right, above or below, if there is one."""
        if not self.shapes:
            return None
        axis, sign = AXES[relation]
        ordered = sorted(self.shapes, key=lambda s: sign * (s.x if axis == 0 else s.y))
        if len(ordered) > 1 and not self.is_related(ordered[-1], relation, ordered[-2]):
            return None
        return ordered[-1]

    def left_to_right(self) -> list[Shape] | None:
        """Return all shapes from left to right, if the order is unambiguous."""
        ordered = sorted(self.shapes, key=lambda s: s.x)
        gaps = [b.x - a.x for a, b in pairwise(ordered)]
        return ordered if all(gap > 0.06 * self.scene.width for gap in gaps) else None

    def by_zone(self, shapes: Sequence[Shape]) -> list[tuple[Shape, str]] | None:
        """Return shapes with their zones in reading order, if each has a zone of its own."""
        pairs = [(shape, self.zone_of(shape)) for shape in shapes]
        clear = [(shape, zone) for shape, zone in pairs if zone is not None]
        zones = [zone for _, zone in clear]
        if len(clear) < len(pairs) or len(set(zones)) < len(zones):
            return None
        order = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
        return sorted(clear, key=lambda pair: order.index(pair[1]))

    def bigger(self, one: Shape, other: Shape) -> bool | None:
        """Return whether ``one`` is bigger; None where it is ambiguous."""
        if one.kind not in COMPACT or other.kind not in COMPACT:
            return None
        ratio = one.size / other.size
        areas = one.width * one.height / (other.width * other.height)
        if ratio >= BIGGER and areas >= BIGGER:
            return True
        return False if ratio <= 1 / BIGGER and areas <= 1 / BIGGER else None

    def extreme(self, biggest: bool) -> Shape | None:
        """Return the clearly biggest or smallest shape, if there is one."""
        for shape in self.shapes:
            others = [other for other in self.shapes if other is not shape]
            if others and all(self.bigger(shape, other) is biggest for other in others):
                return shape
        return None
