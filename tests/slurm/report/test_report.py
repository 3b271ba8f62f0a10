"""`relaywave report`: what is on the page, what is replaced, and what is rejected."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import relaywave
from slurm.report.charts import MOST_POINTS, Chart, Line, dash, with_unique_keys
from slurm.report.collect import collect
from slurm.report.real_images import write_real_grid
from tests.data_sets import packed_set, write_class_dirs
from tests.paths import ROOT
from tests.tiny import BATCH


def report(*arguments: object) -> int:
    try:
        return relaywave.main(["report", *map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)


def data(page: Path, key: str) -> Any:
    return json.loads((page / "assets" / "data" / f"{key}.json").read_text())


def test_the_page_is_one_file_with_pictures_and_json(page: Path) -> None:
    assert sorted(entry.name for entry in page.iterdir()) == ["assets", "index.html"]
    kinds = {path.suffix for path in (page / "assets").rglob("*") if path.is_file()}
    assert kinds == {".png", ".json"}
    text = (page / "index.html").read_text()
    body = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!#|assets/|data:,)", body), "nothing from elsewhere"


def test_runs_at_a_glance(page: Path) -> None:
    table = data(page, "runs")
    facts = {run["name"]: run for run in table["runs"]}
    edm = facts["tiny_edm"]
    assert (edm["state"], edm["progress"], edm["restarts"]) == ("finished", 1.0, 1)
    assert edm["metric"]["name"] == "fid"
    assert 0 < edm["goodput"] <= 1
    assert edm["rank_hours"] > 0
    assert not edm["goodput_is_upper_bound"]
    kinds = [(mark["kind"], mark["images_seen"]) for mark in table["marks"]["tiny_edm"]]
    assert kinds == [("start", 0), ("end", 24), ("start", 24), ("end", 48)]
    assert [mark["ranks"] for mark in table["marks"]["tiny_edm"]] == [2, 0, 2, 0]


def names(figure: Any) -> list[str]:
    return [trace["name"] for trace in figure["data"]]


def test_charts_show_what_was_measured(page: Path, runs: Path) -> None:
    lines = [
        json.loads(line) for line in (runs / "tiny_edm/metrics.jsonl").read_text().splitlines()
    ]
    loss = data(page, "denoiser_loss")
    trace = loss["data"][names(loss).index("tiny_edm")]
    assert trace["x"] == [line["images_seen"] for line in lines]
    assert trace["y"] == pytest.approx([line["denoiser/loss"] for line in lines], rel=1e-6)
    by_level = next(
        json.loads(path.read_text()) for path in (page / "assets/data").glob("noise_level_*.json")
    )
    assert names(by_level)[0].startswith("σ 0 to")
    assert names(by_level)[-1].endswith("to ∞")
    terms = {path.name for path in (page / "assets/data").glob("*.json")}
    for part in ("generator_loss", "discriminator_loss", "denoiser_gradient_norm",
                 "generator_learning_rate", "speed_images_per_second", "step_time", "time",
                 "precision_recall", "fid_distance_images_seen", "fid_distance_eta",
                 "spectrum_power_0", "spectrum_ratio_0"):  # fmt: skip
        assert f"{part}.json" in terms
    assert any("discriminator's loss" in data(page, name[:-5])["layout"]["title"]["text"]
               for name in terms if name.startswith("discriminator_loss_"))  # fmt: skip
    steps = data(page, "step_time")
    assert names(steps)[:3] == ["data wait", "forward", "backward"]
    assert all(trace["x"] and min(trace["x"]) >= 0 for trace in steps["data"])


def test_results_stand_beside_the_published_values_with_deviations(page: Path) -> None:
    eta = data(page, "fid_distance_eta")
    ours = next(trace for trace in eta["data"] if trace["name"] == "images seen 48")
    published = [trace for trace in eta["data"] if trace["name"].startswith("published")]
    assert (ours["x"], ours["y"]) == ([0.0, 0.2, 0.3], [6.0, 7.0, 5.0])
    assert ours["error_y"]["array"][0] == pytest.approx(0.5)
    ours_published = {trace["x"][0]: trace["y"][0] for trace in published if len(trace["x"]) == 1}
    assert ours_published | {0.0: 5.65, 0.3: 5.91} == ours_published
    assert any("Table 3, eta 0.3" in trace["text"][0] for trace in published if "text" in trace)
    text = (page / "index.html").read_text()
    assert "Deviation: " in text
    assert "Relay Diffusion (arXiv 2309.03350)" in text


def test_figures_are_plotlys(page: Path) -> None:
    from plotly.graph_objects import Figure

    figures = [json.loads(path.read_text()) for path in (page / "assets/data").glob("*.json")]
    checked = [Figure(figure) for figure in figures if "layout" in figure]
    assert len(checked) > 15


def test_settings_in_which_runs_differ(page: Path) -> None:
    text = (page / "index.html").read_text()
    settings = text.partition('id="settings-table" tabindex')[2]
    assert "<code>recipe</code>" in settings
    assert "<code>seed</code>" not in settings, "equal in all"
    assert data(page, "settings")["tiny_edm"]["seed"] == 0


def test_a_run_without_some_data_says_what_is_missing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "format.json"):
        shutil.copy(trained / "tiny_edm" / name, bare)
    assert report(bare, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out/index.html").read_text()
    for words in ("No results yet", "No run has grids", "No run has logged", "No spectra",
                  "recorded its starts", "not started"):  # fmt: skip
        assert words in text
    assert capsys.readouterr().out.strip() == str(tmp_path / "out/index.html")


def test_real_images_are_laid_out_as_the_samples(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    packed = tmp_path / "set"
    packed_set(write_class_dirs(tmp_path / "source"), packed)
    (run,) = collect([trained / "tiny_edm"]).runs
    real = replace(run, settings={**run.settings, "data": {"path": str(packed)}})
    assert write_real_grid(real, tmp_path / "real.png")
    with Image.open(tmp_path / "real.png") as picture, Image.open(run.grids[-1].path) as grid:
        assert picture.size == grid.size == (16, 16)
        assert picture.getextrema() != ((0, 0), (0, 0), (0, 0))
    (packed / "manifest.json").unlink()
    assert not write_real_grid(real, tmp_path / "none.png"), "the set is damaged"
    assert not write_real_grid(run, tmp_path / "none.png"), "it is synthetic"
    assert not (tmp_path / "none.png").exists()


def test_runs_have_names_of_their_own(trained: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(trained / "tiny_edm", tmp_path / parent / "seed_0")
    found = collect([tmp_path])
    assert [run.name for run in found.runs] == ["a/seed_0", "b/seed_0"]
    twice = collect([tmp_path, tmp_path / "a", tmp_path / "a" / "seed_0"])
    assert len(twice.runs) == 2


def test_many_runs_and_lines_stay_readable() -> None:
    lines = [
        Line(str(n), list(range(MOST_POINTS + 1)), [1.0] * (MOST_POINTS + 1), n, dash=dash(n))
        for n in range(17)
    ]
    chart = Chart("a/b <c>", "t", "x", "y", lines)
    assert not chart.has_legend
    assert [trace["line"]["dash"] for trace in chart.figure()["data"]][7:10] == [
        "solid", "dash", "dash",
    ]  # fmt: skip
    assert all(len(trace["x"]) <= MOST_POINTS for trace in chart.figure()["data"])
    (first, second), (third,) = with_unique_keys([[chart, chart], [chart]])
    assert [first.key, second.key, third.key] == ["a_b_c_", "a_b_c_-2", "a_b_c_-3"]


def test_values_that_are_not_finite_leave_gaps() -> None:
    line = Line("a", [1, 2, 3], [1.0, float("nan"), None])
    assert Chart("k", "t", "x", "y", [line]).figure()["data"][0]["y"] == [1.0, None, None]


def test_a_value_that_never_changes_is_drawn_above_zero_and_not_beside_it() -> None:
    def axis(*values: float) -> dict[str, Any]:
        figure = Chart("k", "rate", "x", "y", [Line("a", [1, 2], values, 0, "red")]).figure()
        return dict(figure["layout"]["yaxis"])

    assert axis(0.001, 0.001)["rangemode"] == "tozero"
    assert "rangemode" not in axis(0.001, 0.002)


def test_damaged_parts_are_left_out_by_name(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "runs")
    edm = tmp_path / "runs" / "tiny_edm"
    (edm / "grids" / f"{2 * BATCH:012}.png").write_bytes(b"\x89PNG no")
    with open(edm / "metrics.jsonl", "ab") as file:
        file.write(b'{"images_seen": 56')
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (tmp_path / "runs" / "spectrum.csv").write_text("a,b\n1,2\n")
    assert report(tmp_path / "runs", "--out", tmp_path / "out") == 0
    text = (tmp_path / "out/index.html").read_text()
    left_out = text.partition("Left out:")[2].partition("</ul>")[0]
    assert left_out.count("<li>") == 3
    for name in (f"{2 * BATCH:012}.png", "broken/config.json", "spectrum.csv"):
        assert name in left_out
    states = {run["name"]: run["state"] for run in data(tmp_path / "out", "runs")["runs"]}
    assert states == {"broken": "damaged", "tiny_edm": "finished", "tiny_wavediff": "finished"}


def test_only_a_report_is_replaced(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert report(trained / "tiny_edm", "--out", out) == 0
    assert report(trained / "tiny_edm", "--out", out) == 0
    (out / "thesis.tex").touch()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for target in (out, trained / "tiny_edm", trained / "tiny_edm" / "config.json"):
        capsys.readouterr()
        assert report(trained / "tiny_edm", "--out", target) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(target) in error
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}", "--out", "{out}"], "holds neither a run nor results"),
        (["{empty}/none", "--out", "{out}"], "does not exist"),
        (["{damaged}", "--out", "{out}"], "config.json"),
        (["{run}", "--out", "{out}", "--port", "80"], "--port has no effect"),
        (["{run}", "--out", "{out}", "--serve", "--every", "0"], "--every=0.0 must be at least 1"),
        (["{run}", "--out", "{out}", "--serve", "--port", "-1"], "--port=-1 must be at least 0"),
        (["{run}"], "--out"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {name: tmp_path / name for name in ("empty", "damaged", "out")}
    places["empty"].mkdir()
    places["damaged"].mkdir()
    (places["damaged"] / "config.json").write_text("[]")
    words = [word.format(run=trained / "tiny_edm", **places) for word in arguments]
    assert report(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not places["out"].exists()


def test_served_pages_follow_a_run_and_answer_this_machine_only(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "tiny_edm", tmp_path / "run")
    command = [sys.executable, "-m", "relaywave", "report", str(tmp_path / "run"), "--serve",
               "--every", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        server.stdout.readline()
        address = server.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        page = _get(address)
        assert "connect-src 'self'" in page
        first = _get(f"{address}assets/made.json")
        end = time.monotonic() + 120
        while _get(f"{address}assets/made.json") == first:
            assert time.monotonic() < end, "the page was not rebuilt"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(
                urllib.request.Request(address, headers={"Host": "evil.example"})
            )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}../run/config.json")
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0, "Ctrl-C is how it ends"
    finally:
        server.kill()
        server.communicate()


def _get(address: str) -> str:
    for _ in range(50):  # while the directory is replaced there is none for a moment
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"{address} is not served")
