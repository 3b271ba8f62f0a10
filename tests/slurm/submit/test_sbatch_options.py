"""Options as sbatch has them: on the command line, in the user's shell, in the site profile."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from models.config_io import ConfigError
from slurm import slurm_cli
from slurm.__main__ import main
from slurm.jobs.interpreter import SOURCE, code_variables, outside_environment
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Resources
from slurm.sbatch_keys import shell_options
from slurm.site import Site, read_site
from slurm.submit.preflight import check_script
from slurm.submit.sbatch_options import OPTIONS, requested_by
from tests.slurm.project import make_run

RUN = ["--nodes=1", "--gpus-per-node=4", "global_batch_size=96"]
SITE = """
account = "of-site"
mem = "200G"
cpus_per_task = 12
[sbatch]
licenses = "matlab:1"
switches = 2
spread-job = true
power = false
gres = "gpu:4"
[srun]
mpi = "pmix"
exact = true
"""


@pytest.fixture(autouse=True)
def login_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell outside of jobs, without options of Slurm."""
    for name in os.environ:
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site profile with tables of further options."""
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


class Script:
    """The batch script of a dry run."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        self.options = {line.removeprefix("#SBATCH --") for line in lines if "#SBATCH" in line}
        self.srun = next(line for line in lines if line.startswith("srun "))
        self.lines = lines

    def names(self) -> set[str]:
        """The names of its options."""
        return {option.partition("=")[0] for option in self.options}


