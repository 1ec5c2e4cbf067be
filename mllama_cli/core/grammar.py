"""Descriptions of what an answer may be: JSON by a schema, one of several texts, or a text that matches a pattern."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import shown, suggest

_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_FIELD = re.compile(r"(?P<name>[^\s\[\]{}\"]+)(?:\s+(?P<list>\[)?\s*(?P<type>\w+)\s*(?(list)\]))?")

SHORT_FORM = "'name str, total float, items [str]'"
"""An example of the short form of a schema."""


@dataclass(frozen=True)
class Grammar:
    """What every answer must be. ``processing.grammar`` checks and applies it.

    Attributes:
        source: of a schema its JSON text, of choices a JSON list of texts, of a regex the pattern.
    """

    kind: Literal["schema", "choices", "regex"]
    source: str

    @classmethod
    def schema(cls, schema: Any) -> "Grammar":
        """Return the grammar of a JSON schema: an object, its JSON text, or a pydantic model."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"The schema is not valid JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise UsageError(f"A schema must be a JSON object, not {shown(schema)}", 'Example: {"type": "object"}')
        return cls("schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def json_object(cls) -> "Grammar":
        """Return the grammar of any JSON object."""
        return cls.schema({"type": "object"})

    @classmethod
    def fields(cls, text: str) -> "Grammar":
        """Return the grammar of an object in the short form: names with optional types, separated by commas.

        >>> Grammar.fields("name, total float, items [str]").properties
        ('name', 'total', 'items')
        """
        properties: dict[str, Any] = {}
        for field in filter(None, (each.strip() for each in text.split(","))):
            match = _FIELD.fullmatch(field)
            if match is None:
                raise UsageError(
                    f"The schema has a field that is not a name and a type: {shown(field)}", f"Example: {SHORT_FORM}"
                )
            name, type_ = match["name"], match["type"] or "str"
            if type_ not in _TYPES:
                raise UsageError(
                    f"The schema's field {name} has a type that does not exist: {shown(type_)}",
                    f"{suggest(type_, _TYPES)}Types: {', '.join(_TYPES)}; in brackets, a list of them.",
                )
            if name in properties:
                raise UsageError(f"The schema has the field {name} twice", "Leave one of them out.")
            value = {"type": _TYPES[type_]}
            properties[name] = {"type": "array", "items": value} if match["list"] else value
        if not properties:
            raise UsageError("The schema has no fields", f"Example: {SHORT_FORM}")
        closed = {"required": list(properties), "additionalProperties": False}
        return cls.schema({"type": "object", "properties": properties, **closed})

    @classmethod
    def choices(cls, texts: Iterable[str]) -> "Grammar":
        """Return the grammar of exactly one of some texts."""
        texts = list(texts)
        if not texts or not all(texts):
            raise UsageError("A choice must not be empty", "Example: --choice cat --choice dog")
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise UsageError(f"The choice {shown(twice)} is there twice", "Leave one of them out.")
        return cls("choices", json.dumps(texts, ensure_ascii=False))

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Return the grammar of texts that match a pattern as a whole, in the syntax of Rust's regex crate."""
        return cls("regex", pattern)

    @property
    def is_json(self) -> bool:
        """Whether answers are JSON."""
        return self.kind == "schema"

    @property
    def what(self) -> str:
        """What an answer is, in words: "valid JSON"."""
        return {"schema": "valid JSON", "choices": "one of the choices", "regex": "what the pattern describes"}[
            self.kind
        ]

    @property
    def properties(self) -> tuple[str, ...]:
        """The names that a schema of an object lists, in order."""
        properties = json.loads(self.source).get("properties") if self.is_json else None
        return tuple(properties) if isinstance(properties, dict) else ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The choices."""
        return tuple(json.loads(self.source)) if self.kind == "choices" else ()
