"""The table of forms, and the matrices in them among a checkpoint's tensors. What a layer is, is read off its tensors.

The lists of layers in quantization_config (ignore, llm_int8_skip_modules) are not used: they contain names of whatever
version of transformers their author had.
"""

from collections.abc import Mapping
from typing import Any

from mllama_cli.checkpoint.foreign import bitsandbytes, compressed, gptq
from mllama_cli.checkpoint.foreign.parts import Parts, Row
from mllama_cli.checkpoint.foreign.refused import refuse
from mllama_cli.checkpoint.stored import Form, StoredTensor, stored_matrix

ROWS: tuple[Row, ...] = (*bitsandbytes.ROWS, *compressed.ROWS, *gptq.ROWS)


def recognized(
    tensors: Mapping[str, StoredTensor], declared: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], dict[str, Form]]:
    """Return the tensors with each matrix in another tool's form as one StoredMatrix called ``MODULE.weight``.

    Matrices in our own packed layout keep their tensors; their forms come second, by module. ``declared`` is
    config.json's quantization_config. Raises CheckpointError for a form that is not supported, by its name, and for
    parts that are missing or do not fit one another.
    """
    refuse(tensors, declared)
    result, packed = dict(tensors), {}
    for name in tensors:
        for row in ROWS:
            marker = next((marker for marker in row.markers if name.endswith(marker)), None)
            if marker is None:
                continue
            module = name.removesuffix(marker)
            if module in packed or name not in result or any(module + end in tensors for end in row.unless):
                continue
            ends = [end for end in row.ends if module + end in tensors]
            parts = Parts(module, {end: tensors[module + end] for end in ends}, declared)
            form = row.recognize(parts)
            if form.ours:
                packed[module] = form
                continue
            for end in ends:
                del result[module + end]
            stored_name = parts.tensors[ends[0]].stored_name.removesuffix(ends[0]) + ".weight"
            result[f"{module}.weight"] = stored_matrix(stored_name, form, parts.tensors)
    return result, packed