@pytest.fixture
def dry_run(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Return a function that gives the batch script of `train` with some options."""

    def run(*options: str) -> Script:
        arguments = ["train", "rdm_debug_edm16", "--run-dir", str(tmp_path / "new"), *RUN]
        assert main([*arguments, "--site", str(site), "--dry-run", *options]) == 0
        return Script(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ("--gpus-per-node a100:4", "gpus-per-node=a100:4 ntasks-per-node=4", ""),
        ("--gpus-per-node=h100", "gpus-per-node=h100:1 ntasks-per-node=1", ""),
        ("--gpus-per-node 4 --gres gpu:a100:4", "gres=gpu:a100:4 ntasks-per-node=4",
         "gpus-per-node"),
        ("--gres gpu:2,shard:1 --gpus-per-node 2", "gres=gpu:2,shard:1 ntasks-per-node=2",
         "gpus-per-node"),
        ("--gres nvme:1", "gres=nvme:1 gpus-per-node=4", ""),
        ("--gpus-per-task a100:1 --tasks-per-node 4", "gpus-per-task=a100:1 ntasks-per-node=4",
         "gpus-per-node gres"),
        ("--cpus-per-gpu 6", "cpus-per-gpu=6", "cpus-per-task"),
        ("--mem-per-cpu 4G", "mem-per-cpu=4G", "mem"),
        ("--mem-per-gpu=40G", "mem-per-gpu=40G", "mem"),
        ("--switches 1@10:00", "switches=1@10:00", ""),
        ("--licenses fs:2", "licenses=fs:2", ""),
        ("-L fs:3", "licenses=fs:3", ""),
        ("--hint nomultithread", "hint=nomultithread", ""),
        ("--signal USR2@300", "signal=USR2@300", ""),
        ("--signal=SIGUSR2", "signal=USR2@60", ""),
        ("-N 2 -c 3 -t 2:00:00 -p big -A me -q fast -C ib -x n1 -w n2 -d afterok:7 -b now -J x",
         "nodes=2 cpus-per-task=3 time=120 partition=big account=me qos=fast constraint=ib"
         " exclude=n1 nodelist=n2 dependency=afterok:7 begin=now job-name=x", ""),
        ("--ntasks-per-node 8 --job-name run1", "ntasks-per-node=8 job-name=run1", ""),
        ("--nodes 2-4", "nodes=2-4", ""),
        ("--exclusive", "exclusive", ""),
        ("--exclusive=user", "exclusive=user", ""),
        ("--sbatch gpu-bind=closest --sbatch overcommit", "gpu-bind=closest overcommit", ""),
        ("--sbatch=gpu_freq=high,memory=low", "gpu-freq=high,memory=low", ""),
        ("--sbatch partition=other --sbatch time=90", "partition=other time=90", ""),
        ("--sbatch=--core-spec=2", "core-spec=2", ""),
    ],
)  # fmt: skip
def test_options_reach_sbatch(dry_run, options: str, present: str, absent: str) -> None:  # type: ignore[no-untyped-def]
    script = dry_run(*options.split())
    assert set(present.split()) <= script.options
    assert not set(absent.split()) & script.names()


def test_fewer_nodes_than_the_most_have_as_many_tasks_as_they_hold(dry_run) -> None:  # type: ignore[no-untyped-def]
    lines = dry_run("--nodes", "2-4").lines
    assert "export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * 4)) SLURM_NPROCS=$((" in "\n".join(lines)
    assert not any("SLURM_NTASKS" in line for line in dry_run("--nodes", "2").lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gpus-per-node=many:x", "is no number of GPUs, such as 8 or a100:8"),
        ("--gpus-per-node=4 --gres=gpu:8", "--gpus-per-node contradicts --gres; leave one out"),
        ("--gres=gpu:a100:1,gpu:v100:1", "has GPUs of several kinds"),
        ("--mem=4G --mem-per-cpu=2G", "--mem-per-cpu contradicts --mem=4G"),
        ("--cpus-per-gpu=4 --cpus-per-task=3", "--cpus-per-gpu contradicts --cpus-per-task=3"),
        ("--signal=TERM@60", "jobs save at USR2 and at no other"),
        ("--signal=B:USR2@60", "jobs save at USR2 and at no other"),
        ("--nodes=4-2", "--nodes=4-2: the first is the smaller"),
        ("--nodes=two", "'two' is no number of nodes, such as 4 or 2-4"),
        ("--nodes=2-4 global_batch_size=64", "--nodes=2-4: on 3 nodes global_batch_size=64"),
        ("--nodes=2-4 --min-nodes=1", "lets Slurm choose at the start already"),
        ("--sbatch=output=/x", "relaywave sets sbatch's output itself; leave it out"),
        ("--sbatch=array=0-3", "relaywave sets sbatch's array itself"),
        ("--sbatch=ntasks=3", "use --nodes and --tasks-per-node"),
        ("--sbatch=job_name=x", "use --name"),
        ("--sbatch=a;b=3", "'a;b' is no name of an option"),
        ("--time=soon", "the time limit 'soon' is not like"),
        ("--cpus-per-task=x", "'x' is not a whole number"),
        ("--nodes=99999999999999", "is too large"),
    ],
)
def test_options_that_jobs_could_not_run_with(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "rdm_debug_edm16", "--run-dir", str(tmp_path / "new"), *RUN[1:2]]
    given = [*options.split(), *([] if "batch_size" in options else [RUN[2]])]
    arguments = [*run, "--nodes=1", *given]
    if "--nodes" in options:
        arguments.remove("--nodes=1")
    if "gpus" in options:
        arguments.remove(RUN[1])
    try:
        code: object = main([*arguments, "--dry-run"])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_shell_is_above_the_site_and_below_the_command_line(
    dry_run,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "account=of-site" in dry_run().options
    shell = {"ACCOUNT": "of-shell", "TIMELIMIT": "2:00:00", "MEM_PER_NODE": "9G",
             "REQ_SWITCH": "1", "WAIT4SWITCH": "5:00", "GPU_BIND": "closest",
             "EXCLUSIVE": ""}  # fmt: skip
    for name, value in shell.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    expected = "account=of-shell time=120 mem=9G switches=1@5:00 gpu-bind=closest exclusive"
    assert set(expected.split()) <= dry_run().options
    assert "account=mine" in dry_run("--account=mine").options
    assert "mem" not in dry_run("--mem-per-cpu=1G").names(), "the shell's mem is replaced"
    monkeypatch.setenv("SBATCH_MEM_PER_CPU", "3G")
    monkeypatch.delenv("SBATCH_MEM_PER_NODE")
    assert "mem-per-cpu" not in dry_run("--mem=1G").names(), "and the other way round"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "account=of-site" in dry_run().options, "within a job they are the job's"


def test_variables_of_the_shell_that_are_invalid_or_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "rdm_debug_edm16", "--run-dir", str(tmp_path / "new"), *RUN, "--dry-run"]
    monkeypatch.setenv("SBATCH_OUTPUT", "mine.log")
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "output, which a variable SBATCH_* sets, has no effect" in printed.err
    assert "mine.log" not in printed.out
    monkeypatch.setenv("SBATCH_TIMELIMIT", "soon")
    assert main(arguments) == 2
    assert "a variable SBATCH_* sets time: the time limit 'soon'" in capsys.readouterr().err


def test_what_is_validated_is_what_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nenv | grep SBATCH_ >&2 && exit 1\nexit 0\n")
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    assert slurm_cli.submission_problem("", dict(os.environ)) == "SBATCH_ACCOUNT=other"
    check_script("#!/bin/bash\n")  # sbatch sees no variables that are above the script
    assert not [name for name in outside_environment() if name.startswith("SBATCH_")]
    assert shell_options() == {"account": "other"}


def test_tables_of_the_site_profile(dry_run) -> None:  # type: ignore[no-untyped-def]
    script = dry_run()
    assert {"licenses=matlab:1", "switches=2", "spread-job"} <= script.options
    assert not {"power", "gres"} & script.names(), "false leaves out; sizes are of each job"
    assert "--mpi=pmix --exact" in script.srun
    assert "licenses=fs:1" in dry_run("--licenses=fs:1").options
    assert "mem-per-gpu=1G" in dry_run("--mem-per-gpu=1G").options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[sbatch]\npartition = "x"', "write partition outside of"),
        ("[sbatch]\nnodes = 2", "sbatch.nodes is of each job: give --nodes"),
        ('[sbatch]\noutput = "x"', "relaywave sets sbatch's output itself"),
        ('[sbatch]\nlicenses = "a\\nb"', "must be one line of text"),
        ('[srun]\noutput = "x"', "srun.output: is no option of srun, or one that relaywave sets"),
        ("[srun]\nlabels = [1]", "labels"),
    ],
)
def test_tables_that_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises((ConfigError, ValueError), match=message):
        read_site(tmp_path / "site.toml")


def test_modules_on_pythonpath_stay_after_our_code(
    dry_run,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = next(line for line in dry_run().lines if "PYTHONPATH=" in line)
    for before, after in (("/module/lib", ":/module/lib"), ("", "")):
        command = ["bash", "-c", f'{line}\necho "$PYTHONPATH"']
        environment = {"PYTHONPATH": before} if before else {}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        code, mark, rest = done.stdout.strip().partition(":")
        assert "/slurm/code/" in code
        assert mark + rest == after
    monkeypatch.setenv("PYTHONPATH", f"{SOURCE}:/module/lib")
    assert outside_environment()["PYTHONPATH"] == "/module/lib", "it does not grow from job to job"
    assert code_variables()["PYTHONPATH"] == f"{SOURCE}:/module/lib"


@pytest.mark.parametrize(
    ("options", "present"),
    [
        ("", "nodes=4 ntasks-per-node=8 gpus-per-node=a100:8 licenses=x:1 mem-per-gpu=9G"),
        ("--gpus-per-node=4", "nodes=4 ntasks-per-node=4 gpus-per-node=4 licenses=x:1"),
        ("--gpus-per-node=4 --tasks-per-node=2", "ntasks-per-node=2 gpus-per-node=4"),
        ("--gres=gpu:h100:2", "ntasks-per-node=2 gres=gpu:h100:2"),
        ("--licenses=y:1 --mem=3G", "licenses=y:1 mem=3G"),
        ("--nodes=1-2", "nodes=1-2"),
    ],
)
def test_resume_derives_what_train_derives(
    options: str, present: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run", "global_batch_size=64")
    further = {"licenses": "x:1", "mem-per-gpu": "9G"}
    last = Resources(nodes=4, tasks_per_node=8, gpus_per_node=8, gpu_type="a100",
                     fallback_nodes=(2, 1), sbatch=further)  # fmt: skip
    JobDir(run_dir).write(
        JobRecord(job_id="1", kind="train", name="run", cluster="slurm", submitted=0.0,
                  cwd=str(tmp_path), code="/x", logs="", resources=last)
    )  # fmt: skip
    assert main(["resume", str(run_dir), "--dry-run", *options.split()]) == 0
    script = Script(capsys.readouterr().out)
    assert set(present.split()) <= script.options
    assert ("mem-per-gpu" in script.names()) != ("--mem=3G" in options)


def test_every_option_has_a_help_and_fits_resources() -> None:
    for name, option in OPTIONS.items():
        assert option.help, name
    fields = requested_by([("gres", OPTIONS["gres"].parse("gpu:2"))])
    assert Resources(**fields).options(Site()) == {"gres": "gpu:2"}
