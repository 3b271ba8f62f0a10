"""Results of scheduled evaluations stand in the run's own wandb record, beside its losses."""

from __future__ import annotations

import json
import time
from pathlib import Path
from unittest import mock

import pytest

from dist_train.config import LoggingConfig
from dist_train.monitoring import metrics_log
from dist_train.monitoring.metrics_log import MetricsLog
from models.config_io import override, write_config
from slurm.continuous_eval import schedule
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.panels import log_results
from slurm.continuous_eval.schedule import EvalJob, ScheduledProtocol
from tests.tiny import tiny_edm
from tests.wandb_records import read_history


def _finish(run_dir: Path, images: int, distance: float) -> None:
    path = run_dir / "evaluation" / f"{images:012d}" / "quick.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": {"fid": {"values": {"distance": distance}}}}))


def test_results_go_to_the_record_of_the_run_while_it_trains_and_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb").teardown()  # an earlier test's service keeps its settings
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_config(override(tiny_edm(), ["logging.wandb_project=x"]), tmp_path / "config.json")
    log = MetricsLog(tmp_path, 400, LoggingConfig(wandb_project="x"), {})
    log.open(0)
    log.write(200, 1, {"net/loss": 0.5, "speed/images_per_second": 1.0})
    _finish(tmp_path, 100, 9.0)
    assert log_results(tmp_path) == 0, "the process that trains has the record open"
    log.send_results()
    log.send_results()
    _finish(tmp_path, 200, 8.0)
    log.close()
    time.sleep(1.1)  # wandb names its directories by the second
    _finish(tmp_path, 400, 7.0)
    assert log_results(tmp_path) == 1
    assert log_results(tmp_path) == 0
    lines = read_history(tmp_path)
    name = "quick/fid.distance"
    found = [(line["images_seen"], line[name]) for line in lines if name in line]
    assert found == [(100, 9.0), (200, 8.0), (400, 7.0)]
    assert [line["images_seen"] for line in lines if "net/loss" in line] == [200]
    sessions = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    assert not (tmp_path / "loggers.lock").exists()


@pytest.mark.parametrize("sent", ["[]", "{"])
def test_the_job_that_evaluates_sends_its_result(
    sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger, work = mock.Mock(), Work(tmp_path, 100, "quick")
    monkeypatch.setattr("dist_train.monitoring.loggers.start_loggers", lambda *_: [logger])
    task = mock.Mock(rank=0, job_id="7")
    monkeypatch.setattr(schedule, "this_task", lambda: task)
    monkeypatch.setattr(schedule, "run_in_rank", lambda evaluate: evaluate(task))
    result = json.dumps({"metrics": {"fid": {"values": {"distance": 9.0}}}})
    monkeypatch.setattr(schedule, "run_command", lambda *_: work.unfinished.write_text(result))
    write_config(override(tiny_edm(), ["logging.wandb_project=x"]), tmp_path / "config.json")
    assert work.claim(1)
    (tmp_path / "evaluation" / ".mirrored.json").write_text(sent)
    assert EvalJob(work, ScheduledProtocol(name="quick", words=()), 1)() == "finished"
    lines = [call.args[0] for call in logger.write.call_args_list]
    assert work.result.exists()
    if sent == "[]":
        assert lines == [{"images_seen": 100, "quick/fid.distance": 9.0}]
    else:
        assert lines == []
        assert "is not sent to the run's loggers" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '[["100", 1]]', "\x00"])
def test_a_damaged_list_of_what_was_sent_stops_no_training(
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = mock.Mock()
    monkeypatch.setattr(metrics_log, "start_loggers", lambda logging, config, run_dir: [logger])
    _finish(tmp_path, 100, 9.0)
    (tmp_path / "evaluation" / ".mirrored.json").write_text(content)
    log = MetricsLog(tmp_path, 400, LoggingConfig(tensorboard=True), {})
    log.open(0)
    log.send_results()
    log.write(200, 1, {"net/loss": 0.5, "speed/images_per_second": 1.0})
    log.close()
    assert "is damaged" in caplog.text
    assert "remove it to have all of them sent again" in caplog.text
    assert [call.args[0]["images_seen"] for call in logger.write.call_args_list] == [200]
    logger.close.assert_called_once()
