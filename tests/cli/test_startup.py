"""What `mllama --help` costs."""

import subprocess
import sys

import pytest

from mllama_cli.cli.app import COMMANDS
from mllama_cli.cli.commands import LazyCommand
from mllama_cli.remote.engines import EngineKey
from mllama_cli.remote.start import StartRequest
from mllama_cli.system.paths import built_in_model
from tests.console import run_here

HEAVY = (
    "torch",
    "PIL",
    "prompt_toolkit",
    "numpy",
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "httpx",
    "pydantic",  # a tenth of a second, which Typer imports to convert values
    "rich",
    "mllama_cli.cli.chat_request",
)


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = HEAVY[: None if arguments[0] != "chat" else -1]
    code = (
        "import sys\n"
        "from mllama_cli.__main__ import main\n"
        f"sys.argv = ['mllama', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {heavy!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_list_of_commands_says_what_each_says_itself(command: LazyCommand) -> None:
    assert command.get_short_help_str(limit=200) == command.load().get_short_help_str(limit=200)
    assert command.load().name == command.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "x"], "--max-tokens must be a whole number, not 'x'"),
        (["--max-tokens", "-1"], "Max-tokens must be 1 or more, not -1"),
        (["--top-p", "2"], "Top-p must be above 0 and at most 1, not 2.0"),
        (["--top-p", "two"], "--top-p must be a number, not 'two'"),
        (["--seed", "1.5"], "--seed must be a whole number, not '1.5'"),
        (["--seed", "٣"], "--seed must be a whole number, not '٣'"),
        (["--seed", "-3", "--temperature", ".5"], "nothing to ask"),
        (["--temperature", " 0.5 "], "nothing to ask"),
    ],
)
def test_values_are_converted_as_typer_converts_them(arguments: list[str], message: str) -> None:
    result = run_here("chat", *arguments, stdin=b" ")
    assert result.code == 2
    assert message in result.err


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import sys, os\n"
        "os.environ.update(_MLLAMA_COMPLETE='complete_bash', COMP_WORDS='mllama ch', COMP_CWORD='1',"
        " _TYPER_COMPLETE_ARGS='mllama ch')\n"
        "from mllama_cli.__main__ import main\n"
        "sys.argv = ['mllama']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "chat" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_no_arguments_show_help() -> None:
    result = run_here()
    assert "chat" in result.out + result.err
    assert result.code in (0, 2)


def test_typers_own_completion_options_are_hidden() -> None:
    shown = run_here("--help").out
    assert "completion" in shown
    assert "--install-completion" not in shown
    assert "--show-completion" not in shown


def test_a_first_answer_imports_no_compiler() -> None:
    code = (
        "import sys\n"
        "from mllama_cli import Conversation, load\n"
        "reply, = load('sketch', device='cpu').answer_batch([Conversation.ask('Hello')])\n"
        "print(reply.text)\n"
        "print('HEAVY', [m for m in ('torch._dynamo', 'sympy', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", "torch takes a second to import it"


BACKGROUND = StartRequest("sketch", EngineKey.of(built_in_model(), "cuda"), 1.0).line()
STARTS = {
    "chat": "sys.argv = ['mllama', 'chat', '-m', 'sketch', '--device', 'cuda', 'Hello']",
    "serve": "sys.argv = ['mllama', 'serve', '-m', 'sketch', '--device', 'cuda', '--port', '0']",
    "background": f"from mllama_cli.serving import background; main = lambda: background.main({BACKGROUND!r})",
}


@pytest.mark.parametrize("start", STARTS)
def test_a_context_is_created_while_torch_is_imported(start: str) -> None:
    code = (
        "import sys\n"
        "from mllama_cli.system import cuda_context\n"
        "from mllama_cli.__main__ import main\n"
        "def noted(device):\n"
        "    print(device, 'torch' in sys.modules)\n"
        "    raise SystemExit\n"
        "cuda_context.create_context = noted\n"
        f"{STARTS[start]}\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "cuda False"
