"""Which images a path, a URL, a pattern or several of them mean: for --image and /image."""

import glob
from collections.abc import Iterable

from mllama_cli.chat.dropped_paths import find_images, unquoted_words
from mllama_cli.core.errors import ImageNotFoundError
from mllama_cli.system.files import expanded, is_file, is_folder
from mllama_cli.system.patterns import matching_images


def expand_patterns(sources: Iterable[str]) -> list[str]:
    """Replace each pattern by the images that it matches. Raise ImageNotFoundError if one matches none."""
    found: list[str] = []
    for source in sources:
        images = matching_images(source)
        if images == []:
            raise ImageNotFoundError(f"no picture matches {source}", "Check the pattern.")
        found += [source] if images is None else images
    return found


def typed_images(argument: str) -> list[str]:
    """Return the images that the argument of /image means.

    That is a folder, a pattern or a path, which may have spaces in it, or several of them as a terminal pastes them:
    quoted or escaped. Raise ImageNotFoundError if a folder or pattern has none.
    """
    words = unquoted_words(argument)
    for whole in (argument, *words[: len(words) == 1]):
        if is_folder(expanded(whole)):
            inside = matching_images(f"{glob.escape(str(expanded(whole)))}/*")
            if not inside:
                raise ImageNotFoundError(f"there are no pictures in {whole}", "Name another folder, or a picture.")
            return inside
        if images := matching_images(whole):
            return images
    if not is_file(expanded(argument)) and any(map(matching_images, words)):
        return expand_patterns(words)
    if matching_images(argument) == []:
        return expand_patterns(words[:1] if len(words) == 1 else [argument])
    dropped = find_images(argument)
    return [argument] if dropped.text.strip() or not dropped.paths else list(dropped.paths)
