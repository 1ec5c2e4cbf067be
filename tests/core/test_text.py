"""Helpers for the text of messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.core.text import hide_passwords, human_size, one_line, strip_control, suggest


def test_the_nearest_names_are_suggested_whatever_their_capitals() -> None:
    assert suggest("imgae", ["image", "save"]) == "Did you mean image? "
    assert suggest("DWON_PROJ", ["down_proj", "up_proj", "lm_head"], count=2) == "Did you mean down_proj or up_proj? "
    assert suggest("dgo", ["Dog"], show=repr) == "Did you mean 'Dog'? "
    assert suggest("cafe\u0301s", ["caf\u00e9"], cutoff=0.85) == "Did you mean caf\u00e9? "


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert suggest("zzz", ["image", "save"]) == ""
    assert suggest("", []) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (5000, "5.0 kB"), (6e6, "6.0 MB"), (178e9, "178.0 GB")]
)
def test_sizes_are_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert human_size(count) == text


def test_nothing_that_steers_a_terminal_survives() -> None:
    assert strip_control("a\x1b[31mb\x07\x9bc\rd\te\n") == "a[31mbcd\te\n"
    assert strip_control("half \ud800, line\u2028end") == "half \ufffd, line end"


@pytest.mark.parametrize(
    "address",
    [
        "http://bob:hunter2@127.0.0.1:99999/x",
        "http://bob:hunter2@host:port/x",
        "http://bob:hunter2@[::1/x",
        "http://bob:hun ter2@host/x",
        "http://bob:hunter2@/x",
        "http://bob:hun\x01ter2@host",
        "http://bob:hun\nter2@host",
        "http://bob:hun/ter2@host",
        "http://bob:hun#ter2@host",
        "http://bob:hun?ter2@host",
        "http://bob:p@hunter2@host",
        "http://bob:1234/hunter2@host",
        f"http://bob:hunter2{'A' * 70_000}@host",
        "ftp://bob:hunter2@host",
        "file://bob:hunter2@host/x",
        "socks5h://bob:hunter2@host:1080",
        "http:/bob:hunter2@host/x",
        "http:bob:hunter2@host/x",
        "http:\\\\bob:hunter2@host/x",
        "//bob:hunter2@host/x",
        "HTTPS://hf_hunter2@host/x",
        "http://DOMAIN\\bob:hunter2@host",
        "'http://bob:hunter2@host' and http://ann:hunter2@host",
    ],
    ids=lambda address: address[:40],
)
def test_a_password_is_hidden_in_any_address(address: str) -> None:
    shown = hide_passwords(f"{address} is not valid: see {address}")
    assert not {"hun", "ter2"} & {shown[i : i + n] for n in (3, 4) for i in range(len(shown))}
    assert "bob" not in shown
    assert shown.count("***@") >= 2


@pytest.mark.parametrize(
    "name",
    ["token", "access_token", "accessToken", "sig", "Signature", "X-Amz-Signature", "X-Amz-Security-Token", "api_key",
     "X-Goog-Credential", "apikey", "client_secret", "hf.token", "pwd"],
)  # fmt: skip
def test_a_secret_parameter_is_hidden_and_the_others_stay(name: str) -> None:
    for start in ("?", "?w=5&", "#"):
        address = f"https://host/a.png{start}{name}="
        assert hide_passwords(f"{address}Hun%2Fter2~x.y: gone") == f"{address}*** gone"
        assert hide_passwords(f"'{address}hunter2&h=6' is gone") == f"'{address}***&h=6' is gone"


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.png?width=5&design=2&page=3&monkey=1",
        "token=5 sig=3",
        "https://commons.wikimedia.org/wiki/File:Foo@2x.png",
        "https://host/@user/a.png",
        "http://[::1]:80/a@2x.png",
        "http://localhost:8000/x cannot be reached: ask admin@host",
        "C:\\Users\\me@work\\a.png",
        "photos//trip:a@2x.png",
        "mail bob@example.org",
        "no address",
        "",
    ],
)
def test_what_holds_no_password_stays(text: str) -> None:
    assert hide_passwords(text) == text


@given(st.text(alphabet="ab:/@#? \\\n[]1.", max_size=60), st.text(alphabet="ab:/ 1", max_size=20))
def test_hiding_is_idempotent_and_lines_are_bounded(before: str, after: str) -> None:
    shown = hide_passwords(f"{before} http://me:secret@host{after}")
    assert "secret" not in shown
    assert len(one_line(before * 40, 100)) <= 100
    assert "\n" not in one_line(before)
