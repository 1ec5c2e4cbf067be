"""Find fonts for printed text. Pillow's own is always available."""

import importlib.util
import os
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FONTS_VARIABLE = "MLLAMA_SKETCH_FONTS"
"""The environment variable that names a folder of additional TrueType files."""

_KNOWN = ("DejaVu", "Liberation")
_UNFIT = ("Symbol", "Math", "DejaVuSansDisplay", "DejaVuSerifDisplay", "ExtraLight", "Emoji", "Icons", "Music")


@lru_cache(maxsize=8)
def find_fonts(folder: str | None = None) -> tuple[str, ...]:
    """Return font files sorted by name, and "" for Pillow's own: the folder's, DejaVu and Liberation."""
    found: dict[str, str] = {}
    folder = folder or os.environ.get(FONTS_VARIABLE)
    if folder:
        found.update((path.name, str(path)) for path in Path(folder).rglob("*.[to]tf"))
    for system_folder in _font_folders():
        for path in system_folder.rglob("*.ttf"):
            if path.name.startswith(_KNOWN) and not any(word in path.name for word in _UNFIT):
                found.setdefault(path.name, str(path))
    return ("", *(found[name] for name in sorted(found)))


@lru_cache(maxsize=512)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font at a size in pixels."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def _font_folders() -> list[Path]:
    folders = [Path("/usr/share/fonts/truetype/dejavu"), Path("/usr/share/fonts/truetype/liberation")]
    spec = importlib.util.find_spec("matplotlib")  # without importing it: only its data files matter
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf")
    return [folder for folder in folders if folder.is_dir()]
