"""Long runs of `mllama caption`: shards, several at once, and runs that are interrupted or killed."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.caption.folders import names
from tests.console import SCRIPT, run_here, run_script
from tests.drawings import bad_files, drawings
from tests.serving.running import wait_until


@pytest.mark.slow
def test_drawings_and_twenty_bad_files(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    facts = drawings(folder, 24)
    bad = bad_files(folder)
    result = run_script("caption", str(folder), "--errors", str(tmp_path / "errors.tsv"), timeout=280)
    assert result.code == 3
    assert "Captioned 24, failed 20" in result.err
    failed = dict(line.split("\t") for line in (tmp_path / "errors.tsv").read_text().splitlines()[1:])
    assert {Path(path).name for path in failed} == set(bad)
    assert all(reason for reason in failed.values())
    assert not [name for name in bad if (folder / name).with_suffix(".txt").exists()]
    captions = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert captions.keys() == facts.keys()
    right = sum(captions[name].strip() == answer for name, answer in facts.items())
    assert right >= 22, f"{right} of 24 say exactly what is drawn"


def test_shards_together_caption_everything_once(folder: Path) -> None:
    for number in range(6):
        Image.new("RGB", (60 + number, 60), "white").save(folder / f"{number}.png")
    (folder / "bad.jpg").unlink()
    counts = []
    for shard in ("1/2", "2/2"):
        result = run_here("caption", str(folder), "--shard", shard, "--workers", "0", "-p", "Describe this.")
        assert result.code == 0
        counts.append(len(list(folder.glob("*.txt"))))
    assert 0 < counts[0] < 9
    assert counts[1] == 9


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [str(SCRIPT), "caption", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ}
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
@pytest.mark.parametrize("existing", ["skip", "append"])
def test_a_run_that_is_killed_at_any_moment_ends_in_the_same_files(existing: str, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    drawings(calm, 12)
    for name in ("3.txt", "7.txt"):
        (calm / name).write_text("old\n" if existing == "append" else "")
    shutil.copytree(calm, killed)
    options = ("--existing", existing, "--batch-size", "2", "--workers", "1")
    rng = random.Random(5)
    errors = tmp_path / "errors.txt"

    def begin(folder: Path) -> "subprocess.Popen[bytes]":
        command = [str(SCRIPT), "caption", str(folder), *options]
        with errors.open("w") as file:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)

    assert begin(calm).wait() == 0, errors.read_text()
    for _ in range(5):
        before = sum(path.stat().st_size for path in killed.glob("*.txt"))
        process = begin(killed)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:  # until it writes, then a moment more
            if sum(path.stat().st_size for path in killed.glob("*.txt")) != before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.read_text()
    else:
        assert begin(killed).wait() == 0, errors.read_text()
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (calm, killed)]
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_resume(tmp_path: Path) -> None:
    drawings(tmp_path, 6)
    os.mkfifo(tmp_path / "z.png")  # an image that never comes, so that the run cannot end before
    process = start(str(tmp_path), "--batch-size", "1")
    wait_until(lambda: list(tmp_path.glob("*.txt")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Run the same command to resume." in err
    assert b"Traceback" not in err
    done = list(tmp_path.glob("*.txt"))
    assert 0 < len(done) <= 6
    assert all(path.read_text().endswith(".\n") for path in done)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.slow
def test_two_runs_over_one_folder_share_the_work(tmp_path: Path) -> None:
    stems = list(drawings(tmp_path, 12))
    runs = [start(str(tmp_path), "--existing", "append", "--batch-size", "2") for _ in range(2)]
    outputs = [run.communicate(timeout=120)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    for stem in stems:
        text = (tmp_path / f"{stem}.txt").read_text()
        assert text.count(text[:6]) == 1, "one caption, not two, whatever the model saw"
        assert text.endswith(".\n")
    done = [int(output.split("Captioned ")[1].split()[0].rstrip(",.")) for output in outputs]
    assert sum(done) == 12
