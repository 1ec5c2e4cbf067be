"""The user's folders: where this program keeps what outlives it. Each system has its own custom; platformdirs knows it.

A file of its own beside the rooms, as every room above the ground may need a place, and ``core`` is plain data.
"""

import os
from pathlib import Path


def data_folder() -> Path:
    """Models and saved chats: MLLAMA_HOME, else ``mllama`` in the user's data folder. May not exist yet."""
    home = os.environ.get("MLLAMA_HOME")
    if home:
        return Path(os.path.expanduser(home))  # noqa: PTH111 - unlike Path's, it leaves a ~ of nobody's as it is
    import platformdirs

    return Path(platformdirs.user_data_dir("mllama", appauthor=False))


def built_in_model() -> Path:
    """The checkpoint folder of the model that is part of this package."""
    return Path(__file__).parents[1] / "sketch" / "weights"


def config_folder() -> Path:
    """Settings that the user writes. May not exist yet."""
    import platformdirs

    return Path(platformdirs.user_config_dir("mllama", appauthor=False))


def state_folder() -> Path:
    """What the program remembers of its use, such as the lines typed. May not exist yet."""
    import platformdirs

    return Path(platformdirs.user_state_dir("mllama", appauthor=False))


def cache_folder() -> Path:
    """What can be made again at any time, such as compiled kernels. May not exist yet."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("mllama", appauthor=False))
