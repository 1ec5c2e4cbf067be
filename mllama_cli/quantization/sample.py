"""How badly a matrix takes to 4 bits, from a few of its rows."""

import torch

from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.errors import CheckpointError
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import Scheme

PLACES = 4
ROWS = 8  # of each place: 4 x 8 rows of 28672 weights are 1.8 MB, and their error is within some percent of the whole's


class Sampler:
    """Relative squared error, rounded to nearest, by a linear layer's name."""

    def __init__(self, slices: SliceReader, reader: CheckpointReader, scheme: Scheme) -> None:
        self._slices, self._reader, self._scheme = slices, reader, scheme

    def __call__(self, name: str) -> float:
        stored = self._reader.tensors[f"{name}.weight"]
        rows = stored.info.shape[0]
        starts = sorted({place * max(rows - ROWS, 0) // (PLACES - 1) for place in range(PLACES)})
        sample = torch.cat([self._slices.rows(stored, start, start + ROWS) for start in starts])
        try:
            rounded = quantize_matrix(sample, self._scheme.fitted(sample.shape[1]), "rtn")
        except NotFiniteError:
            raise not_finite(stored.stored_name, stored.file.name) from None
        return rounded.error / max(rounded.energy, 1e-30)


def not_finite(name: str, file: str) -> CheckpointError:
    return CheckpointError(f"{name} in {file} holds NaN or infinity", "The file is damaged: download or copy it again.")
