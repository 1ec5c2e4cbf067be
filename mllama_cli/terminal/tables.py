"""Tables of results: what people copy is never cut, and a narrow screen wraps only what may be wrapped."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mllama_cli.terminal.console import Terminal


def print_table(
    terminal: Terminal,
    titles: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    wrapped: Collection[str] = (),
) -> None:
    """Print rows under titles. Only the ``wrapped`` columns shrink, at blanks; ``right`` ones are aligned right."""
    cells = [[cell if isinstance(cell, Text) else terminal.out.render_str(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(titles):
        texts = [title, *(row[index].plain for row in cells)]
        if title in wrapped:
            texts = [word for text in texts for word in text.split()]
        table.add_column(
            title,
            justify="right" if title in right else "left",
            no_wrap=title not in wrapped,
            min_width=min(max(map(cell_len, texts), default=0), terminal.out.width),
        )
    for row in cells:
        table.add_row(*row)
    if terminal.stdout_is_tty:
        terminal.out.print(table)
        return
    with terminal.out.capture() as captured:
        terminal.out.print(table)
    # Rich fills the last column with blanks, which would wrap in a window that shows the piped text.
    terminal.result("\n".join(line.rstrip() for line in captured.get().split("\n")))


def print_facts(terminal: Terminal, rows: Iterable[tuple[str, str | Path]]) -> None:
    """Print labels in bold and what they stand for. A path that is too long gets a line of its own, unbroken."""
    facts = list(rows)
    width = max(cell_len(label) for label, _ in facts)
    for label, value in facts:
        name: RenderableType = Text(label, style="bold")
        if isinstance(value, Path) and width + 1 + cell_len(str(value)) > terminal.out.width:
            terminal.out.print(name)
            terminal.out.print(str(value), soft_wrap=True)
            continue
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        table.add_row(name, str(value))
        terminal.out.print(table)


def fits(terminal: Terminal, titles: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> bool:
    """Return whether the table fits on the screen without wrapping."""
    columns = zip(titles, *rows, strict=True)
    widths = [max(cell_len(str(cell)) for cell in column) for column in columns]
    return sum(widths) + len(widths) - 1 <= terminal.out.width
