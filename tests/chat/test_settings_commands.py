"""Slash commands for the model, sampling and display, /help, and bad arguments of all commands."""

import re
from dataclasses import replace

import pytest

from mllama_cli.chat.commands.registry import COMMANDS
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from tests.chat.harness import ChatHarness
from tests.console import Stream


def test_parameters_are_set_under_both_tools_names(harness: ChatHarness) -> None:
    harness.type(
        "/set parameter temperature 0.5", "/set parameter num_predict 9", "/set parameter repeat_penalty 1.1",
        "/set parameter top-k 3", "/set parameter seed 4", "/set parameter stop ENDE", "/set parameter stop \\n\\n",
    )  # fmt: skip
    assert harness.dialogue.sampling == Sampling(
        temperature=0.5, max_tokens=9, repetition_penalty=1.1, top_k=3, seed=4, stop=("ENDE", "\n\n")
    )
    harness.type("/set parameter seed none")
    assert harness.dialogue.sampling.seed is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set", "needs a setting"),
        ("/set volume 11", "does not know 'volume 11'"),
        ("/set parameter tempratur 1", "Did you mean temperature?"),
        ("/set parameter temperature", "needs a value"),
        ("/set parameter temperature hot", "must be a number, not 'hot'"),
        ("/set parameter top_k 1.5", "must be a whole number"),
        ("/set parameter temperature -1", "must be 0 or more"),
        ("/set parameter num_ctx 4096", "the model's: 2048 tokens"),
        ("/set verbose loud", "takes on or off, not 'loud'"),
        ("/set quiet off", "does not know 'quiet off'"),
        ("/set preview 2", "takes on or off"),
        ("/set theme pink", "does not know"),
        ("/show xx", "takes no argument, not 'xx'"),
        ("/images all", "takes no argument"),
        ("/undo 2", "takes no argument"),
        ("/redo", "nothing to restore"),
        ("/edit", "nothing was asked"),
        ("/help nothing", "no command /nothing"),
        ("/model nope", "no model nope"),
        ("/imagee x.png", "Did you mean /image?"),
        ("/save", "needs a name"),
        ("/save x", "still empty"),
        ("/load nope", "nope"),
        ("/export", "needs a file name"),
        ("/export x.md", "still empty"),
    ],
)
def test_a_bad_argument_is_one_clear_error_and_changes_nothing(harness: ChatHarness, line: str, says: str) -> None:
    before = replace(harness.dialogue.sampling)
    said = harness.type(line)
    assert says in said
    assert said.startswith("mllama: ")
    assert len(said.strip().splitlines()) <= 2
    assert (harness.dialogue.sampling, harness.roles) == (before, [])


def test_system_verbose_and_show(harness: ChatHarness) -> None:
    harness.type("/system Be brief.", "/set verbose")
    assert "tokens/s" in harness.type("One?")
    shown = harness.type("/show")
    for text in ("Be brief.", "cpu", "of 2048 tokens used", "1 question", "max_tokens"):
        assert text in shown
    harness.type("/set system 'Be long.'", "/set quiet")
    assert harness.dialogue.system == "Be long."
    assert "tokens/s" not in harness.type("Two?")
    assert "Be long." in harness.type("/system")
    assert harness.dialogue.system == "Be long."
    harness.type("/system none")
    assert harness.dialogue.system == ""
    assert "no system message" in harness.type("/set system")
    harness.type("/set verbose on", "/set verbose off", "/set preview on")
    assert not harness.shell.display.verbose
    assert harness.shell.display.preview
    harness.type("/set preview off")
    assert not harness.shell.display.preview


def test_another_model_goes_on_with_the_conversation(harness: ChatHarness) -> None:
    harness.type("One?", "/model other", "Two?")
    assert harness.roles == ["user", "assistant"] * 2
    assert not harness.dialogue.engine.has_vision
    assert harness.dialogue.sampling.max_tokens == 7


def test_help_names_every_command(harness: ChatHarness) -> None:
    for line in ("/help", "/?"):
        said = harness.type(line)
        for command in COMMANDS:
            assert all(f"/{name}" in said for name in command.names)
            assert command.call in said


@pytest.mark.parametrize("columns", [30, 60, 69, 70, 100])
def test_help_explains_in_windows_of_any_width(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    harness.terminal.stderr = harness.err = Stream(tty=True)
    said = re.sub(r"\x1b\[[\d;]*m", "", harness.type("/help"))
    assert max(map(len, said.splitlines())) <= columns
    words = " ".join(said.split())
    for command in COMMANDS:
        assert command.call in words
    if columns < 70:
        for command in COMMANDS:
            assert command.help in words
    assert "drop a picture" in words.lower()
    assert "theme" in harness.type("/help set")


def test_answers_are_held_to_a_schema_until_it_is_taken_back(harness: ChatHarness) -> None:
    assert "Answers are free" in harness.type("/schema")
    assert "JSON with shop, total from now on" in harness.type("/schema shop, total float")
    assert harness.dialogue.sampling.grammar == Grammar.fields("shop, total float")
    assert "shop" in harness.type("/schema")
    harness.type("/set format json")
    assert harness.dialogue.sampling.grammar == Grammar.json_object()
    for line in ("/schema none", "/set format none", "/set noformat"):
        harness.type("/set format json")
        assert "free again" in harness.type(line)
        assert harness.dialogue.sampling.grammar is None


def test_a_bad_schema_changes_nothing(harness: ChatHarness) -> None:
    harness.type("/schema shop")
    assert "type that does not exist" in harness.type("/schema shop strr")
    assert harness.dialogue.sampling.grammar == Grammar.fields("shop")
