"""List a repository's files as the Hub declares them, each value checked: a mirror or proxy may answer anything."""

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from mllama_cli.core.errors import DownloadError
from mllama_cli.hub.client import get_bytes, hub_url
from mllama_cli.system.json_file import MAX_JSON_BYTES, parse_object

_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_MAX_FILE_BYTES = 2**50
_HINT = "Check HF_ENDPOINT, proxy and firewall."


def hub_listing(repo: str, revision: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """Return the commit of a revision, and the size in bytes and the hash of each of its files by name.

    Raise DownloadError if the answer is not what a Hub gives, or huggingface_hub's and the web client's errors.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    validate_repo_id(repo)
    url = f"{hub_url()}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    answer = parse_object(get_bytes(url, MAX_JSON_BYTES), _no_hub("its answer"), error=DownloadError, hint=_HINT)
    commit = _checked(answer.get("sha"), _is_hash, "sha")
    siblings = _checked(answer.get("siblings"), lambda value: isinstance(value, list), "siblings")
    return commit, dict(_file(sibling) for sibling in siblings)


def _file(sibling: Any) -> tuple[str, tuple[int, str]]:
    sibling = _checked(sibling, lambda value: isinstance(value, dict), "siblings")
    name = _checked(sibling.get("rfilename"), _is_name, "rfilename")
    lfs = _checked(sibling.get("lfs"), lambda value: value is None or isinstance(value, dict), "lfs") or {}
    etag = _checked(lfs.get("sha256") or sibling.get("blobId"), _is_hash, "blobId")
    return name, (_checked(lfs.get("size") or sibling.get("size"), _is_size, "size"), etag)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_FILE_BYTES


def _is_name(value: Any) -> bool:
    """Return whether a name stays inside the snapshot's folder on any system."""
    if not isinstance(value, str) or not value.isprintable() or any(character in value for character in "\\:"):
        return False
    return bool(value) and not value.startswith("/") and ".." not in PurePosixPath(value).parts


def _checked(value: Any, check: Any, key: str) -> Any:
    if not check(value):
        raise DownloadError(_no_hub(f"{key} is {str(value)[:60]!r}"), _HINT)
    return value


def _no_hub(why: str) -> str:
    return f"{hub_url()} does not answer like a Hugging Face Hub: {why}"
