"""Run the programs of examples/ that use Ray with the built-in model."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mllama_cli import load
from tests.docs.test_examples import DATA, run_program
from tests.serving.running import serving


def address_of(ray: Any) -> str:
    """Return where a program finds the Ray that runs here, which ``ray.init()`` reads from RAY_ADDRESS."""
    return str(ray.get_runtime_context().gcs_address)


@pytest.mark.slow
def test_ray_data(ray: Any, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with tarfile.open(tmp_path / "00000.tar", "w") as shard:
        (tmp_path / "alt.txt").write_text("some shapes")
        shard.add(DATA / "drawing.png", "one.png")
        shard.add(tmp_path / "alt.txt", "one.txt")
    run_program(
        "ray_data.py", str(tmp_path / "00000.tar"), str(tmp_path / "captions"), "sketch", RAY_ADDRESS=address_of(ray)
    )
    assert parquet.read_table(tmp_path / "captions").column("caption").to_pylist()[0]


@pytest.mark.slow
def test_ray_data_http(ray: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray.data.llm")
    parquet = pytest.importorskip("pyarrow.parquet")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("drawing.png", "card.png"):
        shutil.copy(DATA / name, photos)
    (photos / "bad.png").write_bytes(b"<html>404</html>")
    with serving(load("sketch", device="cpu", vision=True)) as server:
        arguments = server.url, "sketch", str(photos), str(tmp_path / "captions")
        run_program("ray_data_http.py", *arguments, RAY_ADDRESS=address_of(ray))
    rows = {Path(row["path"]).name: row for row in parquet.read_table(tmp_path / "captions").to_pylist()}
    assert rows.keys() == {"drawing.png", "card.png", "bad.png"}
    assert "star" in rows["drawing.png"]["caption"]
    assert rows["bad.png"]["caption"] is None
    assert "not a picture" in rows["bad.png"]["error"]
