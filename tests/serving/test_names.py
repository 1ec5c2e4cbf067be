"""The names that a server answers to."""

import pytest

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import ModelNotFoundError
from mllama_cli.serving.names import ServedNames

CONFIG = MllamaConfig.from_dict({"model_type": "mllama"})
HUB_ID = "meta-llama/Llama-3.2-11B-Vision-Instruct"


@pytest.mark.parametrize("opened", ["11b", HUB_ID])
@pytest.mark.parametrize(
    "asked",
    ["11b", "11B", HUB_ID, "llama3.2-vision", "llama3.2-vision:latest", "llama3.2-vision:11b", "11b:latest",
     "llama3.2-vision:11b-instruct-q4_K_M"],
)  # fmt: skip
def test_a_released_model_has_its_alias_its_hub_id_and_ollamas_names(opened: str, asked: str) -> None:
    ServedNames(opened, CONFIG).require(asked)


@pytest.mark.parametrize("asked", ["90b", "llama3.2-vision:90b", "llama3.2-vision:", "gpt-4o", "latest", ""])
def test_other_names_are_not_found_and_the_list_is_given(asked: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ServedNames("11b", CONFIG).require(asked)
    assert HUB_ID in caught.value.hint


@pytest.mark.parametrize(
    ("opened", "main"),
    [("mllama-sketch", "sketch"), ("./mine/", "mine"), ("/models/11b-int4", "11b-int4"), (HUB_ID, "11b")],
)
def test_a_folder_is_called_by_its_last_name(opened: str, main: str) -> None:
    assert ServedNames(opened, CONFIG).main == main
