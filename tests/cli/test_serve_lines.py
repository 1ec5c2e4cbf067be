"""What `mllama serve` says when it listens."""

from pathlib import Path

import pytest

from mllama_cli.cli.serve_lines import file_lines, port_lines
from mllama_cli.serving.settings import ServerSettings


@pytest.mark.parametrize(
    ("host", "url", "is_open"),
    [
        ("127.0.0.1", "http://127.0.0.1:80", False),
        ("localhost", "http://localhost:80", False),
        ("::1", "http://[::1]:80", False),
        ("0.0.0.0", "http://127.0.0.1:80", True),
        ("::", "http://[::1]:80", True),
        ("box.example", "http://box.example:80", True),
    ],
)
def test_an_address_that_works_here_and_a_warning_where_others_reach_it(host: str, url: str, is_open: bool) -> None:
    lines = port_lines("11b", ServerSettings(host=host), 80)
    assert all(url in line for line in lines[:4])
    assert any("--api-key-file" in line for line in lines) == is_open
    assert not any("Anyone" in line for line in port_lines("11b", ServerSettings(host=host, api_key="secret"), 80))


def test_a_key_is_named_and_never_shown() -> None:
    settings = ServerSettings(api_key="secret")
    for lines in (port_lines("11b", settings, 80), file_lines("11b", settings, Path("/run/a b.sock"))):
        text = "\n".join(lines)
        assert "secret" not in text
        assert "$MLLAMA_API_KEY" in text
    assert "'/run/a b.sock'" in text
