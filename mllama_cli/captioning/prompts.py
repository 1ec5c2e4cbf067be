"""Prompt styles, and prompt templates that are filled in for each image."""

import re
from dataclasses import dataclass

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.errors import UsageError

STYLES = {
    "short": "Describe this image in one short sentence.",
    "detailed": "Describe this image in detail.",
    "alt-text": "Describe this image in one sentence of at most 125 characters, as alternative text for somebody "
    "who cannot see it.",
    "tags": "Describe this image with 5 to 20 short tags, separated by commas. Say nothing else.",
}
DEFAULT_PROMPT = "Describe this image in one or two sentences."
STYLE_MAX_TOKENS = {"short": 64, "alt-text": 64, "tags": 128, "detailed": 512}
CAPTION_MAX_TOKENS = 256
"""In a longer caption the model usually repeats itself."""

VARIABLES = ("name", "stem", "folder", "existing", "tags")
SAMPLE_VARIABLES = ("txt", "json")
_VARIABLE = re.compile(r"\{(\w+|json(?:\.\w+)+)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with variables. Other braces are kept.

    {name} is photo.jpg, {stem} photo, {folder} the name of its folder, {existing} the text of its caption file, and
    {tags} that text as comma-separated tags. In a shard, {txt} is the sample's text and {json.field} a field of its
    JSON, or a column.
    """

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UsageError("The prompt is empty", "Leave it out for the default one.")
        known = (*VARIABLES, *SAMPLE_VARIABLES)
        unknown = [name for name in _VARIABLE.findall(self.text) if name.partition(".")[0] not in known]
        if unknown:
            raise UsageError(
                f"The prompt has an unknown variable {{{unknown[0]}}}",
                f"There are {', '.join(map('{{{}}}'.format, VARIABLES))}; of shards also {{txt}} and {{json.FIELD}}.",
            )

    @property
    def reads_existing(self) -> bool:
        """Return whether the prompt needs the text of caption files."""
        return not {"existing", "tags"}.isdisjoint(_VARIABLE.findall(self.text))

    @property
    def reads_samples(self) -> bool:
        """Return whether the prompt needs the texts of samples in shards."""
        return any(name.partition(".")[0] in SAMPLE_VARIABLES for name in _VARIABLE.findall(self.text))

    def fill(self, entry: ImageEntry, existing: str = "") -> str:
        """Return the prompt for one image; ``existing`` is the text of its caption file.

        Raises ImageError if it quotes what the image's sample does not have.
        """
        values = {
            "name": entry.name,
            "stem": entry.stem,
            "folder": re.split(r"[/\\]", entry.folder.rstrip("/\\"))[-1],
            "existing": existing.strip(),
            "tags": ", ".join(as_tags(existing)),
        }

        def value(found: re.Match[str]) -> str:
            return values[found[1]] if found[1] in values else entry.variable(found[1])

        filled = _VARIABLE.sub(value, self.text)
        return filled.encode("utf-8", "replace").decode()  # a file's name may be any bytes


def as_tags(text: str) -> list[str]:
    """Split a text at commas, semicolons and line ends into tags, each once, without bullets and full stops.

    >>> as_tags("cat, Cat;  a dog.\\n- red ball")
    ['cat', 'a dog', 'red ball']
    """
    tags: dict[str, str] = {}
    for piece in re.split(r"[,;\n]", text):
        tag = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", piece).strip(" .\t")
        if tag:
            tags.setdefault(tag.casefold(), tag)
    return list(tags.values())
