"""The openai package as a client: it parses every answer with its own types."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pydantic
import pytest

from tests.documents import DOCUMENTS, needs_pdf, needs_video, pdf_of_pictures
from tests.serving.running import DATA, HOT, Server, image_part, wait_until

WHO: list[Any] = [{"role": "user", "content": "Who are you?"}]
COLOUR: list[Any] = [
    {
        "role": "user",
        "content": [image_part("drawing.png"), {"type": "text", "text": "Which colour does the star have?"}],
    }
]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> str:
    answer = client.chat.completions.create(model="sketch", messages=messages, **options)
    return answer.choices[0].message.content or ""


def test_a_text_question_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sketch", messages=WHO)
    assert "mllama-sketch" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_an_image(client: openai.OpenAI) -> None:
    assert re.search(r"\byellow\b", ask(client, COLOUR))


@needs_pdf
@pytest.mark.parametrize("kind", ["image_url", "file"])
def test_a_document(client: openai.OpenAI, tmp_path: Path, kind: str) -> None:
    path = pdf_of_pictures(tmp_path / "drawings.pdf", DATA / "card.png", DATA / "drawing.png")
    url = f"data:application/pdf;base64,{base64.b64encode(path.read_bytes()).decode()}#2"
    part = {"url": url} if kind == "image_url" else {"file_data": url, "filename": "drawings.pdf"}
    messages = [{"role": "user", "content": [{"type": kind, kind: part}, COLOUR[0]["content"][1]]}]
    assert re.search(r"\byellow\b", ask(client, messages))
    part["url" if kind == "image_url" else "file_data"] = url.replace("#2", "#3")
    with pytest.raises(openai.BadRequestError, match="has 2 pages, and no page 3"):
        ask(client, messages)


@needs_video
def test_a_video(client: openai.OpenAI) -> None:
    encoded = base64.b64encode((DOCUMENTS / "clip.mp4").read_bytes()).decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}}
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
    assert ask(client, messages, max_tokens=5)


def test_several_turns_and_images(client: openai.OpenAI) -> None:
    change = [image_part("before.png"), image_part("after.png"), {"type": "text", "text": "What changed?"}]
    messages: list[Any] = [{"role": "user", "content": change}]
    answer = ask(client, messages)
    assert "purple star was added" in answer
    messages += [{"role": "assistant", "content": answer}, *WHO]
    assert ask(client, [{"role": "system", "content": "Be brief."}, *messages])


def test_a_stream_has_the_same_text_and_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="sketch", messages=COLOUR)
    chunks = list(
        client.chat.completions.create(
            model="sketch", messages=COLOUR, stream=True, stream_options={"include_usage": True}
        )
    )
    *parts, last = chunks
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["stop"]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_ends_with_the_finish_reason(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="sketch", messages=WHO, stream=True, max_tokens=3))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


def test_length_and_stop(client: openai.OpenAI) -> None:
    whole = ask(client, COLOUR)
    word = whole.split()[-1].rstrip(".")
    for stop in (word, [word, "never"]):
        assert ask(client, COLOUR, stop=stop) == whole.partition(word)[0]
    cut = client.chat.completions.create(model="sketch", messages=COLOUR, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2
    assert whole.startswith(cut.choices[0].message.content or "-")


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        return ask(client, WHO, temperature=HOT, seed=seed, max_tokens=20)

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sketch", messages=WHO, n=3, temperature=HOT, seed=4, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    stream = client.chat.completions.create(
        model="sketch", messages=WHO, n=3, temperature=HOT, seed=4, max_tokens=12, stream=True
    )
    texts = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sketch", messages=WHO, logprobs=True, top_logprobs=3, max_tokens=5)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy
        assert 0 < math.exp(token.logprob) <= 1
        assert token.bytes == list(token.token.encode())


def test_penalties_and_bias_change_the_answer(client: openai.OpenAI, server: Server) -> None:
    biased: dict[str, Any] = {"logit_bias": server.endless, "max_tokens": 60}
    cut = client.chat.completions.create(model="sketch", messages=WHO, **biased)
    assert cut.choices[0].finish_reason == "length"
    for penalty in ("frequency_penalty", "presence_penalty"):
        assert ask(client, WHO, **biased, **{penalty: 2}) != cut.choices[0].message.content


def test_the_older_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sketch", prompt="Once upon", max_tokens=5)
    assert answer.object == "text_completion"
    echoed = client.completions.create(model="sketch", prompt="Once upon", max_tokens=5, echo=True)
    assert echoed.choices[0].text == "Once upon" + answer.choices[0].text
    stream = client.completions.create(model="sketch", prompt="Once upon", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == answer.choices[0].text


def test_the_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "sketch" in names
    assert client.models.retrieve("sketch").id == "sketch"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 99, "logprobs": True}, "top_logprobs"),
        ({"stop": 7}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json"}}, "response_format"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sketch", messages=WHO, extra_body=options)
    assert param in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "nobody", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
        [{"role": "user", "content": "word " * 20_000}],
    ],
    ids=["none", "role", "damaged image", "file path", "url", "audio", "too long"],
)
def test_messages_that_cannot_be_answered(client: openai.OpenAI, messages: list[Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sketch", messages=messages)
    assert "root:" not in caught.value.message


def test_an_unknown_model_is_404_with_the_names_that_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="sketch") as caught:
        client.chat.completions.create(model="gpt-4o", messages=WHO)
    assert caught.value.code == "model_not_found"


def test_a_wrong_base_url_or_endpoint_is_answered_with_the_right_one(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no /chat/completions here: ask /v1/chat/completions"):
        ask(client.with_options(base_url=server.url), WHO)
    with pytest.raises(openai.NotFoundError, match="ask /v1/chat/completions"):
        client.responses.create(model="sketch", input="Who are you?")
    with pytest.raises(openai.BadRequestError, match="this model does not support embeddings"):
        client.embeddings.create(model="sketch", input="Who are you?")


def test_unknown_fields_are_ignored(client: openai.OpenAI) -> None:
    extra = {"user": "me", "metadata": {"a": "b"}, "top_a": 0.2, "service_tier": "auto"}
    assert ask(client, WHO, extra_body=extra) == ask(client, WHO)


def test_leaving_a_stream_frees_the_slot(client: openai.OpenAI, server: Server) -> None:
    stream = client.chat.completions.create(
        model="sketch", messages=WHO, stream=True, max_tokens=1900, logit_bias=server.endless
    )
    next(iter(stream))
    assert not server.idle()
    before = server.metrics()["mllama:request_success_total abort"]
    stream.close()
    wait_until(server.idle)
    assert server.metrics()["mllama:request_success_total abort"] == before + 1


class Star(pydantic.BaseModel):
    colour: Literal["red", "yellow", "blue"]
    points: Annotated[int, pydantic.Field(ge=3, le=9)]


def test_an_answer_is_parsed_into_a_pydantic_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="sketch", messages=COLOUR, response_format=Star)
    assert isinstance(answer.choices[0].message.parsed, Star)
    assert answer.choices[0].finish_reason == "stop"


def test_json_is_whole_in_a_stream_and_beside_others(client: openai.OpenAI) -> None:
    schema = {"name": "star", "strict": True, "schema": Star.model_json_schema()}
    options: Any = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "temperature": 2,
        "n": 4,
        "seed": 1,
    }
    texts = ["", "", "", ""]
    for chunk in client.chat.completions.create(model="sketch", messages=COLOUR, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(Star.model_validate_json(text) for text in texts)
    answer = client.chat.completions.create(model="sketch", messages=COLOUR, **options)
    assert [choice.message.content for choice in answer.choices] == texts


def test_json_mode_is_an_object_and_a_cut_one_says_so(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    content = [image_part("drawing.png"), {"type": "text", "text": "What is in this picture?"}]
    asked: list[Any] = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model="sketch", messages=asked, response_format=form)
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    schema: Any = {"type": "json_schema", "json_schema": {"name": "star", "schema": Star.model_json_schema()}}
    cut = client.chat.completions.create(model="sketch", messages=WHO, response_format=schema, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"


def test_a_schema_that_cannot_be_enforced_is_refused_with_its_place(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {}}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="not at #/properties/a") as refusal:
        client.chat.completions.create(model="sketch", messages=WHO, response_format=form)
    assert refusal.value.param == "response_format"
