"""Ask several questions about one image:  python examples/chat_with_memory.py photo.jpg "What is this?" "Why?" ..."""

import sys

from mllama_cli import Conversation, GenerationStats, Token, load, read_image


def chat(image: str, *questions: str, model: str | None = None) -> None:
    """Print each question and its answer. The session keeps what it has read, so a later turn is quick."""
    session = load(model).session()
    talk = Conversation()
    for number, question in enumerate(questions):
        talk = talk.with_user(question, (read_image(image),) if number == 0 else ())
        print(f"> {question}")
        answer = ""
        for event in session.stream(talk):
            if isinstance(event, Token):
                answer += event.text
            elif isinstance(event, GenerationStats):
                print(f"{answer}\n({event.prompt_tokens} tokens of prompt, {event.cached_tokens} of them read before)")
        talk = talk.with_assistant(answer)


if __name__ == "__main__":
    chat(*sys.argv[1:])
