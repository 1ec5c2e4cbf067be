"""Compute which tokens a grammar allows, with llguidance."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mllama_cli.core.errors import CheckpointError, MllamaError, UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.text import shown
from mllama_cli.processing.supported_grammars import reason_of, source_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llguidance import LLMatcher
    from torch import Tensor

    from mllama_cli.processing.tokenizer import MllamaTokenizer

COMPILED_GRAMMARS = 32
"""Grammars that stay compiled."""


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

        compiled = LLMatcher(self._tokenizer, source_of(grammar), log_level=0)
        if compiled.is_error():
            raise UsageError(f"The grammar cannot be enforced: {reason_of(compiled.get_error())}", "Simplify it.")
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
                f"The answer cannot be held to its grammar any longer: {reason_of(self.state.get_error())}",
                "Simplify the schema or the pattern.",
            )
