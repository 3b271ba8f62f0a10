"""What runs have cost, by sacct, and how much of it was progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slurm.endings import exit_code, in_words
from slurm.folder import JobFolder, read_lines
from slurm.queue import accounting
from slurm.speed import productive_seconds

SACCT = ("JobID", "State", "ElapsedRaw", "NNodes", "AllocTRES", "Start", "End", "ExitCode")


def run_history(folder: Path) -> dict[str, Any]:
    """Return what a folder's jobs have cost, by sacct, and how much of it was progress."""
    records = [r for r in JobFolder(folder).records() if r.cluster == "slurm"]
    kinds = {job_id: record.kind for record in records for job_id in record.task_ids}
    rows = accounting((record.job_id for record in records), SACCT)
    runs = [row | {"kind": kinds[row["JobID"]]} for row in rows if row["JobID"] in kinds]
    training = sum(float(row["ElapsedRaw"]) for row in runs if row["kind"] == "train")
    productive = productive_seconds(read_lines(folder / "metrics.jsonl"))
    return {
        "folder": str(folder),
        "runs": runs,
        "gpu_hours": sum(_gpus(row) * float(row["ElapsedRaw"]) for row in runs) / 3600,
        "node_hours": sum(int(row["NNodes"]) * float(row["ElapsedRaw"]) for row in runs) / 3600,
        "requeues": len(runs) - len({row["JobID"] for row in runs}),
        "training_seconds": training,
        "productive_seconds": productive,
        "goodput": min(productive / training, 1.0) if training else None,
    }


def _gpus(row: Mapping[str, str]) -> int:
    for entry in row["AllocTRES"].split(","):
        name, _, count = entry.partition("=")
        if name == "gres/gpu":
            return int(count)
    return 0


def _ended(row: Mapping[str, str]) -> str:
    return in_words(row["State"].split()[0], exit_code(row["ExitCode"]), "")


def format_history(history: Mapping[str, Any]) -> str:
    """Return a folder's history as a table and a line of totals."""
    lines = [Path(history["folder"]).name]
    lines += [
        f"  {row['kind']:12} {row['JobID']:12} {_ended(row):24}"
        f" {row['Start']:20} {int(row['ElapsedRaw']):8,} s  {row['NNodes']} nodes"
        for row in history["runs"]
    ]
    goodput = history["goodput"]
    text = f"  {history['gpu_hours']:.2f} GPU-hours, {history['node_hours']:.2f} node-hours"
    text += f", {history['requeues']} requeues"
    lines.append(text + (f", goodput {100 * goodput:.0f}%" if goodput is not None else ""))
    return "\n".join(lines)
