"""The packaged weights answer correctly and are an ordinary checkpoint."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

import pytest
import torch
from PIL import Image

from mllama_cli import Conversation, Sampling, load, read_image
from mllama_cli.core.events import Token
from mllama_cli.core.grammar import Grammar
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine
from mllama_cli.sketch.evaluate import answers_to, conversation_of, held_out, try_foreign, try_limits, try_task
from mllama_cli.sketch.questions.grading import is_right
from mllama_cli.sketch.questions.samples import TASKS, Sample
from mllama_cli.sketch.training import model_config
from mllama_cli.sketch.training.vocabulary import CHAT_TEMPLATE, VOCABULARY_SIZE
from mllama_cli.system.paths import built_in_model
from tests.peers import peer_inputs, transformers_model

FOLDER = built_in_model()
DATA = Path(__file__).parents[1] / "data"
GREEDY = Sampling(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load("sketch", device="cpu", dtype="float32", vision=True)


def test_it_is_small_and_what_the_code_makes(engine: Engine) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12 * 2**20
    assert (FOLDER / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


def test_rows_of_unused_tiles_are_zero_so_that_leaving_them_out_stays_exact(engine: Engine) -> None:
    vision = engine.config.vision_config
    assert vision is not None
    assert vision.image_size == model_config.TILE_SIZE
    tower = engine.network.get_submodule("model.vision_model")
    tables = [
        p for name, p in tower.named_parameters() if re.search(r"tile_(positional_)?embedding\.", name) and p.ndim == 2
    ]
    assert len(tables) == 3
    for table in tables:
        tiles = table.view(len(vision.supported_aspect_ratios) + 1, vision.max_num_tiles, -1)
        for id_, (columns, rows) in enumerate(vision.supported_aspect_ratios, 1):
            assert not tiles[id_, columns * rows :].any()
            assert tiles[id_, : columns * rows].any(-1).all()


def test_a_conversation_of_several_turns(engine: Engine) -> None:
    session = engine.session()
    talk = Conversation.ask("How many red shapes are there?", (read_image(str(DATA / "drawing.png")),))
    said = []
    for question in ("What shape are they?", "And where is the star?", "What colour is it?", ""):
        answer = "".join(event.text for event in session.stream(talk, GREEDY) if isinstance(event, Token))
        said.append(answer)
        talk = talk.with_assistant(answer).with_user(question, ())
    for answer, word in zip(said, ("3", "circle", "bottom right", "yellow"), strict=True):
        assert word in answer


@pytest.mark.slow
def test_refilled_slots_give_the_answers_of_single_conversations(engine: Engine) -> None:
    talks = [conversation_of(s) for task in ("describe", "change", "where", "follow-up") for s in held_out(task, 3)]
    requests = [BatchRequest(k, engine.processor(talk), sampling=GREEDY) for k, talk in enumerate(talks)]
    replies = {reply.key: reply for reply in run_batch(engine.model, requests, slots=5)}
    for request in requests:
        reply = replies[request.key]
        events = engine.session().stream_inputs(request.inputs, GREEDY)
        alone = [event.id for event in events if isinstance(event, Token) and event.id not in engine.model.eos]
        assert list(reply.ids) == alone
        assert reply.finish_reason == "stop"
        assert reply.text == engine.processor.tokenizer.backend.decode(alone)
        assert (reply.prompt_tokens, reply.completion_tokens) == (len(request.inputs.ids), len(alone))


@pytest.mark.slow
def test_held_out_drawings_of_every_task(engine: Engine) -> None:
    trials = [trial for task in TASKS for trial in try_task(engine, task, 6, 6)]
    assert sum(trial.right for trial in trials) >= 0.95 * len(trials)


@pytest.mark.slow
def test_drawings_by_other_programs(engine: Engine) -> None:
    trials = try_foreign(engine, Path(__file__).parent / "foreign", 16)
    assert sum(trial.right for trial in trials) >= 0.9 * len(trials)


def test_photos_are_beyond_it(engine: Engine, shared: Path) -> None:
    assert all(trial.right for trial in try_limits(engine, sorted((shared / "photos").iterdir()), 8))


def test_transformers_loads_the_folder_and_says_the_same(engine: Engine) -> None:
    from transformers import AutoProcessor, MllamaForConditionalGeneration

    _, info = MllamaForConditionalGeneration.from_pretrained(FOLDER, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    talk = Conversation.ask("Describe this image.", (read_image(str(DATA / "drawing.png")),))
    ours = engine.processor(talk)
    processor = AutoProcessor.from_pretrained(FOLDER)
    content = [{"type": "image"}, {"type": "text", "text": "Describe this image."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with Image.open(DATA / "drawing.png") as image:
        theirs = processor(images=image.convert("RGB"), text=prompt, add_special_tokens=False, return_tensors="pt")
    assert theirs["input_ids"][0].tolist() == list(ours.ids)
    peer = transformers_model(model_config.config(), engine.network)
    tiles = engine.processor.tiles(talk.images[0])
    inputs = peer_inputs([ours.ids], [[(tiles.pixel_values, tiles.aspect_ratio_id)]], VOCABULARY_SIZE, 4)
    with torch.inference_mode():
        made = peer.generate(**inputs, max_new_tokens=60, do_sample=False, eos_token_id=[model_config.EOT])
    answer = processor.decode(made[0, len(ours.ids) :], skip_special_tokens=True)
    assert answer == "".join(e.text for e in engine.stream(talk, GREEDY) if isinstance(e, Token))


def test_choices_classify_as_often_right_as_free_answers(engine: Engine) -> None:
    samples = list(held_out("colour", 20))
    talks, choices = [conversation_of(sample) for sample in samples], sorted({sample.answer for sample in samples})
    held = Sampling(temperature=0, max_tokens=60, grammar=Grammar.choices(choices))
    free, chosen = (engine.answer_batch(talks, sampling) for sampling in (GREEDY, held))
    assert all(reply.text in choices for reply in chosen)
    right = [sum(r.text == s.answer for r, s in zip(replies, samples, strict=True)) for replies in (free, chosen)]
    assert right[1] >= right[0] >= 19


FIELDS = {
    "usual names": Grammar.fields("color, shape, count int"),
    "other names and order": Grammar.fields("total int, kind, colour"),
}


@pytest.fixture(scope="module")
def one_name() -> list[Sample]:
    """Drawings whose shapes have one name, such as three red circles."""
    return list(islice((s for s in _described() if len(s.facts["groups"]) == 1), 20))


@pytest.fixture(scope="module")
def prose(engine: Engine, one_name: list[Sample]) -> list[str]:
    """What is said of them without a form."""
    return _asked(engine, one_name, "What is in this picture?")


def _described() -> Iterator[Sample]:
    drawings = (s for s in held_out("describe", 4000) if s.facts["kind"] == "caption")
    return (sample for sample in drawings if sample.scenes[0].lettering is None)


def _asked(engine: Engine, samples: list[Sample], question: str, grammar: Grammar | None = None) -> list[str]:
    talks = [Conversation.ask(question, tuple(conversation_of(sample).images)) for sample in samples]
    return list(answers_to(engine, talks, 16, repeat(grammar)))


@pytest.mark.parametrize("fields", FIELDS)
def test_fields_are_filled_as_often_right_as_prose(
    engine: Engine, one_name: list[Sample], prose: list[str], fields: str
) -> None:
    held = _asked(engine, one_name, "What is in this picture?", FIELDS[fields])
    right = [0, 0]
    for sample, said, answer in zip(one_name, prose, held, strict=True):
        ((count, name),) = sample.facts["groups"]
        right[0] += is_right(sample, said)
        right[1] += Counter(map(str, json.loads(answer).values())) == Counter([str(count), *name.split(" ")])
    assert right[1] >= right[0] - 1
    assert right[1] >= 18


@pytest.mark.slow
def test_lists_of_objects_are_nearly_as_often_right_as_prose(engine: Engine) -> None:
    item = {"color": {"type": "string"}, "shape": {"type": "string"}, "count": {"type": "integer"}}
    listed = {"type": "array", "items": {"type": "object", "properties": item, "required": list(item)}}
    grammar = Grammar.schema({"type": "object", "properties": {"shapes": listed}, "required": ["shapes"]})
    samples = list(islice((s for s in _described() if len(s.facts["groups"]) > 1), 16))
    prose = _asked(engine, samples, "Describe this image.")
    held = _asked(engine, samples, "Describe this image.", grammar)
    right = [0, 0]
    for sample, said, answer in zip(samples, prose, held, strict=True):
        things = [[thing["count"], f"{thing['color']} {thing['shape']}"] for thing in json.loads(answer)["shapes"]]
        right[0] += is_right(sample, said)
        right[1] += sorted(things) == sorted(sample.facts["groups"])
    assert right[1] >= right[0] - 3


def test_prose_stays_what_it_says_by_itself_and_json_what_it_is_asked_for(engine: Engine) -> None:
    image = (read_image(str(DATA / "drawing.png")),)
    for question in ("Describe this image.", "How many circles are there?", "Name and color?"):
        assert "{" not in engine.answer_batch([Conversation.ask(question, image)], GREEDY)[0].text
    asked = Conversation.ask("What shapes are there? Answer as JSON with name and color.", image)
    (reply,) = engine.answer_batch([asked], Sampling(temperature=0, max_tokens=240))
    (things,) = json.loads(reply.text).values()
    assert {(thing["name"], thing["color"]) for thing in things} == {
        ("circle", "red"),
        ("square", "blue"),
        ("star", "yellow"),
    }
