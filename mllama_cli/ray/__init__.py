"""Caption pictures on a Ray cluster: ``Captioner`` for your own pipeline, ``pipeline`` for `mllama caption --ray`."""

from mllama_cli.ray.captioner import Captioner

__all__ = ["Captioner"]
