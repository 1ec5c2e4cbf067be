"""Repositories of the released models' weights: Meta's own, which are gated, open copies, and smaller ones."""

from dataclasses import dataclass

from mllama_cli.hub.catalog import MODEL_ALIASES


@dataclass(frozen=True)
class Variant:
    """One repository of a released model, by its alias."""

    alias: str
    repo: str

    @property
    def gated(self) -> bool:
        """Return whether access must be requested."""
        return self.repo.startswith("meta-llama/")


def variants(repo: str) -> list[Variant]:
    """Return all variants of the instruction-tuned model that a repository holds, itself included; else none.

    >>> [each.alias for each in variants("meta-llama/Llama-3.2-90B-Vision-Instruct")]
    ['90b', '90b-open', '90b-fp8', '90b-nf4']
    """
    size = next((alias.partition("-")[0] for alias, id_ in MODEL_ALIASES.items() if id_ == repo), "")
    found = [Variant(alias, id_) for alias, id_ in MODEL_ALIASES.items() if alias.partition("-")[0] == size]
    found = [each for each in found if not each.alias.endswith("-base")]
    return found if repo in [each.repo for each in found] else []


def without_gate(repo: str) -> str:
    """Return a hint that names what needs no access to a gated repository; empty if nothing is known."""
    from mllama_cli.hub.ollama_store import PREFIX, importable

    known = variants(repo)
    open_ = [each.alias for each in known if not each.gated]
    if not open_ or repo not in [each.repo for each in known if each.gated]:
        return ""
    is_large = open_[0].startswith("90b")
    blobs = [each.name for each in importable() if ("90b" in each.name) == is_large]
    here = f", or import what ollama has here: `mllama import {PREFIX}{blobs[0]}`" if blobs else ""
    return (
        f" Without a request, under the same licence: `mllama download {open_[0]}` has the same weights, "
        f"{' and '.join(open_[1:])} are smaller{here}."
    )
