"""Options that say what an answer must be. Imported when the program starts, so it imports nothing heavy."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated

import typer

from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import Grammar

grammar_option = partial(typer.Option, rich_help_panel="Form of the answer")


@dataclass(frozen=True)
class GrammarOptions:
    """At most one of them. Raise UsageError for a schema or pattern that cannot be enforced."""

    schema: Annotated[
        str | None,
        grammar_option(
            metavar="SCHEMA",
            help="JSON by a schema: a file, JSON, or names with types ('name str, total float').",
        ),
    ] = None
    json_mode: Annotated[bool, grammar_option("--json-mode", help="Any JSON object.")] = False
    choice: Annotated[
        list[str] | None, grammar_option(metavar="TEXT", help="Exactly this, or another --choice (repeatable).")
    ] = None
    regex: Annotated[
        str | None, grammar_option(metavar="PATTERN", help="Text that matches a pattern (Rust's syntax) as a whole.")
    ] = None

    def __post_init__(self) -> None:
        given = [
            name for name in ("schema", "json_mode", "choice", "regex") if getattr(self, name) not in (None, False, [])
        ]
        if len(given) > 1:
            flags = [f"--{name.replace('_', '-')}" for name in given[:2]]
            raise UsageError(f"{' and '.join(flags)} both say what the answer must be", "Leave one of them out.")
        _ = self.grammar

    @cached_property
    def grammar(self) -> Grammar | None:
        """What the answer must be, if any of the options says it."""
        if self.schema is not None:
            from mllama_cli.processing.schema_text import read_schema

            return read_schema(self.schema)
        if self.json_mode:
            return Grammar.json_object()
        if self.regex is None and not self.choice:
            return None
        from mllama_cli.processing.supported_grammars import require_supported

        grammar = Grammar.regex(self.regex) if self.regex is not None else Grammar.choices(self.choice or [])
        require_supported(grammar)
        return grammar

    @property
    def is_json(self) -> bool:
        return self.grammar is not None and self.grammar.is_json
