"""The user's folders, where this program keeps its files. Each system has its own convention; platformdirs knows it."""

import os
from pathlib import Path


def data_folder() -> Path:
    """Return the folder of models and saved chats: MLLAMA_HOME, else ``mllama`` in the user's data folder.

    It may not exist yet; likewise the others.
    """
    home = os.environ.get("MLLAMA_HOME")
    if home:
        return Path(os.path.expanduser(home))  # noqa: PTH111 - unlike Path's, it leaves the ~ of an unknown user as it is
    import platformdirs

    return Path(platformdirs.user_data_dir("mllama", appauthor=False))


def built_in_model() -> Path:
    """Return the checkpoint folder of the model that is part of this package."""
    return Path(__file__).parents[1] / "sketch" / "weights"


def config_folder() -> Path:
    """Return the folder of the settings that the user writes."""
    import platformdirs

    return Path(platformdirs.user_config_dir("mllama", appauthor=False))


def state_folder() -> Path:
    """Return the folder of what the program remembers of its use, such as the lines typed."""
    import platformdirs

    return Path(platformdirs.user_state_dir("mllama", appauthor=False))


def cache_folder() -> Path:
    """Return the folder of what can be made again at any time, such as compiled kernels."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("mllama", appauthor=False))
