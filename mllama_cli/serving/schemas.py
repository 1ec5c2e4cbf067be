"""Schemas in requests."""

from collections.abc import Mapping
from typing import Any

from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.processing.supported_grammars import require_supported
from mllama_cli.serving.errors import FieldError


def enforceable(schema: Mapping[str, Any], field: str) -> Grammar:
    """Return the grammar of the schema in a field. Raise FieldError if it cannot be enforced."""
    try:
        grammar = Grammar.schema(schema)
        require_supported(grammar)
    except UsageError as error:
        raise FieldError(field, f"{field}: {error.message}", error.hint) from error
    return grammar
