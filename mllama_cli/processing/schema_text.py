"""Read a schema as people write it: a file, JSON, or the short form."""

from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import SHORT_FORM, Grammar
from mllama_cli.processing.supported_grammars import require_supported
from mllama_cli.system.files import expanded, is_file
from mllama_cli.system.json_file import parse_object
from mllama_cli.system.text_file import read_file

MAX_SCHEMA_BYTES = 2**20


def read_schema(text: str) -> Grammar:
    """Return the grammar of a schema: its JSON, the path of a file with it, or the short form.

    Raise UsageError if it cannot be read or cannot be enforced.
    """
    text = text.strip()
    hint = f"Expected: a JSON schema, a file with one, or the short form: {SHORT_FORM}"
    if text.startswith(("{", "[")):
        grammar = Grammar.schema(parse_object(text.encode(), "The schema", error=UsageError, hint=hint))
    elif text.lower().endswith(".json") or (text and is_file(expanded(text))):
        data = read_file(expanded(text), limit=MAX_SCHEMA_BYTES)
        grammar = Grammar.schema(parse_object(data, text, error=UsageError, hint=hint))
    else:
        grammar = Grammar.fields(text)
    require_supported(grammar)
    return grammar
