"""Check grammars, and compute which tokens they allow, with llguidance."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mllama_cli.core.errors import CheckpointError, MllamaError, UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llguidance import LLMatcher
    from torch import Tensor

    from mllama_cli.processing.tokenizer import MllamaTokenizer

MAX_SCHEMA_DEPTH = 64
"""Deepest nesting of a schema that is searched for the place of an error."""
COMPILED_GRAMMARS = 32
"""Grammars that stay compiled."""

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
    _source(grammar)


@lru_cache(maxsize=256)
def _source(grammar: Grammar) -> str:
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
        raise UsageError(f"{what}: {_reason(problem)}", hint)
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
    return UsageError(f"{named} cannot be enforced: {_reason(problem)}", "Change it, or leave it out.")


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


def _reason(problem: str) -> str:
    """Return llguidance's message, which may draw a picture of the place, on one line."""
    if error := re.search(r"error: (.+)", problem):
        return error[1]
    first = problem.split("\n", 1)[0]
    words = r"^at \d+\(\d+\): |invalid regex .* \(in regex\): | in regex /.*|\. Enable 'coerce_one_of.*"
    return re.sub(words, "", first).strip() or first


class GrammarTokenizer:
    """A model's vocabulary as llguidance needs it. Making one takes a second for a large vocabulary.

    Ids from ``vocab_size`` on, such as the image token's, have no logit, so that no answer has them.

    Raises CheckpointError if ``eos`` has no other.
    """

    def __init__(self, tokenizer: "MllamaTokenizer", vocab_size: int, eos: "Iterable[int]") -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        eos = sorted(id_ for id_ in eos if id_ < vocab_size)
        if not eos:
            raise CheckpointError(
                "This model has no token that ends an answer, so its answers cannot be held to a form",
                "Name one as eos_token_id in its generation_config.json.",
            )
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, eos[0]))
        self._tokenizer = LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=eos)
        self._compiled = lru_cache(maxsize=COMPILED_GRAMMARS)(self._compile)
        self._executor: Any = None

    def constraint(self, grammar: Grammar, beginning: str = "") -> "Constraint":
        """Return what holds one answer, which begins with ``beginning``, to a grammar. Raise UsageError."""
        state = self._compiled(grammar).deep_copy()
        if beginning and not state.consume_tokens(self._tokenizer.tokenize_str(beginning)):
            raise UsageError(
                f"The answer cannot begin with {shown(beginning)}: that does not fit what it must be",
                "Leave out the beginning, or change the schema, choices or pattern.",
            )
        return Constraint(self, state)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        from llguidance import LLMatcher

        compiled = LLMatcher(self._tokenizer, _source(grammar), log_level=0)
        if compiled.is_error():
            raise UsageError(f"The grammar cannot be enforced: {_reason(compiled.get_error())}", "Simplify it.")
        return compiled

    def write_masks(self, constraints: "Iterable[tuple[int, Constraint]]", masks: "Tensor") -> None:
        """Write which tokens each constraint allows next into its row of ``masks``.

        ``masks`` is int32 [rows, ceil(vocab_size / 32)], contiguous in host memory: 32 tokens to a word, lowest first.
        Where the text that follows is certain, that is its next token alone, though other tokens spell it too: so an
        answer is the same whether certain tokens are chosen one by one or fed together.
        """
        from llguidance import LLExecutor

        words = masks.numpy()
        states: list[tuple[LLMatcher, int]] = []
        for row, constraint in constraints:
            if forced := constraint.forced:
                words[row] = 0
                words[row, forced[0] // 32] = _BITS[forced[0] % 32]
            elif constraint.failed:
                words[row] = -1  # whatever is chosen is reported as an error
            else:
                states.append((constraint.state, row))
        rows, row_bytes = len(words), words.strides[0]
        if len(states) > 1:
            self._executor = self._executor or LLExecutor()
            self._executor.unsafe_compute_mask_ptr(states, masks.data_ptr(), row_bytes, rows)
        else:
            for state, row in states:
                state.unsafe_compute_mask_ptr(masks.data_ptr() + row * row_bytes, row_bytes)


class _Vocabulary:
    """What llguidance asks of a tokenizer. Special tokens in a text are text, as everywhere in a message."""

    bos_token_id = None

    def __init__(self, tokenizer: "MllamaTokenizer", size: int, eos: int) -> None:
        special = {id_: name.encode() for name, id_ in tokenizer.special_ids.items() if id_ < size}
        self.tokens = [special.get(id_) or tokenizer.token_bytes(id_) for id_ in range(size)]
        self.special_token_ids = [*special]
        self.eos_token_id = eos
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8"))


_BITS = [1 << bit for bit in range(31)] + [-(1 << 31)]
"""The bits of an int32."""


class Constraint:
    """Follows one answer through its grammar."""

    def __init__(self, vocabulary: GrammarTokenizer, state: "LLMatcher") -> None:
        self.vocabulary, self.state = vocabulary, state
        self._forced: list[int] = []

    @property
    def forced(self) -> list[int]:
        """The next tokens, as far as the grammar leaves no choice of text."""
        if not self._forced and not self.state.is_stopped():
            self._forced = self.state.compute_ff_tokens()
        return self._forced

    @property
    def failed(self) -> bool:
        """Whether the grammar became too complex to follow."""
        return bool(self.state.is_error())

    @property
    def complete(self) -> bool:
        """Whether the answer so far is a whole one."""
        return bool(self.state.is_accepting()) and not self.failed

    def push(self, token: int) -> None:
        """Take the chosen token. Raise MllamaError if the grammar cannot be followed any further."""
        self._forced = self._forced[1:] if self._forced[:1] == [token] else []
        if not self.state.is_stopped():
            self.state.consume_token(token)
        if self.failed:
            raise MllamaError(
                f"The answer cannot be held to its grammar any longer: {_reason(self.state.get_error())}",
                "Simplify the schema or the pattern.",
            )
