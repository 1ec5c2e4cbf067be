"""Check that llguidance can enforce a grammar, and say which keyword of a schema it cannot, and where."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.text import shown

MAX_SCHEMA_DEPTH = 64
"""Deepest nesting of a schema that is searched for the place of an error."""

_OPTIONS: Any = {
    # As Python and most training text write JSON on one line. Free white space would have no end at high temperatures.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
_UNSUPPORTED = re.compile(r"Unimplemented keys: (\[.*\])")
_KEYWORDS = (
    ("format", re.compile(r"[Uu]nknown format|'format'")),
    ("pattern", re.compile(r"regex parse error|invalid regex|lookaround")),
    ("oneOf", re.compile(r"oneOf")),
    ("minProperties or maxProperties", re.compile(r"min/maxProperties")),
    ("$ref", re.compile(r"Pointer '|Resource '")),
    ("type", re.compile(r"Invalid type")),
)
_IMPOSSIBLE = "Unsatisfiable schema: "
_DEFINITIONS = ("$defs", "definitions")


def require_supported(grammar: Grammar) -> None:
    """Raise UsageError, naming the keyword and where it is, for a grammar that cannot be enforced."""
    source_of(grammar)


@lru_cache(maxsize=256)
def source_of(grammar: Grammar) -> str:
    """Return a grammar as llguidance reads it. Raise UsageError if it cannot be enforced."""
    from llguidance import LLMatcher

    if grammar.kind == "schema":
        schema = json.loads(grammar.source)
        _require_nested(schema)
        problem = _schema_problem(schema)
        if problem:
            raise _refused_schema(schema, problem)
        return _compiled_schema(schema)
    if grammar.kind == "choices":
        quoted = (json.dumps(text, ensure_ascii=False) for text in grammar.texts)
        source: str = LLMatcher.grammar_from_lark(f"start: {' | '.join(quoted)}")
        what, hint = "The choices cannot be enforced", "Use shorter or fewer choices."
    else:
        source = LLMatcher.grammar_from_regex(grammar.source)
        what = f"The pattern {shown(grammar.source)} cannot be enforced"
        hint = "Patterns are those of Rust's regex crate: no look-around, back-references, ^ or $ inside, or \\b."
    if problem := LLMatcher.validate_grammar(source):
        raise UsageError(f"{what}: {reason_of(problem)}", hint)
    return source


def _compiled_schema(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    closed = schema if _combines(schema) else _closed(schema)
    source: str = LLMatcher.grammar_from_json_schema(closed, overrides=_OPTIONS)
    return source


def _combines(value: Any) -> bool:
    """Return whether an object somewhere in a schema is described by several parts, each of which leaves room."""
    if isinstance(value, list):
        return any(map(_combines, value))
    if not isinstance(value, dict):
        return False
    parts = [key for key in ("properties", "$ref", "anyOf", "oneOf") if key in value]
    return "allOf" in value or len(parts) > 1 or any(map(_combines, value.values()))


def _closed(value: Any) -> Any:
    """Return a schema whose objects have no other properties than those listed, unless it says what others are.

    Such answers are valid too, and models that may go on inventing properties often do.
    """
    if isinstance(value, list):
        return [_closed(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = {
        key: each if key in ("const", "enum", "default", "examples") else _closed(each) for key, each in value.items()
    }
    if isinstance(value.get("properties"), dict) and "patternProperties" not in value:
        inner.setdefault("additionalProperties", False)
    return inner


def _schema_problem(schema: dict[str, Any]) -> str:
    """Return what llguidance says against a schema; empty if it can be enforced."""
    from llguidance import LLMatcher

    problem: str = LLMatcher.validate_grammar(_compiled_schema(schema))
    return problem


def _refused_schema(schema: dict[str, Any], problem: str) -> UsageError:
    place, part, problem = _place(schema, problem)
    where = f"at {place}" if place else "at its top level"
    if unsupported := _UNSUPPORTED.search(problem):
        keywords = " and ".join(json.loads(unsupported[1]))
        return UsageError(
            f"The schema's {keywords} {where} cannot be enforced", "Leave it out, or check it after the answer."
        )
    keyword = next((name for name, words in _KEYWORDS if words.search(problem)), "")
    named = f"The schema's {keyword} {where}" if keyword else f"The schema {where}"
    if keyword in part and isinstance(part[keyword], str):
        named = f"The schema's {keyword} {shown(part[keyword])} {where}"
    return UsageError(f"{named} cannot be enforced: {reason_of(problem)}", "Change it, or leave it out.")


def _place(schema: dict[str, Any], problem: str) -> tuple[str, dict[str, Any], str]:
    """Return the JSON pointer of the smallest part of a schema with the same problem, that part, and its problem."""
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    place, part = "", schema
    for _ in range(MAX_SCHEMA_DEPTH):
        for pointer, inner in _parts(part):
            found = _schema_problem({**definitions, **inner})
            if found == problem or (found.startswith(_IMPOSSIBLE) and problem.startswith(_IMPOSSIBLE)):
                place, part, problem = place + pointer, inner, found
                break
        else:
            target = _referred(schema, part)
            if target is None or target[0] == place:
                break
            place, part = target
    return (f"#{place}" if place else ""), part, problem


def _referred(schema: dict[str, Any], part: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the pointer that a part's ``$ref`` has into the schema, and what is there."""
    reference = part.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = schema
    for key in reference[2:].split("/"):
        found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return (reference[1:], found) if isinstance(found, dict) else None


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas directly inside a schema, each with its pointer from there."""
    for key, value in schema.items():
        name = f"/{_escaped(key)}"
        if key in ("properties", "patternProperties", *_DEFINITIONS) and isinstance(value, dict):
            yield from ((f"{name}/{_escaped(each)}", inner) for each, inner in value.items() if isinstance(inner, dict))
        elif isinstance(value, dict) and key not in ("const", "default", "examples"):
            yield name, value
        elif isinstance(value, list) and key not in ("enum", "examples", "required"):
            yield from ((f"{name}/{index}", inner) for index, inner in enumerate(value) if isinstance(inner, dict))


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _require_nested(schema: Any) -> None:
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise UsageError(f"The schema is nested more than {MAX_SCHEMA_DEPTH} levels deep", "Simplify it.")


def reason_of(problem: str) -> str:
    """Return llguidance's message, which may draw a picture of the place, on one line."""
    if error := re.search(r"error: (.+)", problem):
        return error[1]
    first = problem.split("\n", 1)[0]
    words = r"^at \d+\(\d+\): |invalid regex .* \(in regex\): | in regex /.*|\. Enable 'coerce_one_of.*"
    return re.sub(words, "", first).strip() or first
