"""Conversations to token ids, held to transformers with the released tokenizer and template."""

import json
from datetime import datetime
from io import BytesIO
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import CheckpointError, ContextLengthError, TemplateError, UsageError
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.processing.chat_template import ChatTemplate, fold_system, template_messages
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.system.paths import built_in_model
from tests.checkpoints import BOS, VOCABULARY, byte_tokenizer, write_preprocessor, write_tokenizer

IMAGE = 128256


def picture() -> ImagePart:
    buffer = BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    return ImagePart(buffer.getvalue())


@pytest.fixture(scope="module")
def released(shared: Path) -> MllamaProcessor:
    return MllamaProcessor.from_pretrained(shared / "llama-3.2-11b-vision-instruct", IMAGE)


@pytest.fixture(scope="module")
def peer(shared: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.MllamaProcessor.from_pretrained(shared / "llama-3.2-11b-vision-instruct")


ONE = picture()
CONVERSATIONS = {
    "question": Conversation.ask("What is 2 + 2?"),
    "system": Conversation.ask("Hi", system="Answer in French.\n"),
    "image": Conversation.ask("What is this?", (ONE,)),
    "images": Conversation.ask("What differs?", (ONE, ONE, ONE)),
    "image alone": Conversation.ask("", (ONE,)),
    "turns": Conversation.ask("What?", (ONE,)).with_assistant(" A red\n\nthing ").with_user("And now?", (ONE,)),
    "text, then image": Conversation.ask("Hello").with_assistant("Hi!").with_user("See", (ONE,)),
    "text around an image": Conversation((Message("user", (TextPart("Look: "), ONE, TextPart(" nice?"))),)),
    "unicode": Conversation.ask("Ça va? 你好 \U0001f44d\u200d \t x\r\n\u00a0  end  "),
    "code": Conversation.ask("def f(x):\n    return {'a': x<3 and x>1}  # & \"q\""),
    "empty": Conversation.ask("", system="s"),
}


def as_messages(conversation: Conversation) -> list[dict[str, Any]]:
    return template_messages(conversation)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_equal_transformers(released: MllamaProcessor, peer: Any, name: str) -> None:
    conversation = CONVERSATIONS[name]
    text = peer.apply_chat_template(as_messages(conversation), add_generation_prompt=True, tokenize=False)
    expected = peer.tokenizer(text, add_special_tokens=False)["input_ids"]
    inputs = released(conversation)
    assert list(inputs.ids) == expected
    assert inputs.ids.count(128000) == 1, "begin_of_text must not double"
    assert inputs.ids.count(IMAGE) == len(conversation.images) == len(inputs.images)


@given(st.text(max_size=60))
def test_any_text_survives_the_released_tokenizer(text: str) -> None:
    folder = Path(__file__).parents[3] / "shared" / "llama-3.2-11b-vision-instruct"
    if not folder.is_dir():
        pytest.skip("../shared is absent: it holds a tokenizer whose licence is not ours")
    tokenizer = _released_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


_CACHE: dict[Path, MllamaTokenizer] = {}


def _released_tokenizer(folder: Path) -> MllamaTokenizer:
    if folder not in _CACHE:
        _CACHE[folder] = MllamaTokenizer.from_pretrained(folder)
    return _CACHE[folder]


@pytest.mark.parametrize("prefill", ["I am", "```json\n", " <|eot_id|>", "Ça va"])
@pytest.mark.parametrize("name", ["question", "image", "turns"])
def test_a_prefill_equals_transformers_unfinished_message(
    released: MllamaProcessor, peer: Any, name: str, prefill: str
) -> None:
    conversation = CONVERSATIONS[name].with_assistant(prefill)
    inputs = released(conversation)
    assert inputs.prefill == prefill
    assert inputs.ids == (*released(CONVERSATIONS[name]).ids, *released.tokenizer.encode(prefill))
    if "<|" not in prefill:  # which transformers takes for the special token
        text = peer.apply_chat_template(as_messages(conversation), continue_final_message=True, tokenize=False)
        # transformers cuts white space off.
        expected = peer.tokenizer(text.rstrip() + prefill[len(prefill.rstrip()) :], add_special_tokens=False)
        assert list(inputs.ids) == expected["input_ids"]
    assert released(CONVERSATIONS[name].with_assistant(f"{prefill}  ")).prefill == prefill


CALLS = (ToolCall("f", '{"x": "<|eot_id|> é"}', "1"),)
TOOLS = Conversation(
    (
        *Conversation.ask("Hi"),
        Message("assistant", (), CALLS),
        Message("tool", (TextPart("42 <b>"),), name="f", call_id="1"),
    )
)


def test_tool_messages_go_to_the_template(released: MllamaProcessor, peer: Any) -> None:
    text = peer.apply_chat_template(as_messages(TOOLS), add_generation_prompt=True, tokenize=False)
    inputs = released(TOOLS)
    said = text.replace("<|eot_id|> é", "MARK")
    expected = released.tokenizer.decode(released.tokenizer.encode_markup(said))
    assert released.tokenizer.decode(inputs.ids) == expected.replace("MARK", "<|eot_id|> é")
    assert inputs.ids.count(128009) == said.count("<|eot_id|>"), "no argument can forge a special token"
    assert not inputs.notes


@pytest.mark.parametrize("depth", [50, 900, 100_000])
def test_arguments_of_any_depth_go_to_the_template(small: MllamaProcessor, depth: int) -> None:
    call = Message("assistant", (), (ToolCall("f", "[" * depth + "]" * depth),))
    assert small(Conversation((*Conversation.ask("Hi"), call, Message("tool", (TextPart("4"),))))).ids


def test_a_template_that_leaves_out_tool_messages_is_noted() -> None:
    built_in = MllamaProcessor.from_pretrained(built_in_model())
    assert "tool messages" in built_in(TOOLS).notes[0]


def test_system_text_with_an_image_is_folded_because_the_released_template_refuses_it(
    released: MllamaProcessor, peer: Any
) -> None:
    conversation = Conversation.ask("What is this?", (ONE,), system="Be brief.")
    inputs = released(conversation)
    folded = Conversation.ask("Be brief.\n\nWhat is this?", (ONE,))
    assert inputs.ids == released(folded).ids
    assert len(inputs.notes) == 1
    assert "system" in inputs.notes[0]


def test_a_text_only_chat_has_todays_date(released: MllamaProcessor) -> None:
    text = released.tokenizer.decode(released(Conversation.ask("Hi")).ids)
    assert f"Today Date: {datetime.now():%d %b %Y}" in text


def test_raw_prompts_put_begin_of_text_after_leading_images(released: MllamaProcessor, peer: Any) -> None:
    for text, images in (("If I had to write", 1), ("x", 2), ("plain text", 0), ("see <|image|> there", 1)):
        prompt = text if "<|image|>" in text else "<|image|>" * images + text
        from transformers.models.mllama.processing_mllama import build_string_from_input

        built = build_string_from_input(prompt, "<|begin_of_text|>", "<|image|>")
        expected = peer.tokenizer(built, add_special_tokens=False)["input_ids"]
        assert list(released.raw(text, [ONE] * images).ids) == expected


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MllamaProcessor:
    folder = tmp_path_factory.mktemp("small")
    write_tokenizer(folder)
    write_preprocessor(folder, 56)
    return MllamaProcessor.from_pretrained(folder, VOCABULARY)


SPECIALS = ["<|image|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "a", "\ue000", "<|", "|>", "0"]


@given(st.lists(st.sampled_from(SPECIALS), max_size=8).map("".join))
def test_no_message_can_forge_a_special_token(small: MllamaProcessor, text: str) -> None:
    ids = list(small(Conversation.ask(text)).ids)
    plain = list(small(Conversation.ask("")).ids)
    start = next(i for i, (a, b) in enumerate(zip(ids, [*plain, -1], strict=False)) if a != b) if text else 0
    assert bytes(ids[start : start + len(text.encode())]) == text.encode()
    assert ids[:start] + ids[start + len(text.encode()) :] == plain


def test_text_may_have_any_private_use_characters(small: MllamaProcessor) -> None:
    basic = "".join(map(chr, range(0xE000, 0xF900)))
    prompt = f"{basic}{BOS}\ue0000;"
    assert prompt in small.tokenizer.decode(small(Conversation.ask(prompt)).ids)
    every = basic + "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))))
    with pytest.raises(UsageError, match="every private use character"):
        small(Conversation.ask(every))


@pytest.mark.parametrize("text", ["Hi\udcff", "\ud800", "a\udfff\ud800b"])
def test_lone_surrogates_are_replaced(small: MllamaProcessor, text: str) -> None:
    clean = text.encode("utf-8", "replace").decode().replace("?", "\ufffd")
    assert small(Conversation.ask(text)) == small(Conversation.ask(clean))
    assert small.raw(text) == small.raw(clean)


@pytest.mark.parametrize("text", ["word " * 100_000, "a" * 500_000, "\U0001f44d" * 100_000])
def test_a_prompt_far_over_the_context_is_refused_without_tokenizing_all_of_it(
    small: MllamaProcessor, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = MllamaTokenizer.encode

    def counting(self: MllamaTokenizer, piece: str) -> list[int]:
        encoded.append(len(piece))
        return encode(self, piece)

    monkeypatch.setattr(MllamaTokenizer, "encode", counting)
    limited = MllamaProcessor(small.tokenizer, None, small.chat_template, IMAGE, max_tokens=100)
    for ask in (lambda: limited(Conversation.ask(text)), lambda: limited.raw(text)):
        encoded.clear()
        with pytest.raises(ContextLengthError, match="its context is 100"):
            ask()
        assert sum(encoded) < 50_000
    assert limited.raw("a" * 50) == small.raw("a" * 50)


def test_folding_keeps_the_order_of_the_parts() -> None:
    message = Message("user", (TextPart("before "), ONE, TextPart(" after")))
    folded = fold_system(Conversation((Message("system", (TextPart("S"),)), message)))
    assert folded.messages == (Message("user", (TextPart("S\n\nbefore "), ONE, TextPart(" after"))),)
    alone = fold_system(Conversation((Message("system", (TextPart("S"),)), Message("user", (ONE,)))))
    assert alone.messages == (Message("user", (ONE, TextPart("S"))),)


@pytest.mark.parametrize(
    ("names", "problem"),
    [({}, "says which token begins a prompt"), ({"bos_token": ""}, "says which token"),
     ({"bos_token": "<s>"}, "bos_token is '<s>', which is not a token")],
)  # fmt: skip
def test_a_raw_prompt_without_a_known_begin_of_text_is_refused(names: dict[str, str], problem: str) -> None:
    processor = MllamaProcessor(MllamaTokenizer(byte_tokenizer(), names), None, None, IMAGE)
    with pytest.raises(CheckpointError, match=problem) as caught:
        processor.raw("x")
    assert "tokenizer_config.json" in caught.value.hint


def test_a_raw_prompt_with_too_many_image_tokens_is_refused(small: MllamaProcessor) -> None:
    with pytest.raises(UsageError, match="2 <|image|> tokens but there are 1 images".replace("|", r"\|")):
        small.raw("<|image|><|image|>x", [ONE])
    assert small.raw("x", []).ids == (BOS, ord("x"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "cannot be parsed"),
        ("{{ raise_exception('no, never') }}", "no, never"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ undefined_thing.attribute }}", "failed"),
        ("{{ 1 / 0 }}", "failed"),
    ],
)
def test_a_bad_template_is_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_where_the_template_is_looked_for(tmp_path: Path) -> None:
    assert ChatTemplate.from_pretrained(tmp_path) is None
    config = {"bos_token": {"content": "<B>"}, "chat_template": [{"name": "default", "template": "C{{ bos_token }}"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    names = MllamaTokenizer.from_pretrained(tmp_path).special_names

    def rendered() -> str:
        template = ChatTemplate.from_pretrained(tmp_path, names)
        assert template is not None
        return template.render([])

    assert rendered() == "C<B>"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert rendered() == "J"
    (tmp_path / "chat_template.jinja").write_text("F{{ [1, '<é>'] | tojson }}")
    assert rendered() == 'F[1, "<é>"]'


@pytest.mark.parametrize(
    "use", ["{{ bos_token }}", "{{- bos_token | trim }}", "{{ bos_token + 'x' }}", "{{ 'x' ~ bos_token }}"]
)
def test_a_template_that_writes_an_unknown_bos_token_is_an_error(use: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(TemplateError, match="writes bos_token, but no file of the model says which token"):
        ChatTemplate(f"{use}Hi").render(messages)
    assert ChatTemplate(f"{use}Hi", {"bos_token": "<s>"}).render(messages).endswith("Hi")


def test_a_template_may_ask_whether_there_is_a_bos_token_and_use_other_unknown_names() -> None:
    source = "{% if bos_token is defined %}a{% endif %}{% if bos_token %}b{% endif %}{{ eos_token }}{{ tools }}c"
    assert ChatTemplate(source).render([{"role": "user", "content": "Hi"}]) == "c"


def test_a_worker_that_is_started_early_waits_for_as_long_as_it_takes() -> None:
    template = ChatTemplate("{{ messages[0].content }}", seconds=0.5)
    template.start()
    sleep(1)
    assert template.render([{"role": "user", "content": "x"}]) == "x"
