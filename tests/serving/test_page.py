"""The page at /, in a real browser, with a real server."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mllama_cli.engine.engine import Engine
from mllama_cli.serving.settings import ServerSettings
from tests.serving.browser import CHROMIUM, Browser, browser
from tests.serving.running import DATA, Server, serving, wait_until

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
STAR = "Which colour does the star have?"


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def chat(tab: Browser, server: Server) -> Browser:
    """Return the open page, ready for a question."""
    tab.console.clear()
    tab.look(1200, 800)
    tab.open(f"{server.url}/")
    tab.wait("document.querySelector('#model').textContent")
    return tab


def answers(tab: Browser) -> list[str]:
    shown: list[str] = tab.run("[...document.querySelectorAll('.answer')].map(each => each.innerText)")
    return shown


def ask(tab: Browser, question: str) -> str:
    """Type a question and return the answer when it has ended."""
    before = len(answers(tab))
    tab.write(question)
    tab.press("Enter")
    tab.wait(
        f"document.querySelectorAll('.about .quiet').length >= {before + 1} && document.querySelector('#stop').hidden"
    )
    return answers(tab)[-1]


def test_a_browser_gets_the_page_and_other_clients_the_greeting(server: Server) -> None:
    reply = httpx.get(f"{server.url}/", headers=HTML)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert httpx.get(f"{server.url}/").text == httpx.get(f"{server.url}/", headers={"accept": "*/*"}).text
    assert httpx.get(f"{server.url}/").text == "Ollama is running"
    assert httpx.head(f"{server.url}/", headers=HTML).headers["content-type"].startswith("text/plain")


def test_the_page_is_small_and_needs_nothing_from_elsewhere(server: Server) -> None:
    reply = httpx.get(f"{server.url}/", headers=HTML)
    assert len(reply.content) < 40_000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|@import|url\(""", reply.text)
    assert "innerHTML" not in reply.text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@needs_chromium
def test_a_chat_about_an_image_in_several_turns(chat: Browser, server: Server) -> None:
    chat.choose("#files", DATA / "drawing.png")
    chat.wait("document.querySelector('#tray img')")
    assert "yellow" in ask(chat, STAR)
    assert re.search(r"\d+ tokens · [\d.]+ per second · first after [\d.]+ s", chat.text())
    assert ask(chat, "Who are you?") == answers(chat)[-1]
    assert len(answers(chat)) == 2
    assert chat.run("document.querySelectorAll('.user img').length") == 1
    assert chat.console == []


@needs_chromium
def test_pictures_can_be_dropped_and_pasted_and_other_files_are_refused(chat: Browser) -> None:
    data = base64.b64encode((DATA / "drawing.png").read_bytes()).decode()
    chat.run(f"""(() => {{
        const bytes = Uint8Array.from(atob("{data}"), (each) => each.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "star.png", {{type: "image/png"}}));
        const text = new DataTransfer();
        text.items.add(new File(["words"], "notes.txt", {{type: "text/plain"}}));
        const send = (name, more) => dispatchEvent(Object.assign(new Event(name, {{cancelable: true}}), more));
        send("drop", {{dataTransfer: files}});
        send("paste", {{clipboardData: files}});
        send("drop", {{dataTransfer: text}});
    }})()""")
    chat.wait("document.querySelectorAll('#tray img').length === 2")
    chat.wait("!document.querySelector('#problem').hidden")
    assert "notes.txt is not an image." in chat.text()
    chat.run("document.querySelector('#tray .remove').click()")
    assert chat.run("document.querySelectorAll('#tray img').length") == 1
    assert "yellow" in ask(chat, STAR)


@needs_chromium
def test_what_a_model_writes_is_never_markup(chat: Browser) -> None:
    nasty = (
        '<img src=x onerror="document.title = 1"> **<b>bold</b>** [x](javascript:alert(1)) `<i>`\n\n<script>1</script>'
    )
    chat.run(f"document.body.append(blocks({nasty!r}.split('\\n'), make('article')))")
    assert chat.run("document.querySelectorAll('article :is(img, b, i, script, a)').length") == 0
    assert "<script>1</script>" in chat.run("document.querySelector('article').innerText")
    assert chat.run("document.querySelector('article strong').textContent") == "<b>bold</b>"
    assert chat.run("document.title") == "mllama"


