"""The built-in model's tokenizer and chat template, as files of a checkpoint folder.

A small byte-level BPE, so that any text can be written, with the special tokens of Llama 3. Text in double quotes is
spelled character by character, so that reading a card does not depend on the words in the vocabulary.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mllama_cli.processing.tokenizer_file import BUILT_IN_QUOTED, BUILT_IN_WORDS
from mllama_cli.sketch.questions.samples import make_group, make_sample

VOCABULARY_SIZE = 1024
"""Rows of lm_head; the image token's id is the first one after them."""

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
IMAGE_TOKEN = "<|image|>"

CHAT_TEMPLATE = """\
{#- The built-in model's own template. System messages are left out: it was trained without them. Of several pictures in
    one message each is followed by a sentence; its words are where the model keeps what it saw there. -#}
{{- bos_token }}
{%- for message in messages if message["role"] in ["user", "assistant"] %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {%- if message["content"] is string %}
        {{- message["content"] | trim }}
    {%- else %}
        {%- set pictures = message["content"] | selectattr("type", "equalto", "image") | list | length %}
        {%- set seen = namespace(count=0) %}
        {%- for part in message["content"] %}
            {%- if part["type"] == "image" %}
                {%- set seen.count = seen.count + 1 %}
                {{- "<|image|>" }}
                {%- if pictures > 1 %}
                    {{- "This is picture " ~ seen.count ~ " of " ~ pictures ~ ".\\n" }}
                {%- endif %}
            {%- elif part["type"] == "text" %}
                {{- part["text"] | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""


def build_tokenizer(samples: int = 6000, seed: int = 1 << 39) -> Tokenizer:
    """Train the tokenizer on questions and answers from seeds that training of the model does not reach."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BUILT_IN_QUOTED), "isolated"),
            pre_tokenizers.Split(Regex(BUILT_IN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(_texts(samples, seed), trainer)
    specials = [*SPECIAL_TOKENS, IMAGE_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if tokenizer.token_to_id(IMAGE_TOKEN) != VOCABULARY_SIZE:
        raise ValueError("there are too few samples to fill the vocabulary")
    return tokenizer


def write_vocabulary(folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja to the folder."""
    names = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
    }
    config = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or build_tokenizer()).save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _texts(samples: int, seed: int) -> Iterator[str]:
    """Yield the text of samples, without printed words: they are spelled, and their letters are in the alphabet."""
    yield from ["user", "assistant", "This is picture 1 of 2.\n", "This is picture 2 of 2.\n", "\n\n", ' "A', '".'] * 50
    made = 0
    while made < samples:
        group = [*make_group(seed + made, 6), make_sample(seed + made, "about"), make_sample(seed + made, "other")]
        made += len(group)
        for sample in group:
            yield from _without_quotes(turn.text for turn in sample.messages)
            yield from _without_quotes([sample.answer])


def _without_quotes(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        pieces = text.split('"')
        yield from pieces[::2]
