"""What the user set once for all: the config file, found and read. Flags go before it, so does the environment."""

import os
from pathlib import Path

from mllama_cli.core.settings import Settings, read_settings


def config_path() -> Path:
    """MLLAMA_CONFIG, else config.toml in the user's config folder. May not exist."""
    if given := os.environ.get("MLLAMA_CONFIG"):
        return Path(os.path.expanduser(given))  # noqa: PTH111 - unlike Path's, it leaves a ~ of nobody's as it is
    from mllama_cli.system.paths import config_folder

    return config_folder() / "config.toml"


def preferences() -> Settings:
    """The settings of the config file. Raises UsageError for a file that cannot be understood."""
    return read_settings(config_path())
