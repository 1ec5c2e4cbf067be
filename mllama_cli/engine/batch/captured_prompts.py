"""Read short prompts by captured passes."""

from collections.abc import Sequence

from torch import Tensor

from mllama_cli.engine.batch.prefill import Prompt, PromptReader
from mllama_cli.engine.cuda.leading_passes import make_passes
from mllama_cli.engine.cuda.pass_shapes import PASS_TOKENS, fits
from mllama_cli.engine.cuda.passes import Piece
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache


class CapturedPromptReader(PromptReader):
    """Read up to 256 new tokens of one or several prompts by replaying a graph, which takes the host no time."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._passes = make_passes(
            model.network, model.dtype, model.device, model.team, float8=model.image_kv is not None
        )

    def prepare(self) -> bool:
        """Capture a graph that is missing."""
        missing = next((shape for shape in self._passes.shapes if shape not in self._passes), None)
        if missing is not None:
            self._passes.capture(missing)
        return missing is not None or super().prepare()

    def reads_at_once(self, prompts: Sequence[Prompt]) -> bool:
        return super().reads_at_once(prompts) or _fits(prompts)

    def fits(self, prompts: Sequence[Prompt], most: int) -> bool:
        # With more, a GPU that has other work queued meanwhile loses nothing while the host launches operations.
        return _fits(prompts) if most <= PASS_TOKENS[-1] else super().fits(prompts, most)

    def read_together(self, prompts: Sequence[Prompt], images: ImageCache) -> Tensor:
        if not _fits(prompts):
            return super().read_together(prompts, images)
        pieces = [Piece(prompt.new, prompt.cache, prompt.cross(images), prompt.spans) for prompt in prompts]
        return self._passes.run(pieces)


def _fits(prompts: Sequence[Prompt]) -> bool:
    return fits([(prompt.fed, len(prompt.new)) for prompt in prompts])
