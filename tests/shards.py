"""Make tars and parquet files of drawings with known content, some of them damaged."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.drawings import drawing

Members = Mapping[str, bytes]


def write_tar(path: Path, members: Members | list[tuple[str, bytes]]) -> Path:
    """Write a tar with these members, in order; a list may name one twice."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(number: int) -> dict[str, bytes]:
    """Return the members of a drawing's sample, as img2dataset writes them."""
    key = f"{number:06d}"
    about = {"key": key, "caption": f"drawing {number}", "url": None}
    return {
        f"{key}.png": drawing(number)[0],
        f"{key}.txt": f"drawing {number}".encode(),
        f"{key}.json": json.dumps(about).encode(),
    }


def make_shards(folder: Path, tars: int, parquets: int, each: int) -> dict[str, str | None]:
    """Write ``00000.tar`` ... and ``p0.parquet`` ... with ``each`` drawings in each file.

    The second tar has a member that is no picture, the third one that has no picture and a key that is there twice, and
    the last is cut off in the midst of a picture. Return what each key shows, or None if it cannot be captioned.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, str | None] = {}
    number = 0
    for index in range(tars):
        members: list[tuple[str, bytes]] = []
        for _ in range(each):
            members += sample(number).items()
            facts[f"{number:06d}"] = drawing(number)[1]
            number += 1
        if index == 1:
            members += [("bad.png", b"<html>404</html>"), ("bad.txt", b"not there")]
            facts["bad"] = None
        if index == 2:
            members += [("lonely.txt", b"a text without a picture"), *sample(number - 1).items()]
            facts["lonely"] = None
            members[-3:] = [(f"{members[0][0]}", members[0][1])]
        path = write_tar(folder / f"{index:05d}.tar", members)
        if index == tars - 1 and index > 2:
            data = path.read_bytes()
            last = data.rindex(f"{number - 1:06d}.png".encode())
            path.write_bytes(data[: last + 700])
            facts[f"{number - 1:06d}"] = None
    for index in range(parquets):
        keys = [f"p{index}-{row}" for row in range(each)]
        pictures = [drawing(number + row) for row in range(each)]
        facts |= dict(zip(keys, [answer for _, answer in pictures], strict=True))
        number += each
        images = [{"bytes": data, "path": f"{key}.png"} for key, (data, _) in zip(keys, pictures, strict=True)]
        pq.write_table(pa.table({"key": keys, "image": images, "label": keys}), folder / f"p{index}.parquet")
    return facts
