"""Names of modules as compressed-tensors' configs write them: exact ones, ``re:`` expressions, names of classes."""

import re
from collections.abc import Iterable

from mllama_cli.checkpoint.names import canonical, hub_name
from mllama_cli.core.errors import CheckpointError


def matches(name: str, pattern: str) -> bool:
    """Whether a module's name, in either key layout, is meant. An expression must match from the name's beginning.

    Which layout a config speaks of depends on the version of transformers that its author had.
    """
    weight = f"{name}.weight"
    names = [change(weight).removesuffix(".weight") for change in (str, canonical, hub_name)]
    if not pattern.startswith("re:"):
        return pattern in names
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise CheckpointError(f"config.json: {pattern!r} is no regular expression: {error}") from error
    return any(expression.match(each) for each in names)


def patterns_of(names: Iterable[str]) -> list[str]:
    """Expressions that match these modules of a Mllama network in every layout, and nothing else: no parent, no twin.

    One for each kind of module, with the numbers of its layers. Expressions of disjoint sets never match the same
    name: where two do, tools differ in which one counts.
    """
    layers: dict[tuple[str, str], list[str]] = {}
    single = []
    for name in names:
        found = re.fullmatch(r"(.*)\.layers\.(\d+)\.(.*)", name)
        if found is None:
            single.append(f"re:(.*\\.)?{re.escape(name.rpartition('.')[2])}$")
        else:
            # Above the layers stand `model` or `language_model`, `transformer` or `global_transformer`.
            tower = found[1].rpartition(".")[2]
            above = f"vision_model\\.{tower}" if "vision_model" in found[1] else "model"
            layers.setdefault((above, found[3]), []).append(found[2])
    kinds = [
        f"re:.*{above}\\.layers\\.({'|'.join(numbers)})\\.{re.escape(kind)}$"
        for (above, kind), numbers in layers.items()
    ]
    return [*kinds, *single]
