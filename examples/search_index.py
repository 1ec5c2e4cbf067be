"""Caption a folder of images and search them by words:  python examples/search_index.py photos/ "red star" """

import sqlite3
import sys
from pathlib import Path

from mllama_cli import Conversation, Sampling, load, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def build(folder: Path, model: str | None = None) -> sqlite3.Connection:
    """Caption the images that are not in the folder's index yet, eight at a time, and return the index."""
    index = sqlite3.connect(folder / "captions.db")
    index.execute("CREATE VIRTUAL TABLE IF NOT EXISTS captions USING fts5(path UNINDEXED, caption)")
    known = {path for (path,) in index.execute("SELECT path FROM captions")}
    new = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and str(file) not in known)
    engine = load(model) if new else None
    for start in range(0, len(new), 8):
        files = new[start : start + 8]
        questions = [Conversation.ask("What is in this picture?", (read_image(file),)) for file in files]
        replies = engine.answer_batch(questions, Sampling(temperature=0, max_tokens=100))
        rows = [(str(file), reply.text) for file, reply in zip(files, replies, strict=True)]
        with index:  # an interrupted run goes on with the next eight
            index.executemany("INSERT INTO captions VALUES (?, ?)", rows)
    return index


def search(index: sqlite3.Connection, words: str) -> list[tuple[str, str]]:
    """Return path and caption of the images whose caption has all the words, the best match first."""
    quoted = " ".join(f'"{word}"' for word in words.split())
    return index.execute(
        "SELECT path, caption FROM captions WHERE captions MATCH ? ORDER BY rank", (quoted,)
    ).fetchall()


if __name__ == "__main__":
    for path, caption in search(build(Path(sys.argv[1])), sys.argv[2]):
        print(f"{path}: {caption}")
