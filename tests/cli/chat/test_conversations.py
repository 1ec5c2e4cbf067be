"""`mllama chat` with conversations from JSON, and answers that are begun."""

import json
from pathlib import Path

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from tests.cli.chat.answers import chat
from tests.console import run_here

IMAGE_URL = {"type": "image_url"}


def test_a_conversation_from_a_file_and_from_stdin(engine: Engine, png: Path, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": [IMAGE_URL | {"image_url": {"url": str(png)}}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A gradient."},
        {"role": "user", "content": "Sure?"},
    ]  # fmt: skip
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(messages))
    talk = Conversation.ask("What?", (ImagePart(png.read_bytes()),)).with_assistant("A gradient.").with_user("Sure?")
    wanted = "".join(e.text for e in engine.stream(talk, Sampling(max_tokens=12)) if isinstance(e, Token))
    assert chat("--messages", str(file)).out.rstrip("\n") == wanted.rstrip("\n")
    assert chat("--messages", "-", stdin=file.read_bytes()).out.rstrip("\n") == wanted.rstrip("\n")


def test_a_conversation_from_a_file_continues_with_the_question_on_the_command_line(
    engine: Engine, png: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]))
    talk = Conversation.ask("Hi").with_assistant("Hello.").with_user("Who is it?", (ImagePart(png.read_bytes()),))
    wanted = "".join(e.text for e in engine.stream(talk, Sampling(max_tokens=12)) if isinstance(e, Token))
    assert chat("--messages", str(file), "-i", str(png), "Who", "is it?").out.rstrip("\n") == wanted.rstrip("\n")

    begun = Conversation.ask("Hi").with_assistant("Hello.")
    rest = "".join(e.text for e in engine.stream(begun, Sampling(max_tokens=12)) if isinstance(e, Token))
    assert chat("--messages", str(file)).out.rstrip("\n") == ("Hello." + rest).rstrip("\n")
    assert "Leave one" in chat("--messages", str(file), "--prefill", "Hi").err

    file.write_text(json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]))
    nothing = chat("--messages", str(file))
    assert nothing.code == 2
    assert "nothing to answer" in nothing.err
    file.write_text(json.dumps([{"role": "user", "content": "Hi"}]))
    two = chat("--messages", str(file), "And?")
    assert two.code == 2
    assert "already ends with a question" in two.err


@pytest.mark.parametrize("flags", [(), ("--no-stream",), ("--json",)])
def test_an_answer_begins_with_its_prefill(engine: Engine, png: Path, flags: tuple[str, ...]) -> None:
    begun = Conversation.ask("What is this?", (ImagePart(png.read_bytes()),)).with_prefill("A photo of")
    rest = "".join(e.text for e in engine.stream(begun, Sampling(max_tokens=12)) if isinstance(e, Token))
    result = chat("-i", str(png), "What is this?", "--prefill", "A photo of ", *flags)
    said = json.loads(result.out)["answer"] if flags == ("--json",) else result.out
    assert said.rstrip("\n") == ("A photo of" + rest).rstrip("\n")
    assert "--prefill" in chat("--raw", "x", "--prefill", "y").err


def test_the_answer_to_a_saved_chat_is_saved_with_its_prefill(models: Path) -> None:
    saved = ChatStore().save(SavedChat.new("tiny"), Conversation.ask("Hi").with_assistant("Hello."))
    answer = chat("--resume", str(saved.id), "Who?", "--prefill", "I am").out.rstrip("\n")
    *before, last = ChatStore().load(str(saved.id)).conversation
    assert answer.startswith("I am")
    assert (len(before), last.role) == (3, "assistant")
    assert last.text.startswith("I am")
    ChatStore().delete([saved.id])


def test_a_whole_request_sets_the_sampling_and_flags_come_first(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    request = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "tools": [{}]}
    file.write_text(json.dumps(request))
    three = run_here("chat", "--device", "cpu", "--messages", str(file))
    assert "cut at 3 tokens" in three.err
    assert "without effect here: tools" in three.err
    assert "cut at 5 tokens" in chat("--messages", str(file), count=5).err


def test_pictures_in_two_turns_say_once_what_is_seen(png: Path, tmp_path: Path) -> None:
    turn = {"role": "user", "content": [{"type": "image", "path": str(png)}, {"type": "text", "text": "What?"}]}
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([turn, {"role": "assistant", "content": "Yes."}, turn]))
    assert chat("--messages", str(file)).err.count("latest group") == 1
