"""Describe one image:  python examples/describe.py photo.jpg [model]"""

import sys

from mllama_cli import Conversation, Token, load, read_image


def describe(image: str, model: str | None = None) -> None:
    """Print the description as it is written. Without a model, the one that `mllama chat` would use answers."""
    engine = load(model)
    question = Conversation.ask("What is in this picture?", (read_image(image),))
    for event in engine.stream(question):
        if isinstance(event, Token):
            print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    describe(*sys.argv[1:])
