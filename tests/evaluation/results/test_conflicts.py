"""A dry run says that a result is of another request, as the run itself does."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation import __main__ as cli
from slurm.submit.check_arguments import check_arguments
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import write_generator

DRAWN = ["run", "model", "--reference", "images", "--out", "r.json", "--metrics", "fd:block4"]
DRAWN += ["--seeds", "0-3", "--batch-size", "2"]
IMAGES = ["run", "images", "--reference", "ref.npz", "--out", "r.json", "--metrics", "fd:block4"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_generator(tmp_path / "model", 0)
    write_images(tmp_path / "images", 4, size=16)
    write_images(tmp_path / "others", 4, size=16, seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    for images, name in (("images", "ref.npz"), ("others", "other.npz")):
        assert cli.main(["reference", images, name]) == 0
    return tmp_path


def say(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(command) == 2
    return capsys.readouterr().err


def test_a_dry_run_and_submission_say_what_the_run_says(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for first, change in [
        (DRAWN, ["--seeds", "0-2"]),
        (DRAWN, ["generator.compute_dtype=bfloat16"]),
        (DRAWN, ["--reference", "others"]),
        (IMAGES, ["--reference", "other.npz"]),
    ]:
        Path("r.json").unlink(missing_ok=True)
        assert cli.main(first) == 0
        assert cli.main([*first, "--dry-run"]) == 0
        before = Path("r.json").read_bytes()
        said = say([*first, *change, "--dry-run"], capsys)
        assert "r.json holds the result of another request" in said
        assert said == say([*first, *change], capsys)
        with pytest.raises(ValueError, match="holds the result of another request"):
            check_arguments("evaluation", [*first, *change])
        assert cli.main([*first, *change, "--dry-run", "--replace"]) == 0
        assert Path("r.json").read_bytes() == before
