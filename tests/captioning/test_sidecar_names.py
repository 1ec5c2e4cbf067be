"""No two pictures may share a caption file."""

from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.sidecars import sidecar_paths


def places(*names: str) -> dict[str, str]:
    found, _ = sidecar_paths([ImageEntry(name, name) for name in names], ".txt")
    return dict(found)


def test_a_caption_has_its_picture_s_name() -> None:
    assert places("d/a.jpg", "d/b.tar.png") == {"d/a.jpg": "d/a.txt", "d/b.tar.png": "d/b.tar.txt"}


def test_pictures_that_would_share_one_have_their_whole_names() -> None:
    found, count = sidecar_paths([ImageEntry(n, n) for n in ("a.jpg", "A.png", "b.png", "sub/a.png")], ".txt")
    assert found == {"a.jpg": "a.jpg.txt", "A.png": "A.png.txt", "b.png": "b.txt", "sub/a.png": "sub/a.txt"}
    assert count == 2


def test_a_whole_name_may_be_in_the_way_of_a_third() -> None:
    assert len(set(places("a.jpg", "a.png", "a.jpg.png").values())) == 3


STEMS = st.sampled_from(["a", "A", "b", "a.jpg", "a.png", "a.jpg.png"])


@given(st.sets(st.tuples(STEMS, st.sampled_from([".jpg", ".png", ".webp"])), min_size=1))
def test_no_two_pictures_share_a_file(parts: set[tuple[str, str]]) -> None:
    names = [stem + ending for stem, ending in parts]
    found = places(*names)
    # Names that differ in case alone are one name on some disks, and then the pictures are one, too.
    assert len({place.casefold() for place in found.values()}) == len({name.casefold() for name in names})
