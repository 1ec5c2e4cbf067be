"""Lengths of time as people write them."""

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
MAX_SECONDS = 1e10
"""Three centuries: more is a mistake, and no date."""
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as "30s", "1h30m" or "30", which means seconds. Raise ValueError for others.

    >>> parse_duration("30s"), parse_duration("1h30m"), parse_duration("0.5")
    (30.0, 5400.0, 0.5)
    """
    text = text.strip().lower()
    parts = _PART.findall(text)
    if parts and "".join(map("".join, parts)) == text:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        seconds = float(text)
    if not 0 <= seconds < MAX_SECONDS:
        raise ValueError(f"{text} is not a length of time")
    return seconds


def is_duration(text: str) -> bool:
    """Return whether ``parse_duration`` reads a text."""
    try:
        parse_duration(text)
    except ValueError:
        return False
    return True


def read_duration(value: object) -> float:
    """Return the seconds of a number, or of a text as ``parse_duration`` reads it, also with a minus before it.

    Raise ValueError for others.

    >>> read_duration(300), read_duration("-1m"), read_duration("250ms")
    (300.0, -60.0, 0.25)
    """
    if isinstance(value, int | float) and type(value) is not bool and abs(value) < MAX_SECONDS:
        return float(value)
    if not isinstance(value, str):
        raise ValueError(f"{value} is not a length of time")
    text = value.strip()
    return -parse_duration(text[1:]) if text.startswith("-") else parse_duration(text)


def shown_duration(seconds: float) -> str:
    """Return a length of time in its two largest units, as ``parse_duration`` reads it.

    >>> shown_duration(59.4), shown_duration(600), shown_duration(5430)
    ('59s', '10m', '1h30m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60}m" if minutes % 60 else f"{minutes // 60}h"


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
