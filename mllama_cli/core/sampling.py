"""How an answer's tokens are chosen, and when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mllama_cli.core.config import GenerationConfig
from mllama_cli.core.errors import UsageError

MAX_TOKENS = 2048
"""Length of an answer where nothing else is asked for: a model that never stops must not run all night."""

MAX_LOGPROBS = 20
"""Alternatives whose log-probabilities can be asked for at most: OpenAI's limit."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop. ``temperature`` 0 is greedy, ``top_k`` 0 means all tokens.

    The frequency and presence penalties count generated tokens only, as OpenAI's do; the repetition penalty counts the
    prompt too, as transformers' does. ``logit_bias`` maps token ids to what is added to their logits. ``logprobs`` asks
    for the log-probability of each chosen token and of that many of the likeliest ones (None: none).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    max_tokens: int = MAX_TOKENS
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for ok, message in (
            (self.temperature >= 0, f"temperature must be 0 or more, not {self.temperature}"),
            (0 < self.top_p <= 1, f"top-p must be above 0 and at most 1, not {self.top_p}"),
            (self.top_k >= 0, f"top-k must be 0 (all tokens) or more, not {self.top_k}"),
            (0 <= self.min_p <= 1, f"min-p must be between 0 and 1, not {self.min_p}"),
            (self.repetition_penalty > 0, f"repetition-penalty must be above 0, not {self.repetition_penalty}"),
            (
                -2 <= self.frequency_penalty <= 2,
                f"frequency-penalty must be from -2 to 2, not {self.frequency_penalty}",
            ),
            (-2 <= self.presence_penalty <= 2, f"presence-penalty must be from -2 to 2, not {self.presence_penalty}"),
            (
                all(-100 <= bias <= 100 for bias in self.logit_bias.values()),
                "logit-bias must add from -100 to 100 to each token's logit",
            ),
            (
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                f"logprobs must be from 0 to {MAX_LOGPROBS}, not {self.logprobs}",
            ),
            (self.max_tokens >= 1, f"max-tokens must be 1 or more, not {self.max_tokens}"),
            (all(self.stop), "a stop string must not be empty"),
        ):
            if not ok:
                raise UsageError(message[0].upper() + message[1:])

    @classmethod
    def from_defaults(cls, defaults: GenerationConfig, **asked: Any) -> "Sampling":
        """The checkpoint's own defaults, overridden by what was ``asked`` (None means not asked).

        Asking for top-p, top-k or min-p alone turns sampling on, also where the checkpoint's default is greedy.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        samples = defaults.do_sample or any(name in given for name in ("top_p", "top_k", "min_p"))
        own = cls(
            temperature=defaults.temperature if samples else 0.0,
            top_p=defaults.top_p if defaults.do_sample else 1.0,
            top_k=defaults.top_k if defaults.do_sample else 0,
            min_p=defaults.min_p if defaults.do_sample else 0.0,
            repetition_penalty=defaults.repetition_penalty,
        )
        return replace(own, **given)
