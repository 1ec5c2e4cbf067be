"""`mllama caption --to`: shards in, one file of captions for each out."""

import json
from pathlib import Path

import pytest

from tests.cli.caption.folders import names
from tests.conftest import ROOT
from tests.console import run_here
from tests.shards import make_shards

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra peers)")


def test_captions_of_shards_say_what_the_pictures_show_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    facts = make_shards(tmp_path / "in", 4, 1, 2)
    out = tmp_path / "out"
    command = ["caption", str(tmp_path / "in"), "--to", str(out), "--json", "--claim"]
    result = run_here(*command)
    assert result.code == 3
    rows = {row["key"]: row for path in out.glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    assert set(rows) == set(facts)
    right = sum(rows[key]["caption"] == fact for key, fact in facts.items())
    assert right >= len(facts) - 2  # the built-in model reads text with mistakes
    assert {key for key in rows if rows[key]["error"]} == {key for key in facts if facts[key] is None}
    events = [json.loads(line) for line in result.out.splitlines()]
    assert sum(event["event"] == "shard_done" for event in events) == 5
    summary = events[-1]
    assert (summary["event"], summary["shards_done"], summary["failed"], summary["skipped"]) == ("summary", 5, 3, 1)
    (file,) = (out / "_summary").iterdir()
    assert json.loads(file.read_text())["pictures"] == summary["pictures"]
    assert "is cut off: 2 pictures precede" in result.err

    again = run_here(*command)
    assert again.code == 0
    assert json.loads(again.out.splitlines()[-1])["pictures"] == 0
    assert "Captioned nothing: 5 of 5 shards are done." in again.err
    other = run_here(*command, "-p", "What is this?")
    assert other.code == 2
    assert "captions of another command: its prompt" in other.err
    outputs = [f"0000{number}.parquet" for number in range(4)]
    assert names(out) == [*outputs, "_claims", "_settings.json", "_summary", "p0.parquet"]


@pytest.mark.slow
def test_a_run_on_ray_is_as_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    facts = make_shards(tmp_path / "in", 4, 1, 2)
    here, there = tmp_path / "here", tmp_path / "there"
    results = {
        to: run_here("caption", str(tmp_path / "in"), "--to", str(to), "--json", "--errors", f"{to}.tsv", *more)
        for to, more in ((here, ()), (there, ("--ray", "local", "--actors", "1")))
    }
    assert [result.code for result in results.values()] == [3, 3]
    tables = [{path.name: pq.read_table(path).to_pylist() for path in to.glob("*.parquet")} for to in (here, there)]
    assert tables[0] == tables[1]
    lists = [sorted(Path(f"{to}.tsv").read_text().splitlines()) for to in (here, there)]
    assert lists[0] == lists[1]
    events = [json.loads(line) for line in results[there].out.splitlines()]
    done = [event for event in events if event["event"] == "shard_done"]
    assert [event["worker"] for event in done] == ["actor-1"] * 5
    (file,) = (there / "_summary").iterdir()
    summary = json.loads(file.read_text())
    counts = {"shards": 5, "shards_done": 5, "pictures": len(facts) - 3, "failed": 3, "skipped": 1}
    assert {name: summary[name] for name in counts} == {name: events[-1][name] for name in counts} == counts
    assert summary["workers"]["actor-1"]["pictures"] == len(facts)
    again = run_here("caption", str(tmp_path / "in"), "--to", str(there), "--json", "--ray", "local")
    assert (again.code, json.loads(again.out.splitlines()[-1])["shards_done_here"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["x.tar"], "x.tar holds many pictures"),
        (["x.png", "--claim"], "--claim is for shards"),
        (["x.png", "-p", "{txt}"], "quote samples of shards"),
        (["x.tar", "--to", "o", "-o", "c.jsonl"], "--output is not for shards"),
        (["x.tar", "--to", "o", "-p", "{existing}"], "quote caption files"),
        (["x.tar", "--to", "o", "--format", "csv"], "--format cannot be 'csv'"),
        (["x.tar", "--to", "o", "--claim", "--shard", "1/2"], "both say who captions which shard"),
        (["x.tar", "--to", "o", "--actors", "2"], "--actors is for Ray"),
        (["x.tar", "--to", "o", "--ray", "local", "--claim"], "--claim is not for Ray"),
        (["x.tar", "--to", "https://a.test/o"], "captions are written to folders, s3:// and gs://"),
        (["x.tar", "--to", "ftp://a.test/o"], "captions are written to folders, s3:// and gs://"),
        (["gone.tar", "--to", "o"], "no such file: gone.tar"),
        (["gone", "--to", "o"], "no such file or folder: gone"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tar").touch()
    result = run_here("caption", *arguments)
    assert result.code == 2
    assert error in result.err


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    make_shards(tmp_path / "in", 0, 1, 1)
    result = run_here("caption", f"{tmp_path}/in", "--image-column", "photo", "--to", f"{tmp_path}/out")
    assert result.code == 1
    said = "p0.parquet: has no column 'photo'. Name one of its columns with --image-column: key, image, label."
    assert said in " ".join(result.err.split())
