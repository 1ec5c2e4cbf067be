"""Make docs/images/page.png, a picture of the page that `mllama serve` has, from a real chat in Chromium.

    python .github/page.py

Needs the `test` extra and Debian's chromium. Run it from the root of the repository when the page has changed.
"""

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mllama_cli.engine.engine import load  # noqa: E402
from tests.serving.browser import Browser, browser  # noqa: E402
from tests.serving.running import serving  # noqa: E402


def talk(tab: Browser, url: str) -> bytes:
    """Ask about a drawing; return the screenshot."""
    tab.look(760, 860)
    tab.open(url)
    tab.wait("document.querySelector('#model').textContent")
    tab.choose("#files", ROOT / "tests/data/drawing.png")
    tab.wait("document.querySelector('#tray img')")
    for number, question in enumerate(("What is in this picture?", "Which colour does the star have?"), 1):
        tab.write(question)
        tab.press("Enter")
        tab.wait(
            f"document.querySelectorAll('.about .quiet').length > {number} && document.querySelector('#stop').hidden"
        )
    tab.wait("document.getAnimations().length === 0")
    return tab.screenshot()


with serving(load("sketch", device="cpu", vision=True)) as server, browser() as tab:
    picture = Image.open(io.BytesIO(talk(tab, server.url))).convert("RGB")
picture.quantize(128).save(ROOT / "docs" / "images" / "page.png", optimize=True)
