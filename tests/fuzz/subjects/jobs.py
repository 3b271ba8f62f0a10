"""What Slurm's jobs and schedules note, and the site's profile."""

from __future__ import annotations

from pathlib import Path

from dist_train.monitoring.evaluations import RESULTS, all_values
from slurm.continuous_eval import reconcile
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.reconcile import Report, due
from slurm.continuous_eval.schedule import (
    EvaluationSchedule,
    ScheduledProtocol,
    read_schedule,
    write_schedule,
)
from slurm.jobs.records import JobDir, JobRecord
from slurm.monitor.status import run_status
from slurm.resources import Resources
from slurm.site import read_site
from tests.fuzz.subject import Difference, Result, Subject, as_a_command, digest

GONE = ("deleted", "a link to missing")
JOBS = ("11", "12", "13")
SNAPSHOTS = (100, 200, 300)
PROFILE = """\
partition = "gpu"
signal_seconds = {seconds}
shared = ["/shared"]
setup = ["module load cuda"]

[environment]
OMP_NUM_THREADS = "1"

[container]
image = "image.sif"
"""


def make_jobs(path: Path, number: int) -> None:
    jobs = JobDir(path)
    for job_id in JOBS:
        jobs.write(
            JobRecord(
                job_id=job_id, kind="train", name=f"run{number}", cluster="slurm", cwd="/",
                submitted=float(job_id), code="", logs="/nowhere", resources=Resources(),
            )
        )  # fmt: skip
        jobs.note(job_id, "start", restart=0, images_seen=0, hosts=["n1"], ranks=2)
        jobs.note(job_id, "exit", restart=0, rank=0, code=number)


def known_jobs(tree: Path) -> Result:
    """Return what is known of each job."""
    with as_a_command():
        status = run_status(tree, {})
    return {f"{job['job_id']}.": digest(job) for job in status["jobs"]}


def a_job_may_be_skipped(difference: Difference) -> bool:
    """A damaged record is skipped and named; lines of a log have no checksum."""
    name = difference.mutation.file
    if difference.mutation.what in GONE:
        return True
    own = Path(name).name.partition(".")[0] + "."
    is_log = name.endswith("attempts.jsonl")
    others = [job for job in difference.changed if job != own]
    if "exchanged" in difference.mutation.what or "place" in difference.mutation.what:
        return is_log or all(job in difference.said for job in difference.changed)
    return not others and (is_log or own in difference.said)


def make_schedule(path: Path, number: int) -> None:
    """Write a run with three snapshots, one of them evaluated, one claimed and one due."""
    path.mkdir()
    (path / "config.json").write_text('{"total_images": 400}')
    for images in SNAPSHOTS:
        snapshot = path / "snapshots" / f"{images:012d}"
        snapshot.mkdir(parents=True)
        (snapshot / "snapshot.json").touch()
    protocol = ScheduledProtocol(name="quick", words=("--reference", f"r{number}.npz"))
    write_schedule(
        path, EvaluationSchedule(protocols=(protocol,), best="quick:fd.distance", patience=3)
    )
    first, second, _ = (Work(path, images, "quick") for images in SNAPSHOTS)
    first.result_dir.mkdir(parents=True)
    RESULTS.write(first.result, {"metrics": {"fd": {"values": {"distance": 1.0 + number}}}})
    second.claim(1)
    second.submitted(1, f"{5 + number}")
    second.start(1, f"{5 + number}")


def schedule(tree: Path) -> Result:
    """Return which evaluations are due, and the values of those that are done."""
    reconcile.queued = lambda ids=None: {"5": None}  # type: ignore[assignment,return-value]
    with as_a_command():
        plan = read_schedule(tree)
        if plan is None:
            return {"plan": "none"}
        report = Report()
        wanted = {
            f"{job.work.images:012d}": f"due, {job.attempt}" for job in due(tree, plan, report)
        }
        print(report)
        values = {f"value of {images:012d}": digest(value) for images, value in all_values(tree)}
    return {"plan": digest(plan), "alive": str(report.alive)} | wanted | values


def damage_is_said(difference: Difference) -> bool:
    """Damaged schedules, claims and results are named."""
    name = difference.mutation.file
    if difference.mutation.what in GONE:
        return True
    either = (name, difference.mutation.what.removeprefix("exchanged with "))
    return any(n in difference.said for n in either) or "in its place" in difference.mutation.what


def make_profile(path: Path, number: int) -> None:
    path.mkdir()
    (path / "site.toml").write_text(PROFILE.format(seconds=60 + number))


def profile(tree: Path) -> Result:
    with as_a_command():
        return {name: digest(value) for name, value in vars(read_site(tree / "site.toml")).items()}


def people_write_it(difference: Difference) -> bool:
    return True


SUBJECTS = (
    Subject("slurm.jobs", make_jobs, known_jobs, ("slurm/jobs/*",), a_job_may_be_skipped),
    Subject("slurm.schedule", make_schedule, schedule, ("evaluation/**/*",), damage_is_said),
    Subject("slurm.site", make_profile, profile, ("site.toml",), people_write_it),
)
