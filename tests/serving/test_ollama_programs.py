"""Request bodies as programs that speak ollama's protocol send them, and what those programs read in the answers."""

import json
from typing import Any

import httpx
import pytest

from mllama_cli.engine.engine import Engine
from tests.serving.running import HOT, Server, image_base64, image_part, serving

STAR = "Which colour does the star have?"
IMAGE_TOKEN = 1024
"""Of the built-in model, outside its vocabulary."""


@pytest.fixture(scope="module")
def star(server: Server) -> str:
    """Return what the model says about the star of drawing.png, which is yellow."""
    body = {"prompt": STAR, "images": [image_base64("drawing.png")], "stream": False}
    answer: str = server.post("/api/generate", body).json()["response"]
    assert "yellow" in answer
    return answer


def lines(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of a stream."""
    with httpx.stream("POST", f"{server.url}{path}", json=body, timeout=60) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in reply.iter_lines()]


def test_home_assistants_llm_vision_asks_about_an_image(server: Server, star: str) -> None:
    image = image_base64("drawing.png")
    body = {
        "model": "sketch",
        "system": "Your task is to analyze a series of images.",
        "messages": [{"role": "user", "content": STAR, "images": [image]}],
        "prompt": [],
        "images": [image],
        "stream": False,
        "keep_alive": None,
        "think": False,
        "options": {"num_predict": 100.0, "temperature": 0.0, "top_p": 0.9, "num_ctx": 2048.0},
    }
    assert server.post("/api/chat", body).json()["message"]["content"] == star


def test_home_assistants_llm_vision_asks_for_a_title(server: Server) -> None:
    messages = [{"role": "user", "content": "Provide a short title."}, {"role": "user", "content": "A yellow star."}]
    options = {"num_predict": 12, "temperature": 0.2, "top_p": None, "num_ctx": None}
    body = {"model": "sketch", "messages": messages, "stream": False, "keep_alive": "5m", "options": options}
    assert server.post("/api/chat", body).json()["message"]["content"]


def test_comfyui_generates_and_keeps_the_context(server: Server, star: str) -> None:
    body = {
        "model": "sketch",
        "prompt": STAR,
        "suffix": None,
        "system": "",
        "template": "",
        "context": None,
        "stream": False,
        "think": False,
        "raw": None,
        "format": "",
        "images": [image_base64("drawing.png")],
        "options": {"stop": "", "temperature": -10, "tfs_z": 1, "mirostat": 0, "repeat_last_n": -1, "num_predict": -1},
        "keep_alive": "-1m",
    }
    first = server.post("/api/generate", body).json()
    assert first["response"] == star
    again = {**body, "prompt": "Who are you?", "images": None, "context": first["context"]}
    second = server.post("/api/generate", again).json()
    assert second["response"]
    assert second["context"][: len(first["context"])] == first["context"]
    assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"]


def test_an_image_of_the_context_is_seen_again(server: Server, star: str) -> None:
    image = image_base64("drawing.png")
    first = _generated(server, "What is this?", images=[image])
    second = _generated(server, STAR, context=first["context"])
    messages = [
        {"role": "user", "content": "What is this?", "images": [image]},
        {"role": "assistant", "content": first["response"]},
        {"role": "user", "content": STAR},
    ]
    chat = server.post("/api/chat", {"messages": messages, "stream": False, "options": {"temperature": 0}}).json()
    assert second["response"] == chat["message"]["content"] == star
    assert second["prompt_eval_count"] == chat["prompt_eval_count"]
    third = _generated(server, STAR, context=second["context"])
    assert third["context"][: len(second["context"])] == second["context"]
    assert third["response"] == star


def test_an_image_of_the_context_that_is_not_kept_is_asked_for(sketch: Engine) -> None:
    image = image_base64("drawing.png")
    with serving(sketch) as before:
        context = _generated(before, "What is this?", images=[image])["context"]
    with serving(sketch) as server:
        body = {"prompt": STAR, "context": context, "stream": False}
        answer = server.post("/api/generate", body)
        assert answer.status_code == 400
        assert "image 1 of the context is not in this server's memory any more" in answer.json()["error"]
        assert "Send the same file again in images" in answer.json()["error"]
        assert server.post("/api/generate", {**body, "images": [image]}).status_code == 200
        assert server.post("/api/generate", body).status_code == 200, "now it is there"


def _generated(server: Server, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "stream": False, "options": {"temperature": 0}, **more}
    answer: dict[str, Any] = server.post("/api/generate", body).json()
    return answer


def test_open_webui_streams_a_chat_of_several_turns(server: Server, star: str) -> None:
    body = {
        "model": "sketch:latest",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "mllama-sketch."},
            {"role": "user", "content": STAR, "images": [image_base64("drawing.png")]},
        ],
        "options": {"temperature": 0, "num_ctx": 2048, "use_mmap": True},
        "stream": True,
        "keep_alive": "5m",
    }
    *parts, last = lines(server, "/api/chat", body)
    assert "".join(part["message"]["content"] for part in parts) + last["message"]["content"] == star
    assert not any(part["done"] for part in parts)
    assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", "sketch:latest")
    assert all(type(last[key]) is int for key in last if key.endswith(("_duration", "_count")))
    for key in ("total_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"):
        assert last[key] > 0


def test_open_webui_unloads_a_model(server: Server) -> None:
    answer = server.post("/api/generate", {"model": "sketch", "prompt": "", "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload"


def test_openais_parts_are_taken_too(server: Server, star: str) -> None:
    content = [image_part("drawing.png"), {"type": "text", "text": STAR}]
    body = {"model": "sketch", "messages": [{"role": "user", "content": content}], "stream": False}
    assert server.post("/api/chat", body).json()["message"]["content"] == star


def test_a_program_that_pulls_its_model_first_goes_on_if_it_is_here(server: Server) -> None:
    assert server.post("/api/pull", {"model": "sketch:latest"}).json() == {"status": "success"}
    absent = server.post("/api/pull", {"name": "llava"})
    assert absent.status_code == 404
    assert "downloads no models" in absent.json()["error"]


@pytest.mark.parametrize("path", ["/api/push", "/api/create", "/api/copy", "/api/embed", "/api/embeddings"])
def test_what_would_change_models_is_refused_in_ollamas_form(server: Server, path: str) -> None:
    answer = server.post(path, {"model": "sketch"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(("this server does not", "this model does not"))


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "does not support tools"),
        ({"think": True}, "does not support thinking"),
        ({"think": "high"}, "does not support thinking"),
        ({"suffix": "b"}, "does not support insert"),
        ({"template": "{{ .Prompt }}"}, "chat template"),
        ({"raw": True, "system": "Be brief."}, "raw mode does not support"),
        ({"format": "xml"}, "format must be"),
        (
            {"format": {"type": "array", "uniqueItems": True}},
            "format: The schema's uniqueItems at its top level cannot",
        ),
        ({"context": ["x"]}, "context[0]"),
        ({"context": [10**9]}, "context[0]"),
        ({"context": "1,2"}, "context must be a list"),
        ({"context": [1, IMAGE_TOKEN, 3]}, "context[1] is an image, and the numbers after it do not name one"),
        ({"context": [IMAGE_TOKEN, *[1 << 16] * 16]}, "context[0] is an image"),
        ({"context": [IMAGE_TOKEN, *[7] * 16] * 101}, "101 images, and at most 100"),
        ({"context": [IMAGE_TOKEN, *[7] * 16]}, "image 1 of the context is not in this server's memory"),
        ({"images": [image_base64("drawing.png")] * 101}, "at most 100"),
        ({"images": "x"}, "images must be a list"),
        ({"images": [7]}, "images[0]"),
        ({"images": ["/etc/hostname"]}, "does not open files"),
        ({"images": ["file:///etc/hostname"]}, "does not open files"),
        ({"images": ["http://127.0.0.1/x.png"]}, "does not fetch images"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"stream": 1}, "stream must be true or false"),
        ({"options": {"stop": 3}}, "options.stop"),
        ({"options": {"num_predict": 1.5}}, "options.num_predict"),
        ({"options": {"temperature": [0]}}, "options.temperature"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_is_not_supported_is_said_with_its_field(server: Server, field: dict[str, Any], words: str) -> None:
    answer = server.post("/api/generate", {"model": "sketch", "prompt": "Hi", **field})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


def test_half_a_surrogate_pair_is_said_too(server: Server) -> None:
    answer = httpx.post(f"{server.url}/api/generate", content=rb'{"prompt": "half \ud800"}', timeout=60)
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]


@pytest.mark.parametrize("field", [{"think": False}, {"template": ""}, {"format": ""}, {"context": []}, {"tools": []}])
def test_a_field_that_asks_for_nothing_changes_nothing(server: Server, field: dict[str, Any]) -> None:
    body = {"model": "sketch", "prompt": "Who are you?", "stream": False}
    plain, other = (server.post("/api/generate", each).json() for each in (body, {**body, **field}))
    assert other["response"] == plain["response"]


def test_every_reading_of_keep_alive(server: Server) -> None:
    for value in (0, -1, 300, 1.5, "0", "-1", "0s", "-1s", "5m", "1h30m", "1.5h", "250ms", "300000000000ns", ""):
        answer = server.post("/api/generate", {"model": "sketch", "keep_alive": value})
        assert answer.json()["done_reason"] == ("unload" if value in (0, "0", "0s") else "load")


def test_a_negative_seed_is_another_one_each_time(server: Server) -> None:
    body = {"prompt": "Who are you?", "stream": False, "options": {"temperature": HOT, "seed": -1, "num_predict": 40}}
    assert len({server.post("/api/generate", body).json()["response"] for _ in range(4)}) > 1


def test_no_limit_means_the_context(server: Server) -> None:
    bias = {"temperature": 50.0, "num_predict": -2, "seed": 1}
    last = lines(server, "/api/generate", {"prompt": "Who are you?", "options": bias})[-1]
    assert last["done_reason"] in ("stop", "length")
    assert last["prompt_eval_count"] + last["eval_count"] <= 2048


def test_raw_takes_a_finished_prompt_and_gives_no_context(server: Server) -> None:
    template = "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
    prompt = f"<|begin_of_text|>{template}<|start_header_id|>assistant<|end_header_id|>\n\n"
    raw = server.post("/api/generate", {"prompt": prompt, "raw": True, "stream": False}).json()
    assert "context" not in raw
    assert (
        raw["response"] == server.post("/api/generate", {"prompt": "Who are you?", "stream": False}).json()["response"]
    )


def test_logprobs_in_a_stream_and_in_one_object(server: Server) -> None:
    body = {"prompt": "Who are you?", "logprobs": True, "top_logprobs": 2, "options": {"num_predict": 5}}
    streamed = [entry for line in lines(server, "/api/generate", body) for entry in line.get("logprobs", [])]
    whole = server.post("/api/generate", {**body, "stream": False}).json()
    assert "".join(entry["token"] for entry in streamed) == whole["response"]
    assert [entry["token"] for entry in whole["logprobs"]] == [entry["token"] for entry in streamed]
    for entry in whole["logprobs"]:
        assert entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert len(entry["top_logprobs"]) == 2


def test_versions_and_the_greeting(server: Server) -> None:
    assert httpx.get(f"{server.url}/").text == "Ollama is running"
    assert httpx.head(f"{server.url}/").status_code == 200
    version = httpx.get(f"{server.url}/api/version").json()
    assert [int(part) for part in version["version"].split(".")] >= [0, 4]  # the first with llama3.2-vision
    assert version["mllama"]


def test_what_is_said_about_the_model(server: Server) -> None:
    about = server.post("/api/show", {"name": "sketch"}).json()  # older clients say name
    assert about["capabilities"] == ["completion", "vision"]
    assert about["model_info"]["general.architecture"] == "mllama"
    assert about["model_info"]["mllama.context_length"] == 2048
    assert "bos_token" in about["template"]
    (entry, *_) = httpx.get(f"{server.url}/api/tags").json()["models"]
    assert entry["size"] == sum(file.stat().st_size for file in server.engine.path.glob("*.safetensors"))
    assert len(entry["digest"]) == 64
    assert httpx.get(f"{server.url}/api/ps").json()["models"][0]["digest"] == entry["digest"]
    assert server.post("/api/show", {"model": "llava"}).status_code == 404
