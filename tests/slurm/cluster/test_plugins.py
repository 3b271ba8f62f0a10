"""A plugin's workflow on a real Slurm: its source, objective, detector, metric, protocol in jobs.

Only the submitting process finds the package: jobs have the copy that was made with the code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from slurm.__main__ import main
from slurm.jobs.records import JobDir
from tests.plugins import plugins_apart
from tests.slurm.cluster import helpers
from tests.test_plugin_example import install

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TWO_NODES = ["--nodes=2", "--tasks-per-node=1", "--gpus-per-node=0", "--time=10", "--tasks=2"]


def test_a_plugins_workflow_runs_to_its_table(cluster: Path) -> None:
    root, source = cluster / "flow", cluster / "images.npy"
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.save(source, images)
    arguments = ["workflow", "flow_debug", "--root", str(root), "--source", str(source)]
    settings = ["total_images=32", "objective.sampling.steps=2", "logging.grid_seeds=0"]
    with plugins_apart():
        sys.path.append(str(install(cluster / "plugin")))
        assert main([*arguments, *TWO_NODES, "--images=8", *settings]) == 0
    helpers.wait_for_end(*[record.job_id for record in JobDir(root).records()], seconds=400)
    logs = [path.read_text() for path in sorted(root.glob("**/slurm/jobs/*.err"))]
    result = root / "evaluation" / "result.json"
    assert result.exists(), logs
    assert "shift_thumbnail_pixels" in json.loads(result.read_text())["metrics"]
    attempts = JobDir(root / "flow").attempts(JobDir(root / "flow").records()[-1].job_id)
    assert [a["ranks"] for a in attempts if a["event"] == "start"] == [2]
    assert (root / "slurm" / "done" / "table").exists(), logs
