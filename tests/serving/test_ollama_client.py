"""The ollama package as a client: it parses every answer with its own types."""

import json
import re
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.documents import needs_pdf, pdf_of_pictures
from tests.serving.running import DATA, HOT, Server, image_base64, wait_until

WHO = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def client(server: Server) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=60)


def test_a_chat_with_its_counts_and_durations(client: ollama.Client) -> None:
    answer = client.chat("sketch", WHO)
    assert "mllama-sketch" in (answer.message.content or "")
    assert answer.done
    assert answer.done_reason == "stop"
    assert answer.model == "sketch"
    assert answer.prompt_eval_count
    assert answer.eval_count
    assert (answer.total_duration or 0) >= (answer.eval_duration or 0) > 1000  # nanoseconds


def test_a_chat_about_an_image_file(client: ollama.Client) -> None:
    question = {"role": "user", "content": "Which colour does the star have?", "images": [str(DATA / "drawing.png")]}
    assert re.search(r"\byellow\b", client.chat("sketch", [question]).message.content or "")


@needs_pdf
def test_a_page_of_a_document(client: ollama.Client, tmp_path: Path) -> None:
    path = pdf_of_pictures(tmp_path / "drawing.pdf", DATA / "drawing.png")
    question = {"role": "user", "content": "Which colour does the star have?", "images": [path.read_bytes()]}
    assert re.search(r"\byellow\b", client.chat("sketch", [question]).message.content or "")
    answer = client.generate("sketch", question["content"], images=[path.read_bytes()])
    assert re.search(r"\byellow\b", answer.response)


def test_a_stream_has_the_same_text_and_one_end(client: ollama.Client) -> None:
    parts = list(client.chat("sketch", WHO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == client.chat("sketch", WHO).message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count


def test_generate_with_images_of_both_forms(client: ollama.Client, server: Server) -> None:
    answer = client.generate("sketch", "Which colour does the star have?", images=[(DATA / "drawing.png").read_bytes()])
    assert "yellow" in (answer.response or "")
    plain = image_base64("drawing.png")
    for image in (plain, f"data:image/png;base64,{plain}"):
        body = {"model": "sketch", "prompt": "Which colour does the star have?", "images": [image], "stream": False}
        assert server.post("/api/generate", body).json()["response"] == answer.response


def test_a_conversation_by_context(client: ollama.Client) -> None:
    first = client.generate("sketch", "Who are you?")
    assert first.context
    second = client.generate("sketch", "Who are you?", context=first.context)
    assert second.response
    assert (second.prompt_eval_count or 0) > (first.prompt_eval_count or 0)


def test_options(client: ollama.Client) -> None:
    def said(**options: Any) -> str:
        return client.chat("sketch", WHO, options=options).message.content or ""

    whole = said()
    cut = client.chat("sketch", WHO, options={"num_predict": 2})
    assert (cut.eval_count, cut.done_reason) == (2, "length")
    assert said(temperature=HOT, seed=3) == said(temperature=HOT, seed=3)
    word = whole.split()[2]
    assert said(stop=[word]) == whole.partition(word)[0]
    assert said(num_ctx=4096, mirostat=0, num_gpu=1) == whole


def test_loading_and_unloading_say_so(client: ollama.Client) -> None:
    assert client.generate("sketch", "").done_reason == "load"
    assert client.chat("sketch", []).done_reason == "load"
    assert client.generate("sketch", "", keep_alive=0).done_reason in ("load", "unload")


def test_the_lists(client: ollama.Client) -> None:
    assert client.list().models[0].model == "sketch:latest"
    assert client.ps().models[0].model == "sketch:latest"
    about = client.show("sketch")
    assert "vision" in (about.capabilities or [])
    assert about.details is not None
    assert about.details.families == ["mllama"]


def test_what_is_not_here_is_said_in_its_form(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="sketch") as caught:
        client.chat("llava", WHO)
    assert caught.value.status_code == 404
    for refused in (
        lambda: client.pull("llava"),
        lambda: client.delete("sketch"),
        lambda: client.copy("sketch", "other"),
        lambda: client.embed("sketch", "text"),
        lambda: client.generate("sketch", "Hi", suffix="there"),
        lambda: client.chat("sketch", WHO, think=True),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            refused()
        assert 400 <= caught.value.status_code < 500 or caught.value.status_code == 501


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "Hi"},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": "Hi", "images": ["!"]}]},
        {"messages": [{"role": "user", "content": "Hi", "images": ["/etc/passwd"]}]},
        {"messages": WHO, "options": {"temperature": "hot"}},
        {"messages": WHO, "options": [1]},
        {"messages": WHO, "stream": "yes"},
    ],
)
def test_a_wrong_field_is_a_400_in_its_form(server: Server, body: dict[str, Any]) -> None:
    answer = server.post("/api/chat", {"model": "sketch", **body})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert "root:" not in answer.text


def test_leaving_a_stream_frees_the_slot(client: ollama.Client, server: Server) -> None:
    stream = client.chat("sketch", WHO, stream=True, options={"num_predict": 1900, "temperature": 50})
    next(iter(stream))
    stream.close()
    wait_until(server.idle)


def test_a_format_holds_the_answer_to_a_schema_or_to_json(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    for temperature in (0, 2):
        answer = client.chat("sketch", WHO, format=schema, options={"temperature": temperature})
        assert json.loads(answer.message.content or "")["colour"] in ("red", "blue")
    image = (DATA / "drawing.png").read_bytes()
    answered = client.generate("sketch", "What is in this picture?", images=[image], format="json")
    assert isinstance(json.loads(answered.response), dict)
