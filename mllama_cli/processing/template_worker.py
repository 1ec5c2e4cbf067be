"""Render chat templates in a process of its own, with limits: a template is a program of a stranger's.

Jinja's sandbox keeps it from files and attributes, but not from endless loops or huge texts. Run as a script with the
template's source and the limits in the first line on stdin; each further line has the variables of one rendering. The
answers on stdout, a line each, are {"text": ...} or {"error": kind, "message": ...}.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, Undefined, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _RefusedError(Exception):
    """The template called raise_exception."""


class _TooLongError(Exception):
    """The prompt is longer than the limit."""


class _UnknownVariable(Undefined):
    """Is written as an empty text, as in transformers, but for bos_token: no prompt may begin without it unseen."""

    def __str__(self) -> str:
        if self._undefined_name == "bos_token":
            self._fail_with_undefined_error()
        return super().__str__()


class GenerationTag(Extension):
    """Transformers' ``{% generation %}``, which marks an answer for training: its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def environment() -> Environment:
    """Return the sandbox with what transformers gives to templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_UnknownVariable,
        extensions=["jinja2.ext.loopcontrols", GenerationTag],
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def answer(work: Callable[[], str]) -> dict[str, str]:
    """Return the answer for one piece of work."""
    try:
        return {"text": work()}
    except _RefusedError as error:
        kind, message = "refused", str(error)
    except SecurityError as error:
        kind, message = "unsafe", str(error)
    except _TooLongError:
        kind, message = "failed", "it makes a prompt much longer than the conversation"
    except RecursionError:
        kind, message = "failed", "it is nested too deeply"
    except MemoryError:
        kind, message = "failed", "it takes too much memory"
    except SyntaxError as error:  # of the Python that Jinja makes of it: {% break %} outside of a loop
        kind, message = "parse", str(error.msg)
    except UndefinedError as error:
        kind, message = "no_bos" if "'bos_token' is undefined" in str(error) else "failed", str(error)
    except TemplateError as error:
        kind, message = "failed", str(error)
    except Exception as error:
        kind, message = "failed", f"{type(error).__name__}: {error}"
    return {"error": kind, "message": message[:500]}


def limit_memory(size: int) -> None:
    """Make any allocation beyond ``size`` bytes a MemoryError, where the system can."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no resource, macOS no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def arm(seconds: float) -> None:
    """Let the system kill this process after that time; 0 disarms. Not all systems can: the parent watches, too."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Serve one template until stdin ends."""
    request = json.loads(sys.stdin.readline())
    limit_memory(request["memory"])
    template: Any = None

    def parsed() -> str:
        nonlocal template
        arm(request["seconds"])
        template = environment().from_string(request["source"])
        return ""

    first = answer(parsed)
    arm(0)
    if "error" in first and first["error"] == "failed":
        first["error"] = "parse"
    for line in sys.stdin:
        arm(request["seconds"])
        variables = json.loads(line)
        limit = variables.pop("max_length")
        if template is None:
            result = first
        else:
            result = answer(lambda given=variables, most=limit: _joined(template.generate(given), most))  # type: ignore[misc]
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        arm(0)


def _joined(pieces: Iterator[str], most: int) -> str:
    text, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > most:
            raise _TooLongError
        text.append(piece)
    return "".join(text)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: object) -> NoReturn:
    raise _RefusedError(str(message))


if __name__ == "__main__":
    main()
