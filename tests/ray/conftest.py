"""One Ray for all tests, since it takes ten seconds to start."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield the package, connected to a Ray of two CPUs, whose actors see no settings or models of the user."""
    ray = pytest.importorskip("ray", reason="ray is not installed (the extra peers)")
    home = tmp_path_factory.mktemp("ray")
    names = ("MLLAMA_HOME", "MLLAMA_CONFIG", "HF_HUB_CACHE", "OLLAMA_MODELS", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, str(home / name.lower()))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2,
            object_store_memory=100_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    yield ray
    ray.shutdown()
