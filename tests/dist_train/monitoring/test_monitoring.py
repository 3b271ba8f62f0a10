"""What a run shows: where time goes, MFU, grids, traces, status; and float16 with a loss scale."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.__main__ import main
from dist_train.config import LoggingConfig, RunConfig, ShardingConfig
from dist_train.monitoring import loggers
from dist_train.monitoring.metrics_log import AppendedLines
from dist_train.monitoring.throughput import PHASES
from dist_train.precision import check_precision, compute_dtypes, settle_precision
from dist_train.recipes import RECIPES
from dist_train.runtime import run_dir
from dist_train.runtime.run_dir import settle_config
from models.config_io import ConfigError, override
from models.rdm.config import EdmConfig
from tests.dist_train.test_trainer import whole_tensors
from tests.ranks import run_ranks
from tests.tiny import BATCH, TINY, tiny_edm, tiny_wavediff


def _observed(run_dir: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.run_dir import settle_config
    from dist_train.runtime.world import init_world

    settings = ["logging.grid_seeds=5", "logging.peak_tflops=0.5"]
    config = override(tiny_wavediff(), [*settings, "checkpoint.keep_best=generator/loss"])
    settle_config(run_dir, config)
    build_trainer(config, run_dir, init_world(), profile_steps=1).fit()


@pytest.mark.distributed
def test_a_run_shows_where_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_ranks(1, _observed, run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        phases = {name: line[f"seconds/{name}"] for name in PHASES}
        step = BATCH / line["speed/images_per_second"]
        assert sum(phases.values()) <= step, phases
        assert phases["forward"] > 0
        assert phases["backward"] > 0
        assert line["speed/mfu"] == pytest.approx(line["speed/tflops_per_rank"] / 0.5)
        assert line["memory/peak_gb"] > 0
        assert line["data/replaced_samples"] == 0
        assert line["generator/skipped_updates"] == 0
        assert line["generator/gradient_norm"] > 0
    step = BATCH / lines[-1]["speed/images_per_second"]  # the profiler is done by then
    assert sum(lines[-1][f"seconds/{name}"] for name in PHASES) > 0.5 * step
    grids = sorted((run_dir / "grids").iterdir())
    assert [grid.name for grid in grids] == [f"{0:012d}.png", f"{6 * BATCH:012d}.png"]
    with Image.open(grids[0]) as grid:
        assert grid.size == (2 * 32, 3 * 32)
    trace = json.loads((run_dir / "profile" / "rank_00000.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])
    newest = run_dir / "checkpoints" / f"{6 * BATCH:012d}" / "checkpoint.json"
    assert json.loads(newest.read_text())["metric"] == pytest.approx(lines[-1]["generator/loss"])

    assert main(["status", str(run_dir)]) == 0
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert "48/48 images (100%)" in printed
    assert f"2, newest at {6 * BATCH} images" in printed
    assert "0 updates, 0 samples" in printed


def _profiled(run_dir: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    config = replace(tiny_edm(), total_images=4 * BATCH)
    run_dir.mkdir()
    build_trainer(config, run_dir, init_world(), profile_steps=9).fit()


@pytest.mark.distributed
def test_a_run_that_ends_while_it_is_traced_writes_the_trace(tmp_path: Path) -> None:
    run_ranks(1, _profiled, tmp_path / "run")
    trace = json.loads((tmp_path / "run" / "profile" / "rank_00000.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])


def _half_precision(total: int, zero_stage: Literal[0, 1]) -> RunConfig:
    config = tiny_edm()
    assert isinstance(config.objective, EdmConfig)
    unet = replace(config.objective.unet, compute_dtype="float16")
    adam = replace(config.optim["denoiser"], max_gradient_norm=1.0)
    return replace(
        config,
        objective=replace(config.objective, unet=unet),
        optim={"denoiser": adam},
        total_images=total,
        sharding=ShardingConfig(zero_stage=zero_stage),
    )


def _train_half(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    for name, totals in (("zero0", [48]), ("zero1", [48]), ("resumed", [24, 48])):
        run_dir = root / name
        run_dir.mkdir(exist_ok=True)
        for total in totals:
            stage: Any = 1 if name == "zero1" else 0
            build_trainer(_half_precision(total, stage), run_dir, init_world()).fit()


@pytest.mark.distributed
def test_float16_is_trained_with_a_loss_scale_on_all_stages(tmp_path: Path) -> None:
    run_ranks(2, _train_half, tmp_path)
    states = {name: whole_tensors(tmp_path / name) for name in ("zero0", "zero1", "resumed")}
    for name, values in states["zero0"].items():
        assert values.isfinite().all()
        assert torch.equal(values, states["resumed"][name]), name
        torch.testing.assert_close(states["zero1"][name], values, rtol=1e-4, atol=1e-5)
    line = json.loads((tmp_path / "zero0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 1 <= line["denoiser/loss_scale"] <= 2**16


def test_a_precision_that_the_gpu_lacks_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    objective = tiny_edm().objective
    assert isinstance(objective, EdmConfig)
    assert compute_dtypes(objective) == {"float32"}
    check_precision(compute_dtypes(objective), torch.device("cuda"))
    brain = replace(objective, unet=replace(objective.unet, compute_dtype="bfloat16"))
    check_precision(compute_dtypes(brain), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"which Tesla V100 lacks; set compute.precision=float"):
        check_precision(compute_dtypes(brain), torch.device("cuda"))


def test_automatic_precision_is_that_of_the_device_unless_a_network_names_one() -> None:
    config = tiny_wavediff()
    assert config.compute.precision == "auto"
    on_cpu = settle_precision(config, bfloat16=False)
    assert (on_cpu.compute.precision, on_cpu.objective) == ("float32", config.objective)
    on_gpu = settle_precision(config, bfloat16=True)
    assert on_gpu.compute.precision == "bfloat16"
    assert compute_dtypes(on_gpu.objective) == {"bfloat16"}
    assert settle_precision(on_gpu, bfloat16=False) == on_gpu  # settled once
    published = RECIPES["rdm_imagenet256"]()
    automatic = override(published, ["compute.precision=auto"])
    assert settle_precision(automatic, bfloat16=True) == published  # which leaves it to the network
    single = override(published, ["compute.precision=float32"])
    single = settle_precision(single, bfloat16=True)
    assert compute_dtypes(single.objective) == {"float32"}


def test_a_run_keeps_the_precision_that_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, device = tiny_edm(), torch.device("cpu")
    assert settle_config(tmp_path / "here", config, device=device).compute.precision == "float32"

    settle_config(tmp_path / "there", config)  # a login node writes down what is asked for
    monkeypatch.setattr(run_dir, "has_bfloat16", lambda device: True)
    started = settle_config(tmp_path / "there", config, device=device)
    assert started.compute.precision == "bfloat16"
    assert compute_dtypes(started.objective) == {"bfloat16"}
    (tmp_path / "there" / "snapshots" / f"{0:012d}").mkdir(parents=True)  # it trains
    monkeypatch.setattr(run_dir, "has_bfloat16", lambda device: False)
    assert settle_config(tmp_path / "there", config, device=device) == started
    assert settle_config(tmp_path / "there", config) == started
    with pytest.raises(ConfigError, match=r"compute.precision: 'bfloat16' -> 'float32'"):
        settle_config(
            tmp_path / "there", override(config, ["compute.precision=float32"]), device=device
        )


def _draw_grids(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    world = init_world()
    for name, recipe in TINY.items():
        run_dir = root / name
        run_dir.mkdir(parents=True, exist_ok=True)
        config = override(recipe(), [f"total_images={BATCH}", "logging.grid_seeds=10"])
        build_trainer(config, run_dir, world).fit()


@pytest.mark.distributed
def test_grids_are_of_the_same_seeds_on_any_number_of_ranks(tmp_path: Path) -> None:
    for ranks in (1, 2):
        run_ranks(ranks, _draw_grids, tmp_path / str(ranks))
    for name, edge in (("tiny_edm", 8), ("tiny_relay", 16), ("tiny_wavediff", 32)):
        pictures = []
        for ranks in (1, 2):
            with Image.open(tmp_path / str(ranks) / name / "grids" / f"{0:012d}.png") as picture:
                assert picture.size == (3 * edge, 4 * edge)
                pictures.append(torch.from_numpy(np.array(picture)).int())
        assert (pictures[0] - pictures[1]).abs().max() <= 1
        assert pictures[0].float().std() > 1


@pytest.mark.parametrize("content", ["", "../../../elsewhere", "a\nb", "\udcff" * 9, "x" * 100])
def test_a_damaged_wandb_id_starts_a_new_record(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wandb_id"
    file.write_bytes(content.encode(errors="surrogateescape"))
    name = loggers._wandb_id(file)
    assert loggers.WANDB_ID.fullmatch(name)
    assert f"{file} holds no id of a wandb run" in capsys.readouterr().err
    assert loggers._wandb_id(file) == name
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_no_key_lands_in_the_run_directory(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb").teardown()  # an earlier test's service keeps its settings
    key = "5ec2e7" * 6 + "5ec2"
    monkeypatch.setattr(loggers, "WANDB_TIMEOUT", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for name, value in {"API_KEY": key, "MODE": mode, "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("HF_TOKEN", "hf_" + key)
    for logger in loggers.start_loggers(LoggingConfig(wandb_project="x"), {"seed": 1}, tmp_path):
        logger.write({"images_seen": 8, "net/loss": 0.5})
        logger.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not [path for path in files if key.encode() in path.read_bytes()]


def test_wandb_resumes_with_one_record_while_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb").teardown()  # an earlier test's service keeps its settings
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    for images_seen in (8, 16):  # two jobs, one after the other
        (logger,) = loggers.start_loggers(LoggingConfig(wandb_project="x"), {}, tmp_path)
        logger.write({"images_seen": images_seen, "net/loss": 0.5})
        logger.show_grid(images_seen, tmp_path / "grid.png")
        logger.close()
        time.sleep(1.1)  # wandb names its directories by the second
    name = (tmp_path / "wandb_id").read_text()
    records = sorted((tmp_path / "wandb").glob(f"offline-run-*-{name}"))
    assert len(records) == 2  # one id: `wandb sync --append` joins them
    for record in records:
        assert list(record.glob(f"run-{name}.wandb"))
        assert list(record.glob("files/media/images/samples_*.png"))


def test_tensorboard_is_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert loggers.start_loggers(LoggingConfig(tensorboard=True), {}, tmp_path) == []
    assert "pip install 'relaywave[tensorboard]'" in capsys.readouterr().err

    recorded: list[tuple[Any, ...]] = []

    class Writer:
        def add_scalar(self, name: str, value: float, global_step: int) -> None:
            recorded.append((name, value, global_step))

        def add_image(self, name: str, pixels: Any, global_step: int, dataformats: str) -> None:
            recorded.append((name, pixels.shape, global_step, dataformats))

        def close(self) -> None:
            recorded.append(("closed",))

    logger = loggers.TensorboardLogger(Writer())
    logger.write({"images_seen": 8, "net/loss": 0.5})
    Image.new("RGB", (4, 2)).save(tmp_path / "grid.png")
    logger.show_grid(8, tmp_path / "grid.png")
    logger.close()
    assert recorded == [
        ("images_seen", 8, 8),
        ("net/loss", 0.5, 8),
        ("samples", (2, 4, 3), 8, "HWC"),
        ("closed",),
    ]


def test_a_torn_line_is_cut_and_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = AppendedLines(tmp_path / "lines")
    lines.append("one")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limit[1]))  # a disk with room for two bytes
    try:
        for line in ("two", "three"):
            lines.append(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "lines").read_bytes() == b"one\ntw"
    assert "2 lines wait" in caplog.records[-1].getMessage()
    lines.append("four")
    assert (tmp_path / "lines").read_text() == "one\ntwo\nthree\nfour\n"
