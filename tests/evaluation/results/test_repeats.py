"""A protocol with several ranges of seeds: a result of each, and one of the best over all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from evaluation import __main__ as cli
from evaluation import evaluate
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.results.plots import lines_of
from evaluation.results.result_file import find_results, read_result
from evaluation.results.table import format_table, to_csv
from evaluation.samples.generate import GeneratedImages
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import call, write_generator
from tests.ranks import run_ranks

FD, PR = "fd_effnet_lite0_block4", "pr_effnet_lite0_block4"
SEEDS = ["0-5", "6-11", "12-17"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a snapshot, and a reference; `edm` draws six samples of each range."""
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PROTOCOLS, "edm", small())
    write_generator(tmp_path / "run" / "snapshots" / f"{500:012d}", 500)
    write_images(tmp_path / "images", 8, size=16)
    (tmp_path / "run" / "evaluation").mkdir()
    return tmp_path


def small() -> Protocol:
    return dataclasses.replace(PROTOCOLS["edm"], num_samples=6)


def call_small(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "edm", small())
        call(arguments)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first seeds of the batches that were drawn."""
    found: list[int] = []
    draw = GeneratedImages.draw

    def noted(self: GeneratedImages, indices: Any) -> Any:
        found.append(self.spec.seeds[indices[0]])
        return draw(self, indices)

    monkeypatch.setattr(GeneratedImages, "draw", noted)
    return found


def command(place: Path, *options: str, protocol: str = "edm") -> list[str]:
    run = ["run", str(place / "run"), "--reference", str(place / "images"), "--out"]
    run += [str(place / "run" / "evaluation" / "o.json"), "--detector", "effnet_lite0"]
    return [*run, "--protocol", protocol, "--metrics", "fd:block4", *options]


def read(place: Path, name: str) -> dict[str, Any]:
    return read_result(place / "run" / "evaluation" / name)


def test_the_best_of_each_metric_is_recorded_with_all_ranges(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(command(place, "--metrics", "fd:block4,pr:block4"))
    best = read(place, "o.json")
    ranges = [read(place, f"o-{number}.json") for number in range(3)]
    assert [repeat["seeds"] for repeat in best["repeats"]] == SEEDS
    distances = [each["metrics"][FD]["values"]["distance"] for each in ranges]
    assert len(set(distances)) == 3
    assert best["metrics"][FD]["values"]["distance"] == min(distances)
    assert [m["values"]["distance"] for m in best["metrics"][FD]["ranges"].values()] == distances
    precisions = [each["metrics"][PR]["values"]["precision"] for each in ranges]
    assert best["metrics"][PR]["values"]["precision"] == max(precisions), "more of it is better"
    assert len({each["identity"] for each in (*ranges, best)}) == 4
    assert "/o.json" in capsys.readouterr().out


def test_directories_show_the_best_as_one_result(place: Path) -> None:
    call(command(place))
    (result,) = find_results([place / "run"])
    distances = [m["values"]["distance"] for m in result["metrics"][FD]["ranges"].values()]
    mean = sum(distances) / 3
    text = format_table([result])
    assert f"{min(distances):.4g} (best of 3, mean {mean:.4g})" in text
    assert f"the best of the seeds {', '.join(SEEDS)}." in text
    header, line = to_csv([result]).splitlines()
    values = dict(zip(header.split(","), line.split(","), strict=False))
    assert float(values[f"{FD}.distance"]) == min(distances)
    assert float(values[f"{FD}.distance mean"]) == pytest.approx(mean)
    ((point,),) = lines_of([result], "images seen", (FD, "distance")).values()
    assert (point.low, point.y, point.high) == (min(distances), min(distances), max(distances))
    named = [place / "run" / "evaluation" / f"o{end}.json" for end in ("", "-0")]
    assert len(find_results(named)) == 2, "files that are named are shown"


def test_the_best_of_several_is_not_compared_with_a_single_one(place: Path) -> None:
    call(command(place))
    best, single = (read(place, name) for name in ("o.json", "o-1.json"))
    assert "NOT comparable" in format_table([best, single])
    assert "differ in ranges of seeds (3, 1)" in format_table([best, single])
    assert "NOT comparable" not in format_table([single, read(place, "o-2.json")])
    assert len(lines_of([best, single], "images seen", (FD, "distance"))) == 2


def test_nothing_is_done_twice(place: Path, drawn: list[int]) -> None:
    call(command(place))
    assert drawn == [0, 6, 12]
    files = [*(place / "run" / "evaluation").glob("*.json")]
    before = {path: path.read_bytes() for path in files}
    call(command(place))
    assert drawn == [0, 6, 12]
    assert {path: path.read_bytes() for path in files} == before
    (place / "run" / "evaluation" / "o.json").unlink()  # older versions wrote none
    call(command(place, "--metrics", "fd:block4,kid:block4"))
    assert drawn == [0, 6, 12]
    assert len(read(place, "o.json")["metrics"]) == 2


def test_a_job_that_died_between_ranges_resumes_at_the_next(
    place: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    def dying(*arguments: Any) -> Any:
        results = compute(*arguments)
        monkeypatch.setattr(evaluate, "_evaluate_images", die)
        return results

    compute = evaluate._evaluate_images
    monkeypatch.setattr(evaluate, "_evaluate_images", dying)
    assert cli.main(command(place)) == 130
    assert not (place / "run" / "evaluation" / "o.json").exists()
    monkeypatch.setattr(evaluate, "_evaluate_images", compute)
    call(command(place))
    assert drawn == [0, 6, 12]
    assert len(read(place, "o.json")["repeats"]) == 3


@pytest.mark.distributed
def test_ranks_write_the_same(place: Path) -> None:
    call(command(place))
    alone = read(place, "o.json")
    run_ranks(2, call_small, command(place, "--out", str(place / "many.json")))
    many = read_result(place / "many.json")
    assert many["identity"] == alone["identity"]
    for found, expected in zip(
        many["metrics"][FD]["ranges"].values(), alone["metrics"][FD]["ranges"].values(), strict=True
    ):
        assert found["values"] == expected["values"]


@pytest.mark.parametrize("first", ["edm", "adm"])
def test_another_request_in_the_common_file_is_rejected_before_anything_is_drawn(
    place: Path, capsys: pytest.CaptureFixture[str], drawn: list[int], first: str
) -> None:
    seeds = {"adm": ["--seeds", "0-5"], "edm": []}
    second = "adm" if first == "edm" else "edm"
    call(command(place, *seeds[first], protocol=first))
    before = (place / "run" / "evaluation" / "o.json").read_bytes()
    drawn.clear()
    capsys.readouterr()
    for dry in (["--dry-run"], []):
        assert cli.main(command(place, *seeds[second], *dry, protocol=second)) == 2
        assert "o.json holds the result of another request" in capsys.readouterr().err
    assert drawn == []
    assert (place / "run" / "evaluation" / "o.json").read_bytes() == before
    call(command(place, *seeds[second], "--replace", protocol=second))
    assert len(json.loads((place / "run/evaluation/o.json").read_text()).get("repeats", [])) == (
        3 if second == "edm" else 0
    )
