"""What both dialects say of tokens: their bytes, their log-probabilities, and why an answer ended."""

from typing import Any

from mllama_cli.core.events import Token
from mllama_cli.processing.tokenizer import MllamaTokenizer

FINISH_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "cancelled": "stop"}

MIN_LOGPROB = -9999.0
"""In place of minus infinity, which JSON cannot say; vLLM's value."""


def token_entry(tokenizer: MllamaTokenizer, token: Token) -> dict[str, Any]:
    """Return a token with its log-probability and those of its alternatives, as chats of both dialects list it."""
    top = [_entry(tokenizer, id_, logprob) for id_, logprob in token.top_logprobs]
    return {**_entry(tokenizer, token.id, token.logprob or 0.0), "top_logprobs": top}


def token_text(tokenizer: MllamaTokenizer, id_: int) -> str:
    """Return the text of a token; incomplete characters become U+FFFD."""
    return _token_bytes(tokenizer, id_).decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can say."""
    return max(logprob, MIN_LOGPROB)


def _entry(tokenizer: MllamaTokenizer, id_: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, id_),
        "logprob": finite(logprob),
        "bytes": list(_token_bytes(tokenizer, id_)),
    }


def _token_bytes(tokenizer: MllamaTokenizer, id_: int) -> bytes:
    """Return the bytes of a token; of a special one, those of its name."""
    return tokenizer.token_bytes(id_) or (tokenizer.backend.id_to_token(id_) or "").encode()
