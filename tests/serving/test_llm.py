"""`llm`, a command line that people use with OpenAI-compatible servers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.running import DATA, Server

LLM = shutil.which("llm", path=str(Path(sys.executable).parent))


@pytest.mark.slow
@pytest.mark.skipif(LLM is None, reason="needs the extra `peers`")
def test_a_question_about_an_attachment_and_a_reply(server: Server, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: drawings\n  model_name: sketch\n  api_base: {server.url}/v1\n  vision: true\n", encoding="utf-8"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def llm(*words: str) -> str:
        assert LLM is not None
        done = subprocess.run([LLM, *words], env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    picture = str(DATA / "drawing.png")
    assert "yellow" in llm("-m", "drawings", "-a", picture, "Which colour does the star have?")
    assert "3" in llm("-c", "How many circles are there?")
    assert "yellow" in llm("-m", "drawings", "--no-stream", "-a", picture, "Which colour does the star have?")
