"""Rich's console, made safe for text of strangers."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from mllama_cli.core.text import one_line, strip_control


class SafeConsole(Console):
    """A console on which names, models and servers cannot send escape sequences or forge lines.

    A string, also one in the cell of a table, becomes one line of at most ``line_limit`` characters; a ``Text`` may
    have several lines, but no control characters.
    """

    def __init__(self, *, line_limit: int, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        self._line_limit = line_limit

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(one_line(text, self._line_limit), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else strip_control(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)
