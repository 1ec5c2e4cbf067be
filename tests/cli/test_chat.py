"""`mllama chat` as its users call it."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.cli.chat_request import ChatInput
from mllama_cli.cli.question import build_question
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.terminal.console import Terminal
from tests.checkpoints import make_checkpoint, text_only_config
from tests.console import Result, run_here, run_script
from tests.decodes import count_png_decodes

IMAGE_URL = {"type": "image_url"}
NEVER = 10**6
"""An id that no model generates: answers run to --max-tokens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one model, answers of which are printable noise."""
    home = tmp_path_factory.mktemp("home")
    make_checkpoint(home / "models" / "tiny", seed=3, generation={"eos_token_id": [NEVER]})
    return home


@pytest.fixture(autouse=True)
def _own_home(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(models))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def engine(models: Path) -> Engine:
    return load(models / "models" / "tiny", device="cpu", vision=True)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((90, 50)).save(path)
    return path


def expected(
    engine: Engine, text: str, *images: Path, system: str = "", count: int = 12, sampling: Sampling | None = None
) -> str:
    parts = tuple(ImagePart(image.read_bytes()) for image in images)
    events = engine.stream(Conversation.ask(text, parts, system), sampling or Sampling(max_tokens=count))
    return "".join(event.text for event in events if isinstance(event, Token)).rstrip("\n") + "\n"


def chat(*arguments: str, stdin: bytes | None = None, count: int = 12) -> Result:
    return run_here("chat", "--max-tokens", str(count), "--device", "cpu", *arguments, stdin=stdin)


def test_one_question_about_a_picture(engine: Engine, png: Path) -> None:
    result = chat("--image", str(png), "What is this?")
    assert result.code == 0
    assert result.out == expected(engine, "What is this?", png)
    assert "\x1b" not in result.out + result.err


def test_piped_text_comes_before_the_prompt(engine: Engine) -> None:
    result = chat("Summarise this", stdin=b"My notes.\n")
    assert result.out == expected(engine, "My notes.\n\nSummarise this")
    assert chat(stdin=b"My notes.\n").out == expected(engine, "My notes.")
    assert chat("-p", "Summarise", "this", stdin=b"").out == expected(engine, "Summarise\n\nthis")


def test_no_stdin_leaves_stdin_alone(engine: Engine) -> None:
    assert chat("--no-stdin", "Hello", stdin=b"not for you").out == expected(engine, "Hello")


def test_a_picture_on_stdin(engine: Engine, png: Path) -> None:
    result = chat("--image", "-", "What is this?", stdin=png.read_bytes())
    assert result.out == expected(engine, "What is this?", png)


def test_a_picture_as_data_url_and_with_tilde(engine: Engine, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
    assert chat("-a", url, "What?").out == expected(engine, "What?", png)
    monkeypatch.setenv("HOME", str(png.parent))
    assert chat("-i", "~/photo.png", "What?").out == expected(engine, "What?", png)


def test_several_pictures_in_order(engine: Engine, png: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    Image.radial_gradient("L").resize((50, 120)).save(other)
    one = chat("-i", str(png), "-i", str(other), "Differ?")
    assert one.out == expected(engine, "Differ?", png, other)
    assert len({one.out, chat("-i", str(png), "Differ?").out, chat("-i", str(other), "Differ?").out}) == 3
    asked = ChatInput(words=["Differ?"], image=[str(png), str(other)], no_stdin=True)
    images = build_question(asked, Terminal()).images
    assert [image.data for image in images] == [png.read_bytes(), other.read_bytes()]
    assert "latest group" not in one.err, "pictures in one turn all stay visible"


def test_a_picture_without_a_question_is_described_and_says_so(engine: Engine, png: Path) -> None:
    result = chat("-i", str(png))
    assert result.out == expected(engine, "Describe this image.", png)
    assert "Describe this image." in result.err


def test_a_system_message_with_a_picture_is_folded_into_the_question_and_reported(engine: Engine, png: Path) -> None:
    result = chat("-i", str(png), "-s", "Be brief.", "What?")
    assert result.out == expected(engine, "Be brief.\n\nWhat?", png)
    assert "system" in result.err
    assert chat("-s", "Be brief.", "What?").out == expected(engine, "What?", system="Be brief.")


def test_options_reach_the_sampler(engine: Engine) -> None:
    hot = Sampling(temperature=1.3, top_p=0.8, top_k=50, min_p=0.01, repetition_penalty=1.2, seed=7, max_tokens=12)
    flags = "--temp=1.3 --top-p=0.8 --top-k=50 --min-p=0.01 --repetition-penalty=1.2 --seed=7"
    assert chat(*flags.split(), "Hello").out == expected(engine, "Hello", sampling=hot)


def test_stop_strings_end_the_answer(engine: Engine) -> None:
    free = expected(engine, "Hello")
    stop = next(c for c in free if c.isalnum())
    assert chat("--stop", stop, "Hello").out.rstrip("\n") == free[: free.index(stop)].rstrip("\n")


def test_json_is_one_object_with_answer_counts_and_timings(engine: Engine, png: Path) -> None:
    result = chat("--json", "-i", str(png), "What?")
    record = json.loads(result.out)
    assert record["answer"].rstrip("\n") + "\n" == expected(engine, "What?", png)
    assert record["finish_reason"] == "length"
    assert record["usage"]["completion_tokens"] == 12
    assert record["usage"]["images"] == 1
    assert record["usage"]["prompt_tokens"] > 20
    assert record["timings"]["time_to_first_token"] > 0
    assert record["model"] == "tiny"


def test_no_stream_and_verbose(engine: Engine) -> None:
    result = chat("--no-stream", "--verbose", "Hello")
    assert result.out == expected(engine, "Hello")
    assert "tokens/s" in result.err


def test_an_answer_cut_at_the_limit_is_not_cut_silently() -> None:
    assert "12 tokens (--max-tokens)" in chat("Hello").err


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


def test_base_models_take_the_raw_prompt(png: Path, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=3, template=None)
    refused = chat("-m", str(base), "Hello")
    assert refused.code == 1
    assert "--raw" in refused.err
    raw = chat("-m", str(base), "--raw", "-i", str(png), "If I had to write")
    assert raw.code == 0
    engine = load(base, device="cpu", vision=True)
    inputs = engine.processor.raw("If I had to write", [ImagePart(png.read_bytes())])
    assert inputs.ids[:2] == (engine.processor.image_token_id, 256), "begin_of_text follows the leading image token"
    events = engine.session().stream_inputs(inputs, Sampling(max_tokens=12))
    assert raw.out.rstrip("\n") == "".join(e.text for e in events if isinstance(e, Token)).rstrip("\n")


def test_an_image_is_decoded_once(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decodes = count_png_decodes(monkeypatch)
    assert chat("-i", str(png), "What?").code == 0
    assert len(decodes) == 1


def test_an_image_is_decoded_once_in_a_library_too(engine: Engine, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decodes = count_png_decodes(monkeypatch)
    talk = Conversation.ask("What?", (ImagePart(png.read_bytes()),))
    list(engine.stream(talk, Sampling(max_tokens=2)))
    assert len(decodes) == 1


def broken(name: str, png: Path, folder: Path) -> str:
    path = folder / name
    match name:
        case "folder.png":
            path.mkdir()
        case "text.png":
            path.write_text("not a picture")
        case "truncated.jpg":
            buffer = BytesIO()
            Image.effect_noise((300, 300), 90).save(buffer, "JPEG")
            path.write_bytes(buffer.getvalue()[:2000])
        case "empty.png":
            path.touch()
        case "bomb.png":
            Image.new("1", (20000, 20000)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "code"),
    [("missing.png", 2), ("folder.png", 2), ("text.png", 1), ("truncated.jpg", 1), ("empty.png", 1), ("bomb.png", 1)],
)
def test_a_bad_picture_is_one_clear_error_before_anything_is_loaded(
    name: str, code: int, png: Path, models: Path, tmp_path: Path
) -> None:
    hollow = tmp_path / "hollow"  # a model without weights and tokenizer: to load it would be an error
    hollow.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (hollow / file).write_bytes((models / "models" / "tiny" / file).read_bytes())
    result = chat("-m", str(hollow), "-i", broken(name, png, tmp_path), "What?")
    assert result.code == code
    assert result.out == ""
    assert name in result.err
    assert "Traceback" not in result.err
    assert len(result.error_lines) <= 2


def test_a_tiny_picture_is_fine(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert chat("-i", str(tmp_path / "dot.png"), "What?").code == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "nothing to ask"),
        ([], b"", "nothing to ask"),
        (["", "-p", " "], b"\n", "nothing to ask"),
        (["Hi", "--temperature", "-1"], None, "Temperature"),
        (["Hi", "--device", "tpu"], None, "tpu"),
        (["Hi", "--dtype", "int3"], None, "int3"),
        (["Hi", "-m", "no-such-model"], None, "no-such-model"),
        (["-i", "-", "--messages", "-"], b"x", "stdin"),
        (["-i", "-", "Hi"], None, "terminal"),
        (["--messages", "no-talk.json", "Hi"], None, "no-talk.json"),
        (["--messages", "talk.json", "--system", "Hi"], None, "--system"),
        (["Hi"], b"\xff\xfe\x00", "UTF-16"),
        (["Hi"], b"\xe9t\xe9", "UTF-8"),
        (["Hi"], b"word " * 2**20, "stdin is larger than 4 MiB"),
        (["--messages", "/dev/zero"], None, "/dev/zero is neither a file nor a pipe"),
        (["--messages", "-"], b"[" * 2**26 + b"[", "stdin is larger than 16 MiB"),
        (["Hi", "--seed", "18446744073709551616"], None, "Seed must be from"),
        (["Hi", "--seed", "9" * 5000], None, "seed"),
        (["--no-such-flag"], None, "--no-such-flag"),
    ],
)
def test_usage_errors_exit_2_with_a_reason(arguments: list[str], stdin: bytes | None, message: str) -> None:
    result = chat(*arguments, stdin=stdin)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_further_pictures_without_a_flag_are_not_read_as_text(png: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    other.write_bytes(png.read_bytes())
    result = chat("-i", str(png), str(other), "What?")
    assert result.code == 2
    assert f"-i {other}" in result.err


def test_cuda_asked_for_but_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run_here("chat", "--device", "cuda", "Hi")
    assert result.code == 2
    assert "CUDA" in result.err


def test_context_length_exceeded_says_by_how_much() -> None:
    result = chat(stdin=b"x" * 2100)
    assert result.code == 1
    assert "more than this model can read" in result.err


def test_text_only_models_refuse_pictures(png: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "text", text_only_config())
    assert chat("-m", str(folder), "Hello").code == 0
    result = chat("-m", str(folder), "-i", str(png), "What?")
    assert result.code == 2
    assert "text-only" in result.err


def test_special_tokens_in_a_message_are_plain_text(engine: Engine) -> None:
    text = "a <|image|> and <|eot_id|>"
    result = chat(text)
    assert result.code == 0
    ids = engine.processor(Conversation.ask(text)).ids
    assert engine.processor.image_token_id not in ids
    assert text in engine.processor.tokenizer.decode(ids)


def test_too_little_memory_is_said_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Free)
    result = chat("--dtype", "bfloat16", "Hi")
    assert result.code == 1
    assert "GiB" in result.err


def test_the_model_comes_from_the_environment(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_checkpoint(tmp_path / "other", seed=9)
    monkeypatch.setenv("MLLAMA_MODEL", str(other))
    assert chat("Hello").out == expected(load(other, device="cpu"), "Hello")
    assert chat("-m", "tiny", "Hello").out == expected(engine, "Hello"), "the flag overrides it"


def test_through_the_console_script(engine: Engine, png: Path) -> None:
    result = run_script("chat", "-i", str(png), "--max-tokens", "12", "What?")
    assert result.code == 0
    assert result.out == expected(engine, "What?", png)


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_traceback(debug: bool) -> None:
    result = run_script("chat", "-i", "missing.png", "Hi", *(["--debug"] if debug else []))
    assert ("Traceback" in result.err) == debug
    assert result.code == (1 if debug else 2)
