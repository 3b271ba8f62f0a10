"""Submitting jobs through submitit: to Slurm, or as processes of this machine."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from slurm.jobs import health
from slurm.jobs.batch_end import end_command
from slurm.jobs.interpreter import PYTHON, SOURCE, code_variables, outside_environment
from slurm.jobs.jobs import Job, TrainJob
from slurm.jobs.ranks import free_port
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Policy, Resources, check_job_name
from slurm.site import Container, Site
from slurm.slurm_cli import SlurmError
from slurm.submit.code_copy import code_dir, copy_code

Executor = Literal["slurm", "local", "debug"]
HEALTH = Path(health.__file__).relative_to(SOURCE)
TIMEOUT_REQUEUES = 100_000
"""submitit's own limit on requeues after a time limit; ours (jobs/requeue.py) counts progress."""

_started: list[Any] = []
"""What this process has submitted: kept, as the process of a local job runs on."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job, or an array of jobs, to submit.

    Attributes:
        kind: The command: `train`, `eval`, ...
        name: Job name.
        root: The directory whose `slurm/` holds the job's records: a run directory, for instance.
        jobs: The job, or the tasks of an array.
        resources: What each of them requests.
        site: The site profile.
        executor: Slurm, processes of this machine, or this process.
        code: Directory of the code to run; None copies the present code.
        cwd: Directory that relative paths start from; None is the current one.
    """

    kind: str
    name: str
    root: Path
    jobs: Sequence[Job]
    resources: Resources
    site: Site
    executor: Executor = "slurm"
    code: Path | None = None
    cwd: Path | None = None

    def __post_init__(self) -> None:
        check_job_name(self.name)
        if not self.jobs:
            raise ValueError(f"{self.name} has no job")


def submit(submission: Submission) -> JobRecord:
    """Submit, write the record, and return it.

    Raises:
        SlurmError: Slurm rejects it.
    """
    jobs = JobDir(submission.root.absolute())
    jobs.records_dir.mkdir(parents=True, exist_ok=True)
    code = submission.code or copy_code(jobs.slurm_dir)
    executor = _submitit_executor(submission, jobs, code)
    with _environment_of_jobs(submission, code):
        submitted = _submit_all(executor, submission.jobs)
        _started.extend(submitted)
        record = JobRecord(
            job_id=_array_id(submitted[0].job_id, submission.executor),
            kind=submission.kind,
            name=submission.name,
            cluster=submission.executor,
            submitted=time.time(),
            cwd=str(submission.cwd or Path.cwd()),
            code=str(code),
            resources=submission.resources,
            logs=str(jobs.records_dir),
            tasks=tuple(job.title for job in submission.jobs),
            policy=getattr(submission.jobs[0], "policy", Policy()),
        )
        _write_records(jobs, record, submission.jobs)
        if submission.executor == "debug":
            for job in submitted:
                job.results()
    return record


def _array_id(job_id: str, executor: Executor) -> str:
    """Return the id of a job, or of the array that it is a task of."""
    return job_id.partition("_")[0] if executor == "slurm" else job_id


def _write_records(job_dir: JobDir, record: JobRecord, jobs: Sequence[Job]) -> None:
    """Write the record, and into each run directory of an array of runs that of its task."""
    job_dir.write(record)
    if len(jobs) > 1:
        for job_id, job in zip(record.task_ids, jobs, strict=True):
            if isinstance(job, TrainJob):
                own = replace(record, job_id=job_id, kind="train", tasks=(job.title,))
                JobDir(job.run_dir).write(own)


def batch_script(submission: Submission) -> str:
    """Return the exact batch script that `submit` would give to sbatch; writes nothing."""
    from submitit.slurm import slurm as submitit_slurm

    jobs = JobDir(submission.root.absolute())
    code = submission.code or code_dir(jobs.slurm_dir)
    command = (
        f"{_python(submission)} -u -m submitit.core._submit {shlex.quote(str(jobs.records_dir))}"
    )
    parameters = slurm_parameters(submission, code)
    if len(submission.jobs) > 1:
        parameters["map_count"] = len(submission.jobs)
    text: str = submitit_slurm._make_sbatch_string(
        command=command, folder=jobs.records_dir, **parameters
    )
    return text


