"""Turn the model's answer into the caption."""

import re
from dataclasses import dataclass

from mllama_cli.captioning.prompts import as_tags

_KIND = r"(?:image|picture|photo|photograph|drawing|illustration|painting|scene)"
_SHOWS = r"(?:shows?|depicts?|features?|captures?|displays?|presents?|portrays?|is\ of|contains)"
_BOILERPLATE = re.compile(
    rf"""^(?:
        (?:sure|certainly|okay|of\ course)[^\n.!:]*[.!:]\s*
      | here(?:\ is|'s)\ [^\n:]*:\s*
      | (?:caption|description|alt\ text|tags)\s*:\s*
      | (?:the|this)\ {_KIND}\ {_SHOWS}\ (?:us\ )?
      | (?:an?|the)\ {_KIND}\ (?:of|showing|depicting)\ (?=\w)
      | in\ (?:the|this)\ {_KIND},?\ (?:(?:there\ (?:is|are)|we\ (?:can\ )?see|you\ (?:can\ )?see|i\ (?:can\ )?see)\ )?
      | (?:i|we|you)\ (?:can\ )?see\s
    )+""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Postprocess:
    """Turn an answer into a caption.

    ``strip`` cuts boilerplate openings ("The image shows"), ``tags`` makes one line of tags, and ``prefix`` and
    ``suffix`` are put around the result verbatim (trigger words).
    """

    strip: bool = False
    tags: bool = False
    prefix: str = ""
    suffix: str = ""

    def __call__(self, answer: str) -> str:
        """Return the caption of an answer, whose leading and trailing white space is dropped."""
        text = answer.strip()
        if self.strip:
            text = without_opening(text)
        if self.tags:
            text = ", ".join(as_tags(text))
        return f"{self.prefix}{text}{self.suffix}"


def without_opening(text: str) -> str:
    """Return the text without an opening such as "The image shows", capitalised.

    >>> without_opening("This photo shows a dog on a beach.")
    'A dog on a beach.'
    >>> without_opening("In the image, there is a cat.")
    'A cat.'
    >>> without_opening("The image")
    'The image'
    """
    quotes = "\"' \n"
    rest = _BOILERPLATE.sub("", text, count=1).lstrip(quotes)
    if not rest or rest == text.lstrip(quotes):
        return text
    if not text.startswith('"') and text.endswith('"') and rest.count('"') == 1:
        rest = rest.removesuffix('"')  # Here is a caption: "A dog."
    return rest[0].upper() + rest[1:]
