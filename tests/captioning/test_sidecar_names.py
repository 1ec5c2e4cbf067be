"""No two pictures may share a caption file."""

from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.sidecars import SidecarPaths


def places(*names: str) -> dict[str, str]:
    entries = [ImageEntry(name, name) for name in names]
    path_of = SidecarPaths(entries, ".txt")
    return {entry.path: path_of(entry) for entry in entries}


def test_a_caption_has_its_picture_s_name() -> None:
    assert places("d/a.jpg", "d/b.tar.png") == {"d/a.jpg": "d/a.txt", "d/b.tar.png": "d/b.tar.txt"}


def test_pictures_that_would_share_one_have_their_whole_names() -> None:
    names = ("a.jpg", "A.png", "b.png", "sub/a.png")
    assert list(places(*names).values()) == ["a.jpg.txt", "A.png.txt", "b.txt", "sub/a.txt"]
    assert SidecarPaths([ImageEntry(n, n) for n in names], ".txt").collided == {"a.jpg", "A.png"}


def test_a_whole_name_may_be_in_the_way_of_a_third() -> None:
    assert len(set(places("a.jpg", "a.png", "a.jpg.png").values())) == 3


STEMS = st.sampled_from(["a", "A", "b", "a.jpg", "a.png", "a.jpg.png"])


@given(st.sets(st.tuples(STEMS, st.sampled_from([".jpg", ".png", ".webp"])), min_size=1))
def test_no_two_pictures_share_a_file(parts: set[tuple[str, str]]) -> None:
    names = [stem + ending for stem, ending in parts]
    found = places(*names)
    # Names that differ in case alone are one name on some disks, and then the pictures are one, too.
    assert len({place.casefold() for place in found.values()}) == len({name.casefold() for name in names})
