"""What follows the # of a source: pages (report.pdf#2-4), times (clip.mp4#0:10-0:20), a crop, or all."""

import re
from collections.abc import Sequence

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import shown

ALL = "all"

_NUMBER = r"[0-9]{1,9}"
_TIME = rf"(?:{_NUMBER}:){{0,2}}{_NUMBER}(?:\.[0-9]{{1,6}})?s?"
_RANGE = rf"{_NUMBER}(?:-(?:{_NUMBER})?)?"
_PAGES = re.compile(rf"{_RANGE}(?:,{_RANGE})*")
_TIMES = re.compile(rf"(?P<start>{_TIME})(?P<dash>-)?(?P<end>(?<=-){_TIME})?")
_CROP = re.compile(rf"{_NUMBER}(?:,{_NUMBER}){{3}}")

Crop = tuple[int, int, int, int]
"""(x, y, width, height) in pixels, from the upper left corner."""


def split_selection(source: str) -> tuple[str, str]:
    """Return a source without its selection, and the selection; "" if the text after the last # is not one.

    A file whose name ends so is for the caller to find first.

    >>> split_selection("report.pdf#2-4"), split_selection("clip.mp4#0:10-0:20"), split_selection("C# notes.png")
    (('report.pdf', '2-4'), ('clip.mp4', '0:10-0:20'), ('C# notes.png', ''))
    """
    before, mark, after = source.rpartition("#")
    return (before, after) if mark and before and is_selection(after) else (source, "")


def is_selection(text: str) -> bool:
    return text == ALL or any(form.fullmatch(text) for form in (_PAGES, _TIMES, _CROP))


def is_pages(text: str) -> bool:
    return text == ALL or _PAGES.fullmatch(text) is not None


def page_numbers(selection: str, count: int, name: str, *, what: str = "page") -> Sequence[int]:
    """Return the numbers from 1 that a selection names, of ``count`` pages; all of them if it is empty.

    Raise UsageError, with ``name`` and ``what`` the pages are called, if it names none or one that is not there.

    >>> page_numbers("1,3-", 5, "report.pdf")
    [1, 3, 4, 5]
    """
    if selection in ("", ALL):
        return range(1, count + 1)
    if not _PAGES.fullmatch(selection):
        raise UsageError(
            f"{name} has {what}s, which {shown(selection)} does not name", f"For example: {name}#2-4, or {name}#1,3,5"
        )
    numbers: list[int] = []
    for piece in selection.split(","):
        first, dash, last = piece.partition("-")
        start, end = int(first), int(last) if last else count if dash else int(first)
        wrong = start if start > count or start < 1 else end
        if wrong > count or wrong < 1:
            has = f"{count} {what}{'s' * (count != 1)}"
            raise UsageError(f"{name} has {has}, and no {what} {wrong}", f"The last one is {name}#{count}.")
        if end < start:
            raise UsageError(f"{name}: {what}s {piece} end before they begin", f"Write {name}#{end}-{start}.")
        if len(numbers) + end - start >= 2 * count + 1:  # the same pages again and again
            raise UsageError(f"{name}: {shown(selection)} names {what}s more than once", "Name each once.")
        numbers += range(start, end + 1)
    return numbers


def time_span(selection: str, name: str) -> tuple[float, float | None]:
    """Return the start and end, in seconds, that a selection names; the end is None if it is that of the video.

    A single time starts and ends there. Raise UsageError, with ``name``, if it names no times.

    >>> time_span("0:10-1:00:20.5", "clip.mp4"), time_span("90-", "clip.mp4"), time_span("1:30", "clip.mp4")
    ((10.0, 3620.5), (90.0, None), (90.0, 90.0))
    """
    if selection in ("", ALL):
        return 0.0, None
    found = _TIMES.fullmatch(selection)
    if found is None:
        raise UsageError(
            f"{name} is a video, and {shown(selection)} is not a part of one", f"For example: {name}#0:10-0:20"
        )
    start = _seconds(found["start"])
    end = _seconds(found["end"]) if found["end"] else None if found["dash"] else start
    if end is not None and end < start:
        raise UsageError(f"{name}: {selection} ends before it begins", f"Write {name}#{found['end']}-{found['start']}.")
    return start, end


def crop_box(selection: str) -> Crop | None:
    """Return the crop that a selection names; None if it is not four numbers.

    >>> crop_box("100,200,400,300"), crop_box("2-4")
    ((100, 200, 400, 300), None)
    """
    if not _CROP.fullmatch(selection):
        return None
    x, y, width, height = map(int, selection.split(","))
    return x, y, width, height


def clock(seconds: float) -> str:
    """Return a time as ``time_span`` reads it.

    >>> clock(9.96), clock(75.25), clock(3600)
    ('0:09.96', '1:15.25', '1:00:00')
    """
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    second = f"{rest // 100:02d}" + (f".{rest % 100:02d}".rstrip("0") if rest % 100 else "")
    return f"{hours}:{minutes:02d}:{second}" if hours else f"{minutes}:{second}"


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.rstrip("s").split(":"):
        total = total * 60 + float(part)
    return total