def slurm_parameters(submission: Submission, code: Path) -> dict[str, Any]:
    """Return all parameters of submitit's Slurm executor."""
    site, resources = submission.site, submission.resources
    parameters = resources.parameters(site)
    srun_arguments = _srun_arguments(submission, parameters.get("cpus_per_task"))
    parameters["additional_parameters"]["chdir"] = str(submission.cwd or Path.cwd())
    return {
        **parameters,
        "job_name": submission.name,
        "setup": [
            *_setup(site, code),
            *_end(submission),
            *_rendezvous(resources),
            *_task_count(resources),
            *_health(submission, srun_arguments),
        ],
        "srun_args": srun_arguments,
    }


def _setup(site: Site, code: Path) -> list[str]:
    """Return the lines of the batch script before the job."""
    variables = {
        "PYTHONSAFEPATH": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        **site.environment,
    }
    if site.source:  # for what submits others: evaluations of a run
        variables["RELAYWAVE_SITE"] = site.source
    if site.network_interface:
        variables["RELAYWAVE_INTERFACE"] = site.network_interface
    if site.scratch:
        variables["RELAYWAVE_SCRATCH"] = site.scratch
    limits = ["ulimit -c 0", *([f"ulimit -n {site.open_files}"] if site.open_files else [])]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # before what modules and the user's shell have put there, which tasks may need
    exports.append(f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return [*site.setup, *limits, *exports]


def _rendezvous(resources: Resources) -> list[str]:
    """Return what finds a port for all tasks; the batch script runs it on rank 0's node."""
    if resources.world_size == 1:
        return []
    return [f"RELAYWAVE_PORT=$({PYTHON} -m slurm.jobs.ranks) || exit 1", "export RELAYWAVE_PORT"]


def _task_count(resources: Resources) -> list[str]:
    """Return what sets the number of tasks if the job may get fewer nodes than it first requested.

    Slurm keeps the number of the submission in the environment when a request is lowered.
    """
    if not (resources.fallback_nodes or resources.fewest_nodes):
        return []
    tasks = f"$((SLURM_JOB_NUM_NODES * {resources.tasks_per_node}))"
    return [f"export SLURM_NTASKS={tasks} SLURM_NPROCS={tasks}"]


def _health(submission: Submission, srun_arguments: Sequence[str]) -> list[str]:
    """Return what tries the nodes of training before its ranks start, as the site wants it.

    Code of an earlier submission may be too old for it.
    """
    wanted, gpus = submission.site.health_check, submission.resources.gpus_per_node
    can = submission.code is None or (submission.code / HEALTH).exists()
    if wanted == "never" or not (gpus or wanted == "always") or not can:
        return []
    if not isinstance(submission.jobs[0], TrainJob):
        return []
    return health.step(_python(submission), _notes_root(submission), srun_arguments, gpus)


def _notes_root(submission: Submission) -> str:
    """Return the directory whose `slurm/` has the notes of a job, or of a task, for a shell."""
    job = submission.jobs[0]
    if not isinstance(job, TrainJob):
        return shlex.quote(str(JobDir(submission.root.absolute()).root))
    if len(submission.jobs) > 1:
        return '"${runs[$SLURM_ARRAY_TASK_ID]}"'
    return shlex.quote(str(job.run_dir))


def _end(submission: Submission) -> list[str]:
    """Return what settles the end of the batch script, whatever ends it, and watches training.

    Both run on the node itself, as the tasks' container may lack Slurm's commands. The signals that
    Slurm sends to the batch script, too, only end what it waits for.
    """
    job, root, lines = submission.jobs[0], _notes_root(submission), []
    trains = isinstance(job, TrainJob)
    if trains and len(submission.jobs) > 1:
        run_dirs = " ".join(shlex.quote(str(job.run_dir)) for job in submission.jobs
                            if isinstance(job, TrainJob))  # fmt: skip
        lines = [f"runs=({run_dirs})"]
    settle = end_command(
        PYTHON, root, trains=trains, signal_seconds=submission.resources.margin(submission.site),
        policy=getattr(job, "policy", Policy()),
    )  # fmt: skip
    watcher = "kill $watcher 2>/dev/null; wait $watcher; " if trains else ""
    return [
        *lines,
        f"end() {{ code=$?; trap '' TERM USR1 USR2; {settle}; code=$?; {watcher}exit $code; }}",
        "trap : TERM USR1 USR2",
        *([f"{PYTHON} -m slurm.jobs.watch {root} & watcher=$!"] if trains else []),
        "trap end EXIT",
    ]


def _srun_arguments(submission: Submission, cpus_per_task: int | None) -> list[str]:
    container = _container(submission)
    arguments = ["--kill-on-bad-exit=1"]
    if cpus_per_task:  # since Slurm 22.05, srun does not inherit it from the batch script
        arguments.append(f"--cpus-per-task={cpus_per_task}")
    for key, value in submission.site.srun.items():
        if value is not False:
            arguments.append(f"--{key}" if value is True else f"--{key}={value}")
    if submission.site.cpu_bind:
        arguments.append(f"--cpu-bind={submission.site.cpu_bind}")
    if container.image and container.runtime == "pyxis":
        arguments.append(f"--container-image={container.image}")
        if container.mounts:
            arguments.append(f"--container-mounts={','.join(container.mounts)}")
    return arguments


def _python(submission: Submission) -> str:
    """Return the command that starts Python in a task, for a shell."""
    container = _container(submission)
    if not container.image:
        return PYTHON
    if container.runtime == "pyxis":
        return shlex.join([container.python, "-P"])
    return shlex.join(["apptainer", "exec", "--nv", *_binds(container), container.image,
                       container.python, "-P"])  # fmt: skip


def _container(submission: Submission) -> Container:
    """Return what the tasks run in: no container where they need Slurm's commands."""
    needs_slurm = getattr(submission.jobs[0], "NEEDS_SLURM", False)
    return Container() if needs_slurm else submission.site.container


def _binds(container: Container) -> list[str]:
    return [f"--bind={mount}" for mount in container.mounts]


def _submitit_executor(submission: Submission, jobs: JobDir, code: Path) -> Any:
    import submitit

    resources = submission.resources
    if submission.executor == "slurm":
        executor = submitit.SlurmExecutor(
            jobs.records_dir, max_num_timeout=TIMEOUT_REQUEUES, python=_python(submission)
        )
        executor.update_parameters(**slurm_parameters(submission, code))
        return executor
    if resources.nodes > 1:
        raise ValueError(
            f"--nodes={resources.nodes}: without Slurm there is only this machine; set it to 1"
        )
    if submission.executor == "debug":
        return submitit.DebugExecutor(jobs.records_dir)
    local = submitit.LocalExecutor(
        jobs.records_dir, max_num_timeout=TIMEOUT_REQUEUES, python=PYTHON
    )
    local.update_parameters(
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=resources.minutes,
        signal_delay_s=resources.margin(submission.site),
    )
    return local


def _submit_all(executor: Any, jobs: Sequence[Job]) -> list[Any]:
    """Submit one job, or several as an array."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        if len(jobs) == 1:
            with _detached(executor):
                return [executor.submit(jobs[0])]
        with _detached(executor), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
        return submitted
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise SlurmError(f"Slurm rejected the job: {lines[-1] if lines else error}") from None


@contextmanager
def _detached(executor: Any) -> Iterator[None]:
    """Start processes of this machine without the terminal's pipe and its Ctrl-C.

    Whoever reads the output of the command would otherwise wait for the end of the jobs. Ctrl-C is
    for the command; submitit's controller would kill the ranks at it before they have saved.
    """
    import submitit

    if not isinstance(executor, submitit.LocalExecutor):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (0, 1, 2)}
    nowhere = os.open(os.devnull, os.O_RDWR)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for number in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


def _threads(resources: Resources) -> int:
    """Return the threads of a rank on this machine: its share of the cores."""
    cores = len(os.sched_getaffinity(0))
    return resources.cpus_per_task or max(cores // resources.tasks_per_node, 1)


@contextmanager
def _environment_of_jobs(submission: Submission, code: Path) -> Iterator[None]:
    """Let jobs start from a clean environment, also when a job submits them.

    Without Slurm, processes get the variables that the batch script would set.
    """
    before = dict(os.environ)
    clean = outside_environment()
    if submission.executor == "local":
        port = str(free_port(str(os.getpid()), 0))
        clean = {"OMP_NUM_THREADS": str(_threads(submission.resources)), **clean}
        clean |= {**code_variables(code), "RELAYWAVE_PORT": port, **submission.site.environment}
    for name in before.keys() - clean.keys():
        del os.environ[name]
    os.environ.update(clean)
    try:
        yield
    finally:
        for name in clean.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
