"""Sampling parameters: how tokens are chosen, and when an answer ends.

Each is declared once, here: range checks, flags, config keys, `/set` and help texts are derived from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mllama_cli.core.grammar import Grammar
from mllama_cli.core.parameter import declare, parameters_of

if TYPE_CHECKING:
    from mllama_cli.core.config import GenerationConfig

MAX_TOKENS = 2048
"""Default length limit of an answer, since a model may never stop by itself."""

MAX_LOGPROBS = 20
"""OpenAI's limit on the number of alternatives whose log-probabilities can be requested."""


@dataclass(frozen=True)
class Sampling:
    """The sampling of one answer. ``temperature`` 0 is greedy, ``top_k`` 0 means all tokens.

    The frequency and presence penalties count generated tokens only, as OpenAI's do; the repetition penalty counts the
    prompt too, as transformers' does. ``logit_bias`` maps token ids to what is added to their logits. ``logprobs``
    requests the log-probability of each chosen token and of that many of the likeliest ones; None requests none.
    ``grammar`` says what the whole answer must be: only tokens that it allows are chosen.
    Parameters without help are for library users only: they have no flag and no config key, and `/set` rejects them.
    """

    temperature: float = declare(
        0.0,
        "0 is greedy: always the likeliest token",
        lambda value: value >= 0,
        "be 0 or more",
        flags=("--temp",),
        aliases=("temp",),
    )
    top_p: float = declare(
        1.0,
        "keep the likeliest tokens that together reach this probability",
        lambda value: 0 < value <= 1,
        "be above 0 and at most 1",
        truncates=True,
    )
    top_k: int = declare(
        0,
        "keep this many of the likeliest tokens",
        lambda value: value >= 0,
        "be 0 (all tokens) or more",
        truncates=True,
    )
    min_p: float = declare(
        0.0,
        "drop tokens below this share of the likeliest one's probability",
        lambda value: 0 <= value <= 1,
        "be between 0 and 1",
        truncates=True,
    )
    repetition_penalty: float = declare(
        1.0,
        "above 1 makes repeating a token less likely",
        lambda value: value > 0,
        "be above 0",
        aliases=("repeat_penalty",),
    )
    frequency_penalty: float = declare(
        0.0,
        "above 0 makes a token less likely each time the answer uses it",
        lambda value: -2 <= value <= 2,
        "be from -2 to 2",
    )
    presence_penalty: float = declare(
        0.0,
        "above 0 makes a token less likely once the answer has used it",
        lambda value: -2 <= value <= 2,
        "be from -2 to 2",
    )
    logit_bias: Mapping[int, float] = declare(
        dict,
        check=lambda value: all(-100 <= bias <= 100 for bias in value.values()),
        must="add from -100 to 100 to each token's logit",
    )
    logprobs: int | None = declare(
        None,
        check=lambda value: value is None or 0 <= value <= MAX_LOGPROBS,
        must=f"be from 0 to {MAX_LOGPROBS}",
    )
    max_tokens: int = declare(
        MAX_TOKENS,
        f"longest answer, in tokens (default: {MAX_TOKENS}; of captions 64 to 512, by style)",
        lambda value: value >= 1,
        "be 1 or more",
        aliases=("num_predict", "max_new_tokens", "max_completion_tokens"),
    )
    seed: int | None = declare(
        None,
        "makes a sampled answer repeatable",
        lambda value: value is None or -(2**63) <= value < 2**64,
        "be from -2^63 to 2^64 - 1",
    )
    stop: tuple[str, ...] = declare(
        (), "end the answer before this text (repeatable)", all, "not contain an empty text"
    )
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, parameter in PARAMETERS.items():
            parameter.require(getattr(self, name), name.replace("_", "-").capitalize())

    @classmethod
    def from_defaults(cls, defaults: "GenerationConfig", **asked: Any) -> "Sampling":
        """Return the checkpoint's own defaults, overridden by what was ``asked`` for (None: not asked for).

        Asking for top-p, top-k or min-p turns sampling on even if the checkpoint's default is greedy.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        samples = defaults.do_sample or any(p.truncates for name, p in PARAMETERS.items() if name in given)
        own = {
            name: getattr(defaults, name)
            for name, parameter in PARAMETERS.items()
            if hasattr(defaults, name) and (defaults.do_sample or not parameter.truncates)
        }
        return cls(**{**own, **({} if samples else {"temperature": 0.0}), **given})


PARAMETERS = parameters_of(Sampling)
"""All parameters, in the order of help texts."""

SETTABLE = {name: parameter for name, parameter in PARAMETERS.items() if parameter.help}
"""The parameters that have a flag and a config key, and that `/set` accepts."""

_ALIASES = {alias: name for name, parameter in SETTABLE.items() for alias in parameter.aliases}


def parameter_name(name: str) -> str:
    """Return our name of a parameter that other tools may call differently.

    >>> parameter_name("num_predict"), parameter_name("top-p")
    ('max_tokens', 'top_p')
    """
    name = name.replace("-", "_")
    return _ALIASES.get(name, name)
