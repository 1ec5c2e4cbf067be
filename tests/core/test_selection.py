"""What follows the # of a source: pages, times and crops, and mistakes in them."""

import pytest

from mllama_cli.core.errors import UsageError
from mllama_cli.core.selection import clock, is_pages, is_selection, page_numbers, split_selection, time_span


@pytest.mark.parametrize(
    "text", ["2", "2-4", "3-", "1,3,5-7", "all", "0:10", "0:10-0:20", "1:02:03.5-", "10s-20s", "1.5", "1,2,3,4"]
)
def test_selections(text: str) -> None:
    assert is_selection(text)
    assert split_selection(f"a#b.pdf#{text}") == ("a#b.pdf", text)


@pytest.mark.parametrize(
    "text", ["", "x", "-", "-3", "1-2-3", "1,,2", "1;2", "٣", "1:2:3:4", "all ", "9" * 12, "1.5.2"]
)
def test_a_name_may_have_a_hash_in_it(text: str) -> None:
    assert split_selection(f"a.pdf#{text}") == (f"a.pdf#{text}", "")


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [("", [1, 2, 3, 4]), ("all", [1, 2, 3, 4]), ("2", [2]), ("2-", [2, 3, 4]), ("4,1-2", [4, 1, 2]), ("1,1", [1, 1])],
)
def test_pages(selection: str, numbers: list[int]) -> None:
    assert list(page_numbers(selection, 4, "a.pdf")) == numbers


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("5", "a.pdf has 4 pages, and no page 5"),
        ("0", "a.pdf has 4 pages, and no page 0"),
        ("2-9", "a.pdf has 4 pages, and no page 9"),
        ("3-0", "a.pdf has 4 pages, and no page 0"),
        ("3-2", "a.pdf: pages 3-2 end before they begin"),
        ("0:10", "a.pdf has pages, which '0:10' does not name"),
        (",".join(["1-4"] * 1000), "a.pdf: "),
    ],
)
def test_pages_that_are_not_there(selection: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        page_numbers(selection, 4, "a.pdf")
    assert caught.value.message.startswith(message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("selection", "span"),
    [("", (0, None)), ("5", (5, 5)), ("5-", (5, None)), ("0:10-0:20", (10, 20)), ("10s-1:00:00", (10, 3600))],
)
def test_times(selection: str, span: tuple[float, float | None]) -> None:
    assert time_span(selection, "a.mp4") == span


@pytest.mark.parametrize("selection", ["0:20-0:10", "1,2,3,4"])
def test_times_that_cannot_be(selection: str) -> None:
    with pytest.raises(UsageError, match=r"a\.mp4"):
        time_span(selection, "a.mp4")


@pytest.mark.parametrize("seconds", [0, 0.04, 9.999, 59.995, 61.5, 3599.99, 3600, 360_000.25])
def test_a_time_is_written_as_it_is_read(seconds: float) -> None:
    start, _ = time_span(clock(seconds), "a.mp4")
    assert start == pytest.approx(seconds, abs=0.0051)


def test_pages_of_an_option() -> None:
    assert [is_pages(text) for text in ("2-4", "1,3", "all", "0:10", "")] == [True, True, True, False, False]
