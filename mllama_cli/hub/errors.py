"""Translate errors of huggingface_hub, its web client and the disk into ours."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mllama_cli.core.errors import DownloadError, MllamaError, ModelNotFoundError
from mllama_cli.core.text import suggest
from mllama_cli.hub.catalog import MODEL_ALIASES
from mllama_cli.hub.client import client_error, hub_url, require_client
from mllama_cli.hub.variants import without_gate
from mllama_cli.system.files import is_disk_full

RESUME = "What has arrived is kept: run the same command again to resume."
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def translate(error: Exception, repo: str, revision: str) -> MllamaError | None:
    """Return our error for one of huggingface_hub, its web client or the disk; None for an unknown one."""
    from huggingface_hub import errors

    if isinstance(error, MllamaError):
        return error
    # huggingface_hub wraps errors of its first request for a file in "not found in the local cache".
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return translate(error.__cause__, repo, revision)
    if isinstance(error, errors.HFValidationError):
        return ModelNotFoundError(f"{repo!r} is not a Hub id", _near(repo))
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(f"HF_HUB_OFFLINE is set, so {repo} cannot be fetched", "Unset it and try again.")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, repo, revision)
    if isinstance(error, client_error()):
        return _unreachable(error)
    if isinstance(error, UnicodeEncodeError):
        return DownloadError(
            "The token contains a character that no token has", "Check HF_TOKEN, or run `hf auth login` again."
        )
    if isinstance(error, (errors.FileMetadataError, ValueError)):
        return DownloadError(
            f"{hub_url()} does not answer like a Hugging Face Hub", "Check HF_ENDPOINT, proxy and firewall."
        )
    if isinstance(error, OSError):
        return _disk(error)
    return None


def _refusal(error: Exception, repo: str, revision: str) -> MllamaError:
    from huggingface_hub import errors, get_token

    assert isinstance(error, errors.HfHubHTTPError)
    status, page = error.response.status_code, f"{hub_url()}/{repo}"
    has_token = get_token() is not None
    if isinstance(error, errors.GatedRepoError):
        if has_token:
            return DownloadError(
                f"Your account has no access to {repo} yet ({status})",
                f"Request it at {page}, wait for the confirmation, then run this again.{without_gate(repo)}",
            )
        return DownloadError(
            f"{repo} is gated: access must be requested ({status})",
            f"Request it at {page}, then {LOG_IN}.{without_gate(repo)}",
        )
    if isinstance(error, errors.DisabledRepoError):
        return DownloadError(f"The Hub has disabled {repo}", f"See {page}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if has_token else f" If it is private, {LOG_IN}."
        return ModelNotFoundError(f"{hub_url()} has no model {repo}, or it is private", _near(repo) + private)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"{repo} has no revision {revision!r}", f"Branches, tags and commits are listed at {page}/commits."
        )
    if status == 401 and not has_token:
        return DownloadError(f"{repo} needs a login ({status})", f"First {LOG_IN}.")
    if status == 401:
        return DownloadError(f"The Hub refuses your token ({status})", f"It may have expired: {LOG_IN}.")
    if status == 403:
        return DownloadError(
            f"Your token may not read {repo} ({status})",
            f"Request access at {page}, or let the token read gated repositories ({hub_url()}/settings/tokens).",
        )
    if status == 429:
        return DownloadError("Rate-limited by the Hub (429)", f"Wait a few minutes. {RESUME}")
    if status >= 500:
        return DownloadError(f"Hub server error ({status})", f"Wait a little. {RESUME}")
    return DownloadError(f"The Hub answers {status} for {repo}", f"See {page}.")


def _unreachable(error: Exception) -> DownloadError:
    kind = type(error).__name__
    if kind in ("UnsupportedProtocol", "InvalidURL"):
        return DownloadError(f"{hub_url()!r} is not a web address", "Unset HF_ENDPOINT, or begin it with https://.")
    if "Timeout" in kind and "Connect" not in kind:
        return DownloadError(f"{hub_url()} stopped answering", RESUME)
    if "Connect" in kind or "Proxy" in kind:
        return DownloadError(f"{hub_url()} cannot be reached", f"Check the network and HF_ENDPOINT. {RESUME}")
    return DownloadError(f"The connection to {hub_url()} broke ({kind})", RESUME)


def _disk(error: OSError) -> DownloadError | None:
    if is_disk_full(error):
        return DownloadError(
            "The disk is full", f"Free some space (`mllama rm MODEL` frees a model's), or set HF_HOME. {RESUME}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DownloadError(
            f"The cache cannot be written: {os.strerror(error.errno)}: {error.filename}",
            "Check who owns the folder, or set HF_HOME to one of yours.",
        )
    if isinstance(error, ConnectionError):
        return _unreachable(error)
    if error.errno is not None:
        return DownloadError(f"The cache cannot be written: {error.strerror}: {error.filename}", RESUME)
    return None


def _near(repo: str) -> str:
    """Return a hint that names similar aliases, else all."""
    alias_of = {id_: alias for alias, id_ in MODEL_ALIASES.items()}
    meant = suggest(repo, alias_of, cutoff=0.7, show=lambda id_: f"{alias_of[id_]} ({id_})")
    return meant.rstrip() or f"Known names: {', '.join(MODEL_ALIASES)}."


@contextmanager
def translated(repo: str, revision: str) -> Iterator[None]:
    """Raise the errors inside as ours."""
    require_client()
    try:
        yield
    except Exception as error:
        ours = translate(error, repo, revision)
        if ours is None:
            raise
        raise ours from error