@needs_chromium
def test_markdown_becomes_what_it_means(chat: Browser) -> None:
    text = "# A\n- one\n- two\n  1. inner\n\n> said\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nx < y\n```\nsee *this* https://a.example/b."
    chat.run(f"document.body.append(blocks({text!r}.split('\\n'), make('article')))")
    shape = "[...document.querySelectorAll('article *')].map((each) => each.tagName).join(' ')"
    assert chat.run(shape) == ("H3 UL LI LI OL LI BLOCKQUOTE P DIV TABLE THEAD TR TH TH TBODY TR TD TD PRE CODE P EM A")
    assert chat.run("document.querySelector('article a').href") == "https://a.example/b"
    assert chat.run("document.querySelector('article pre').textContent") == "x < y"


@needs_chromium
def test_escape_stops_an_answer_and_frees_the_slot(chat: Browser, server: Server) -> None:
    # The built-in model soon comes to an end by itself; with this bias it does not.
    chat.run(f"""(() => {{
        const plain = fetch, endless = {{max_tokens: 1900, logit_bias: {json.dumps(server.endless)}}};
        window.fetch = (url, options = {{}}) => plain(url, options.body
            ? {{...options, body: JSON.stringify({{...JSON.parse(options.body), ...endless}})}}
            : options);
    }})()""")
    chat.write("Who are you?")
    chat.press("Enter")
    chat.wait("document.querySelector('.answer')?.innerText.length > 20")
    chat.press("Escape")
    chat.wait("document.querySelector('#stop').hidden")
    wait_until(server.idle)
    assert len(answers(chat)) == 1
    assert chat.run("document.querySelectorAll('.about .again').length") == 1


@needs_chromium
def test_shift_enter_is_a_new_line(chat: Browser) -> None:
    chat.write("one")
    chat.press("Enter", shift=True)
    chat.write("two")
    assert chat.run("document.querySelector('#text').value") == "one\ntwo"
    assert answers(chat) == []


@needs_chromium
def test_an_error_is_shown_and_the_question_given_back(chat: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    chat.choose("#files", broken)
    chat.wait("document.querySelector('#tray .picture')")
    chat.write("What is it?")
    chat.press("Enter")
    chat.wait("!document.querySelector('#problem').hidden")
    assert "is damaged" in chat.text()
    assert chat.run("document.querySelector('#text').value") == "What is it?"
    assert chat.run("document.querySelectorAll('#tray .picture').length") == 1
    assert answers(chat) == []


@needs_chromium
def test_again_replaces_the_answer(chat: Browser) -> None:
    first = ask(chat, "Who are you?")
    chat.run("document.querySelector('.again').click()")
    chat.wait("document.querySelector('#stop').hidden && document.querySelectorAll('.answer').length === 1")
    assert answers(chat) == [first]


@needs_chromium
def test_a_new_chat_begins_with_nothing(chat: Browser) -> None:
    ask(chat, "Who are you?")
    chat.run("document.querySelector('#new').click()")
    assert answers(chat) == []
    assert not chat.run("document.querySelector('#hello').hidden")
    assert chat.run("localStorage.length + sessionStorage.length") == 0


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(chat: Browser, dark: bool) -> None:
    chat.look(390, 844, dark=dark, phone=True)
    chat.choose("#files", DATA / "drawing.png")
    chat.wait("document.querySelector('#tray img')")
    chat.write(STAR)
    chat.run("document.querySelector('#send').click()")
    chat.wait("document.querySelector('.about .quiet')")
    assert chat.run("document.documentElement.scrollWidth") <= 390
    assert chat.run("document.querySelector('footer').getBoundingClientRect().bottom") <= 844
    light = chat.run("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(250, 248, 245)") is not dark


@needs_chromium
def test_it_asks_for_the_key_of_a_server_that_wants_one(tab: Browser, sketch: Engine) -> None:
    with serving(sketch, ServerSettings(api_key="sesame", grace=0)) as locked:
        tab.open(f"{locked.url}/")
        tab.wait("!document.querySelector('#unlock').hidden")
        tab.write("open")
        tab.press("Enter")
        tab.wait("document.body.innerText.includes('not the key')")
        tab.write("sesame")
        tab.press("Enter")
        tab.wait("document.querySelector('#model').textContent")
        assert ask(tab, "Who are you?")
        assert tab.run("[localStorage.length, sessionStorage.length]") == [0, 1]
