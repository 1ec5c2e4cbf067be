"""Which caption file belongs to which picture."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mllama_cli.captioning.listing import Picture


def sidecar_paths(pictures: Sequence[Picture], extension: str) -> tuple[Mapping[str, str], int]:
    """Caption file of each picture, by the picture's path, and how many pictures' names collided.

    ``photo.jpg`` has ``photo.txt``. Where several pictures would share one file (photo.jpg and photo.png; on some disks
    Photo.jpg too), each of them has its whole name in front: ``photo.jpg.txt``, ``photo.png.txt``.
    """
    whole: set[str] = set()
    while True:
        places: defaultdict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            places[_sidecar(picture.path, extension, whole=picture.path in whole).casefold()].append(picture.path)
        # A whole name may be another's place in turn (photo.jpg.txt is that of photo.jpg.png).
        shared = {path for paths in places.values() if len(paths) > 1 for path in paths} - whole
        if not shared:
            break
        whole |= shared
    return {p.path: _sidecar(p.path, extension, whole=p.path in whole) for p in pictures}, len(whole)


def _sidecar(path: str, extension: str, *, whole: bool) -> str:
    return (path if whole else os.path.splitext(path)[0]) + extension
