"""What is asked about a picture, and what becomes of the answer."""

import pytest

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.postprocess import Postprocess, without_opening
from mllama_cli.captioning.prompts import DEFAULT_PROMPT, STYLES, PromptTemplate, as_tags
from mllama_cli.core.errors import UsageError

ENTRY = ImageEntry("holiday/beach 1.jpg", "beach 1.jpg")


def test_variables_are_filled_in() -> None:
    prompt = PromptTemplate("{name} {stem} {folder}: {existing} ({tags})")
    assert prompt.reads_existing
    assert (
        prompt.fill(ENTRY, "a dog, sand,\na dog\n") == "beach 1.jpg beach 1 holiday: a dog, sand,\na dog (a dog, sand)"
    )


def test_braces_that_are_no_variable_mean_themselves() -> None:
    prompt = PromptTemplate('Answer as JSON: {"a": 1} {} { stem }')
    assert prompt.fill(ENTRY) == prompt.text
    assert not prompt.reads_existing


def test_a_misspelt_variable_and_an_empty_prompt_are_errors() -> None:
    with pytest.raises(UsageError, match=r"\{steam\}"):
        PromptTemplate("{steam}")
    with pytest.raises(UsageError, match="empty"):
        PromptTemplate(" ")


def test_ready_prompts_have_no_variables() -> None:
    for text in (DEFAULT_PROMPT, *STYLES.values()):
        assert PromptTemplate(text).fill(ENTRY) == text


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("The image shows a dog.", "A dog."),
        ("This photograph depicts two cats on a sofa.", "Two cats on a sofa."),
        ("In this image, we can see a bridge.", "A bridge."),
        ("Here is a caption for the image:\n\nA red car.", "A red car."),
        ('Here\'s a description: "A red car."', "A red car."),
        ("Sure! The picture shows a bird.", "A bird."),
        ("I see 3 red circles.", "3 red circles."),
        ("A photo of a dog.", "A dog."),
        ("Caption: Sunset", "Sunset"),
        ("The image", "The image"),
        ("A dog in the image shows its teeth.", "A dog in the image shows its teeth."),
        ("The shows are over.", "The shows are over."),
        ("", ""),
    ],
)
def test_openings_that_say_nothing_are_cut(answer: str, caption: str) -> None:
    assert without_opening(answer) == caption


def test_the_caption_is_bare_unless_asked_otherwise() -> None:
    assert Postprocess()("  The image shows a dog.\n\n") == "The image shows a dog."
    assert Postprocess(strip=True, prefix="ohwx, ", suffix=" --")("The image shows a dog.") == "ohwx, A dog. --"
    assert Postprocess(tags=True)("- dog\n- beach\n- Dog\n3. ball.") == "dog, beach, ball"


def test_tags() -> None:
    assert as_tags("") == []
    assert as_tags("one; two, ONE\n* three-wheeler") == ["one", "two", "three-wheeler"]
