"""Which store a path or an address is in."""

from mllama_cli.captioning.shards.remote_store import RemoteStore
from mllama_cli.captioning.shards.store import LocalStore, Store, scheme_of


def store_of(path: str) -> Store:
    """Return the store of a path or an address. Raise UsageError for one that is not known, or needs a package."""
    scheme = scheme_of(path)
    return RemoteStore.of(scheme) if scheme else LocalStore()
