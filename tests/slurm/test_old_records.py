"""Job records and evaluation schedules of older versions load, and older code reads today's.

A running job may have been submitted by an older version, whose code reads these files too.
"""

from __future__ import annotations

import json
from pathlib import Path

from models.config_io import from_json, to_json
from slurm.continuous_eval.schedule import read_schedule, write_schedule
from slurm.jobs.records import JobDir
from slurm.resources import Resources

RESOURCES = {
    "type": "Resources", "nodes": 2, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 0,
    "minutes": 60, "min_minutes": 0, "partition": "", "account": "", "qos": "", "constraint": "",
    "reservation": "", "mem": "", "comment": "", "mail_type": "", "mail_user": "", "exclude": "",
    "nodelist": "", "exclusive": False, "dependency": "", "begin": "", "array_parallelism": 0,
    "nice": 0, "fallback_nodes": [1], "shrink_minutes": 360,
}  # fmt: skip
RECORD = {
    "type": "JobRecord", "job_id": "12", "kind": "eval", "name": "eval-run", "cluster": "slurm",
    "submitted": 1.5, "cwd": "/project", "code": "/project/run/slurm/code/0123456789ab",
    "resources": RESOURCES, "logs": "/project/run/slurm/jobs",
    "tasks": ["quick of run at 8 images", "full of run at 8 images"],
    "policy": {"type": "Policy", "max_stalled": 5, "max_crashes": 3, "backoff_seconds": 60},
}  # fmt: skip
SCHEDULE = {
    "type": "EvaluationPlan",
    "protocols": [{"type": "ScheduledProtocol", "name": "quick", "words": ["--reference", "r.npz"],
                   "before": ["stage1"], "every_images": 8}],
    "resources": RESOURCES, "best": "quick:fd.distance", "highest": False, "patience": 5,
    "keep_snapshots": 3, "max_attempts": 3, "backoff_seconds": 600.0, "claim_seconds": 600.0,
}  # fmt: skip


def test_job_records(tmp_path: Path) -> None:
    records_dir = JobDir(tmp_path).records_dir
    records_dir.mkdir(parents=True)
    (records_dir / "12.json").write_text(json.dumps(RECORD))
    (record,) = JobDir(tmp_path).records()
    assert record.task_ids == ["12_0", "12_1"]
    assert json.loads(json.dumps(to_json(record))) == RECORD


def test_evaluation_schedules(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "plan.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SCHEDULE))
    schedule = read_schedule(tmp_path)
    assert schedule is not None
    assert schedule.protocols[0].words == ("--reference", "r.npz")
    write_schedule(tmp_path, schedule)
    assert json.loads(path.read_text()) == SCHEDULE


def test_newer_options_are_written_only_where_they_are_set() -> None:
    assert to_json(Resources()).keys() == RESOURCES.keys()
    newer = Resources(gpu_type="a100", sbatch={"licenses": "x:1"})
    written = json.loads(json.dumps(to_json(newer)))
    assert written.keys() - RESOURCES.keys() == {"gpu_type", "sbatch"}
    assert from_json(Resources, written) == newer
