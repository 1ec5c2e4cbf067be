"""The user's folders for this program's files, by each system's convention."""

import os
from pathlib import Path

from mllama_cli.system.files import expanded


def data_folder() -> Path:
    """Return the folder of models and saved chats: MLLAMA_HOME, else ``mllama`` in the user's data folder.

    None of these folders need exist yet.
    """
    home = os.environ.get("MLLAMA_HOME")
    if home:
        return expanded(home)
    import platformdirs

    return Path(platformdirs.user_data_dir("mllama", appauthor=False))


def built_in_model() -> Path:
    """Return the checkpoint folder of the built-in model."""
    return Path(__file__).parents[1] / "sketch" / "weights"


def config_folder() -> Path:
    """Return the folder of the user's config file."""
    import platformdirs

    return Path(platformdirs.user_config_dir("mllama", appauthor=False))


def state_folder() -> Path:
    """Return the folder of state that is kept between runs, such as the line history."""
    import platformdirs

    return Path(platformdirs.user_state_dir("mllama", appauthor=False))


def cache_folder() -> Path:
    """Return the folder of files that can be made again at any time, such as compiled kernels."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("mllama", appauthor=False))
