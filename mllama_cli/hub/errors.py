"""What went wrong between this machine and the hub, as one line and what to do about it."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mllama_cli.core.errors import DownloadError, MllamaError, ModelNotFoundError
from mllama_cli.core.text import suggest
from mllama_cli.hub.catalog import ALIASES
from mllama_cli.system.files import is_disk_full

AGAIN = "What has arrived is kept: run the same command again to go on."
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def hub_url() -> str:
    """The hub that HF_ENDPOINT names, else huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def client_error() -> type[Exception]:
    """What the web client raises: of httpx or httpx2, whichever huggingface_hub builds its own error on."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


def translate(error: Exception, repo: str, revision: str) -> MllamaError | None:
    """Our error for one of huggingface_hub's, of its web client's, or of the disk's. None: not a known failure."""
    from huggingface_hub import errors

    if isinstance(error, MllamaError):
        return error
    # huggingface_hub wraps what happened during its first look at a file in "not found in the local cache".
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return translate(error.__cause__, repo, revision)
    if isinstance(error, errors.HFValidationError):
        return ModelNotFoundError(f"{repo!r} is no hub id", _near(repo))
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(f"HF_HUB_OFFLINE is set, so {repo} cannot be fetched", "Unset it and try again.")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, repo, revision)
    if isinstance(error, client_error()):
        return _unreachable(error)
    if isinstance(error, UnicodeEncodeError):
        return DownloadError(
            "The token holds a character that no token has", "Look at HF_TOKEN, or `hf auth login` anew."
        )
    if isinstance(error, (errors.FileMetadataError, ValueError)):
        return DownloadError(
            f"{hub_url()} does not answer as a Hugging Face hub does", "Check HF_ENDPOINT, proxy and firewall."
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
                f"Ask for it at {page}, wait for the confirmation, then run the same command again.",
            )
        return DownloadError(
            f"{repo} is only for people who have asked for access ({status})", f"Ask at {page}, then {LOG_IN}."
        )
    if isinstance(error, errors.DisabledRepoError):
        return DownloadError(f"The hub has disabled {repo}", f"See {page}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if has_token else f" If it is private, {LOG_IN}."
        return ModelNotFoundError(f"{hub_url()} has no model {repo}, or it is private", _near(repo) + private)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"{repo} has no revision {revision!r}", f"Branches, tags and commits are listed at {page}/commits."
        )
    if status == 401 and not has_token:
        return DownloadError(f"The hub gives {repo} only to people who are logged in ({status})", f"First {LOG_IN}.")
    if status == 401:
        return DownloadError(f"The hub refuses your token ({status})", f"It may have expired: {LOG_IN}.")
    if status == 403:
        return DownloadError(
            f"Your token may not read {repo} ({status})",
            f"Ask for access at {page}, or let the token read gated repositories ({hub_url()}/settings/tokens).",
        )
    if status == 429:
        return DownloadError("The hub says that this machine asks too often (429)", f"Wait a few minutes. {AGAIN}")
    if status >= 500:
        return DownloadError(f"The hub has trouble of its own ({status})", f"Wait a little. {AGAIN}")
    return DownloadError(f"The hub answers {status} for {repo}", f"See {page}.")


def _unreachable(error: Exception) -> DownloadError:
    kind = type(error).__name__
    if kind in ("UnsupportedProtocol", "InvalidURL"):
        return DownloadError(f"{hub_url()!r} is no web address", "Unset HF_ENDPOINT, or begin it with https://.")
    if "Timeout" in kind and "Connect" not in kind:
        return DownloadError(f"{hub_url()} stopped answering", AGAIN)
    if "Connect" in kind or "Proxy" in kind:
        return DownloadError(f"{hub_url()} cannot be reached", f"Check the network and HF_ENDPOINT. {AGAIN}")
    return DownloadError(f"The connection to {hub_url()} broke ({kind})", AGAIN)


def _disk(error: OSError) -> DownloadError | None:
    if is_disk_full(error):
        return DownloadError(
            "The disk is full", f"Free some space (`mllama rm MODEL` frees a model's), or set HF_HOME. {AGAIN}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DownloadError(
            f"The cache cannot be written: {os.strerror(error.errno)}: {error.filename}",
            "Check who owns the folder, or set HF_HOME to one of yours.",
        )
    if isinstance(error, ConnectionError):
        return _unreachable(error)
    if error.errno is not None:
        return DownloadError(f"The cache cannot be written: {error.strerror}: {error.filename}", AGAIN)
    return None


def _near(repo: str) -> str:
    """The alias that may have been meant."""
    alias_of = {id_: alias for alias, id_ in ALIASES.items()}
    meant = suggest(repo, alias_of, cutoff=0.7, show=lambda id_: f"{alias_of[id_]} ({id_})")
    return meant.rstrip() or f"Known names: {', '.join(ALIASES)}."


@contextmanager
def quiet() -> Iterator[None]:
    """No word from huggingface_hub itself: what matters reaches the user as an error of ours."""
    import huggingface_hub  # noqa: F401  (sets its logger's level when first imported)

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def translated(repo: str, revision: str) -> Iterator[None]:
    """Raise our errors for what goes wrong inside."""
    try:
        yield
    except Exception as error:
        ours = translate(error, repo, revision)
        if ours is None:
            raise
        raise ours from error
