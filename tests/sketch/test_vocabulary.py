"""The tokenizer and the template of the built-in model."""

import json
from pathlib import Path

import pytest

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.processing.chat_template import ChatTemplate
from mllama_cli.processing.image_processor import MllamaImageProcessor
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.sketch.questions.samples import TASKS, make_sample
from mllama_cli.sketch.training.dataset import encode_sample
from mllama_cli.sketch.training.vocabulary import IMAGE_TOKEN, SPECIAL_TOKENS, VOCABULARY_SIZE, write_vocabulary


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> MllamaTokenizer:
    return MllamaTokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module")
def processor(vocabulary: Path, tokenizer: MllamaTokenizer) -> MllamaProcessor:
    template = ChatTemplate.from_pretrained(vocabulary, tokenizer.special_names)
    return MllamaProcessor(tokenizer, MllamaImageProcessor(ImageProcessorConfig()), template, VOCABULARY_SIZE)


def test_the_image_token_is_the_first_row_after_the_vocabulary(tokenizer: MllamaTokenizer) -> None:
    assert tokenizer.special_ids[IMAGE_TOKEN] == VOCABULARY_SIZE
    assert {tokenizer.special_ids[token] for token in SPECIAL_TOKENS} == set(
        range(VOCABULARY_SIZE - 8, VOCABULARY_SIZE)
    )


@pytest.mark.parametrize(
    "text",
    ["How many circles?", "naïve 日本 🙂\n\ttab", 'He said "no" and "yes".', '"', '""', 'a "HELLO world" b', "  x  "],
)
def test_any_text_comes_back(text: str, tokenizer: MllamaTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "word", ["HELLO", "There", "circle", "Which", "A1", "12345", "red square", "x", "How many are"]
)
def test_printed_text_is_spelled(word: str, tokenizer: MllamaTokenizer) -> None:
    for sentence in (f'It says "{word}".', f'I see a red circle and the blue text "{word}".', f'Does it say "{word}"?'):
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode(sentence)]
        start = pieces.index(' "') + 1
        assert pieces[start : start + len(word)] == list(word)
        assert pieces[start + len(word)].startswith('"')


def test_usual_questions_are_short(tokenizer: MllamaTokenizer) -> None:
    assert len(tokenizer.encode("How many circles are there?")) == 6
    assert len(tokenizer.encode("There are 3 red circles.")) == 6


@pytest.mark.parametrize("task", TASKS)
def test_encoding_equals_the_template(task: str, processor: MllamaProcessor, tokenizer: MllamaTokenizer) -> None:
    for seed in range(8):
        sample = make_sample(seed, task)
        conversation = Conversation()
        for turn in sample.messages:
            images = tuple(ImagePart(b"") for _ in turn.images)
            if turn.role == "user":
                conversation = conversation.with_user(turn.text, images)
            else:
                conversation = conversation.with_assistant(turn.text)
        prompt = list(processor(conversation).ids)
        pieces = encode_sample(tokenizer, sample)
        ids = [token for piece, _ in pieces for token in piece]
        assert ids[: len(prompt)] == prompt
        answer = ids[len(prompt) :]
        assert tokenizer.decode(answer) == sample.answer
        assert answer[-1] == tokenizer.special_ids["<|eot_id|>"]
        assert pieces[-1][1]
        assert task == "json" or pieces[-1][0] == answer


def test_system_messages_are_left_out(processor: MllamaProcessor) -> None:
    image = (ImagePart(b""),)
    with_system = Conversation.ask("What is this?", image, system="Be brief.")
    assert processor(with_system).ids == processor(Conversation.ask("What is this?", image)).ids


def test_transformers_reads_it(vocabulary: Path, tokenizer: MllamaTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(vocabulary)
    text = 'I see 3 red circles and the text "Ab1".'
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    rendered = theirs.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert json.loads((vocabulary / "special_tokens_map.json").read_text())["eos_token"] == theirs.eos_token


def test_the_tokenizer_is_the_same_each_time(vocabulary: Path, tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    for path in vocabulary.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
