"""What `mllama --help` costs."""

import subprocess
import sys

import pytest

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
)


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from mllama_cli.__main__ import main\n"
        f"sys.argv = ['mllama', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


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
