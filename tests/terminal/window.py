"""A terminal window without a screen: what a person would see of what a program wrote, and could scroll back to."""

import pyte


class Window:
    """``columns`` x ``rows`` cells and everything that scrolled out of them at the top.

    ``raw``: what is fed comes from a pseudo terminal, which has turned newlines into carriage return and line feed.
    """

    def __init__(self, columns: int = 80, rows: int = 24, *, raw: bool = False) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        if not raw:
            self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.ByteStream(self.screen)

    def feed(self, written: str) -> "Window":
        return self.feed_bytes(written.encode())

    def feed_bytes(self, written: bytes) -> "Window":
        self._stream.feed(written)
        return self

    @property
    def visible(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def lines(self) -> list[str]:
        """All lines, the ones scrolled away first, without the empty ones at the end."""
        width = self.screen.columns
        gone = ["".join(line[place].data for place in range(width)).rstrip() for line in self.screen.history.top]
        return "\n".join(gone + self.visible).rstrip("\n").split("\n")
