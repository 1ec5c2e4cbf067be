"""Lengths of time as people write them."""

import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


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
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{text} is not a length of time")
    return seconds
