"""Claims, rendezvous, code, records: everything that is decided without asking Slurm."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from submitit.core.utils import JobPaths, temporary_save_path

from models.config_io import ConfigError
from slurm.continuous_eval.leases import Work, create
from slurm.jobs import ranks
from slurm.jobs.interpreter import SOURCE, outside_environment
from slurm.jobs.ranks import (
    FIRST_PORT,
    PORTS,
    Task,
    free_port,
    interface_addresses,
    interface_towards,
    is_free,
    rendezvous_ports,
)
from slurm.jobs.records import JobRecord, images_saved
from slurm.jobs.throughput import productive_seconds
from slurm.monitor.commands import TaskLogs
from slurm.resources import Resources, parse_minutes
from slurm.submit.code_copy import check_code, code_digest, code_files, copy_code


def test_the_partial_file_of_a_killed_rank_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit never writes a file whose temporary one is there."""
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(paths=paths))
    for rank, left in ((0, []), (1, ["7_submitted.pkl.save_tmp"])):
        paths = JobPaths(tmp_path, "7", rank)
        for path in (paths.result_pickle, paths.submitted_pickle):
            path.with_name(f"{path.name}.save_tmp").touch()
        task = Task(rank, rank, 2, ("n1", "n2"), "7", 1)
        ranks._remove_partial_files(task)
        assert [path.name for path in tmp_path.iterdir()] == left
        with temporary_save_path(paths.result_pickle) as path:
            path.touch()
        paths.result_pickle.unlink()


def test_only_one_caller_claims_and_only_one_job_starts(tmp_path: Path) -> None:
    work = Work(tmp_path, 80, "quick")
    claims: list[bool] = []
    callers = [threading.Thread(target=lambda: claims.append(work.claim(1))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(claims) == [False] * 7 + [True]
    assert work.attempts == 1
    assert work.alive(1, [], patience=60.0), "its caller may still submit it"
    work.submitted(1, "12_0")
    assert work.alive(1, ["12_0"], patience=0.0)
    assert work.alive(1, [], 0.0, lambda: ["12_0"]), "submitted after the queue was asked"
    assert work.start(1, "12_0")
    assert work.alive(1, [], 0.0, lambda: ["12_0"]), "started after the queue was asked"
    assert work.start(1, "12_0"), "all tasks of the job, and its requeue"
    assert not work.start(1, "13"), "another job"
    assert not work.alive(1, [], patience=60.0)


def test_the_claim_of_a_killed_caller_expires_and_its_job_exits(tmp_path: Path) -> None:
    work = Work(tmp_path, 80, "quick")
    assert work.claim(1)
    assert not work.alive(1, [], patience=0.0), "its claim expired"
    assert work.claim(2)
    assert not work.start(1, "12"), "the job of the first caller starts anyway"
    assert work.start(2, "13")
    work.unfinished.write_text("{}")
    work.finish()
    assert work.result.exists()
    assert not work.unfinished.exists()


def test_create_leaves_nothing_behind(tmp_path: Path) -> None:
    assert create(tmp_path / "file", {"a": 1})
    assert not create(tmp_path / "file", {"a": 2})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_rendezvous_is_derived_from_the_job() -> None:
    task = Task(rank=3, local_rank=1, size=4, hosts=("n1", "n2"), job_id="12_3", restart=0)
    assert task.environment["MASTER_ADDR"] == "n1"
    assert task.environment["RANK"] == "3"
    ports = {next(rendezvous_ports(job, restart)) for job in ("12", "13", "12_3")
             for restart in (0, 1)}  # fmt: skip
    assert len(ports) == 6
    for job in (1, 17_999, 18_000, 123_456_789):
        tried = list(rendezvous_ports(str(job), 0))
        assert len(set(tried)) == len(tried)
        assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in tried)


def test_rank_0_is_reached_by_its_address_where_its_name_does_not_resolve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Task(1, 0, 2, ("no.such.host.invalid", "n2"), "1", 0)
    assert task.environment["MASTER_ADDR"] == "no.such.host.invalid", "nothing else is known"
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1")
    assert task.environment["MASTER_ADDR"] == "10.0.0.1"
    named = Task(1, 0, 2, ("localhost", "n2"), "1", 0)
    assert named.environment["MASTER_ADDR"] == "localhost"


@pytest.mark.parametrize("named", ["ib0", "=ib0", "ib0,ib1"])
def test_interfaces_are_meant_exactly(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("RELAYWAVE_INTERFACE", named)
    ranks.enter_rank(Task(0, 0, 1, ("here",), "1", 0))
    exact = named.removeprefix("=")
    assert os.environ["GLOO_SOCKET_IFNAME"] == exact, "gloo knows no mark"
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={exact}"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_is_taken_is_skipped(
    family: socket.AddressFamily,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command that the batch script calls on the first node."""
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    ports = [port for port in rendezvous_ports(str(os.getpid()), 0) if is_free(port)]
    with socket.socket(family, socket.SOCK_STREAM) as other:
        try:
            other.bind(("", ports[0]))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        other.listen()
        assert ranks.main() == 0
        assert int(capsys.readouterr().out) == ports[1], "the next in the order of this job"
        monkeypatch.setenv("RELAYWAVE_PORT", str(ports[1]))
        task = Task(rank=1, local_rank=0, size=2, hosts=("n1", "n2"), job_id="1", restart=0)
        assert task.environment["MASTER_PORT"] == str(ports[1]), "all tasks take that one"
    assert free_port(str(os.getpid()), 0) == ports[0]


def test_no_free_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(ranks, "is_free", lambda port: False)
    assert ranks.main() == 1
    error = capsys.readouterr().err
    assert "no port for the rendezvous is free" in error
    assert "12007" in error


RENDEZVOUS = """
import torch
from dist_train.runtime.world import init_world
from slurm.jobs.ranks import this_task, enter_rank, Task
import sys
rank, address, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
enter_rank(Task(rank, 0, 2, (address, "other"), "1", 0))
world = init_world()
assert world.all_reduce_sum(torch.ones(1)).item() == 2.0
world.close()
"""


@pytest.mark.distributed
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_ranks_meet_over_any_address_and_interface(family: socket.AddressFamily) -> None:
    """Over the first real network of this machine if it has one, else over loopback."""
    addresses = [a for a in interface_addresses() if not a.startswith(("127.", "fe80", "::1"))]
    version = {socket.AF_INET: ".", socket.AF_INET6: ":"}[family]
    found = [a for a in (*addresses, "127.0.0.1", "::1") if version in a and
             a in interface_addresses()]  # fmt: skip
    if not found:
        pytest.skip("no IPv6 on this machine")
    port = str(free_port(str(os.getpid()), 1))
    environment = {**os.environ, "RELAYWAVE_PORT": port}
    environment.pop("GLOO_SOCKET_IFNAME", None)
    started = [
        subprocess.Popen([sys.executable, "-c", RENDEZVOUS, str(rank), found[0], port],
                         env=environment, cwd=SOURCE)
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(120) for process in started] == [0, 0]


def test_the_interface_that_leads_to_rank_0() -> None:
    loopback = interface_addresses().get("127.0.0.1")
    assert loopback
    assert interface_towards("127.0.0.1") == loopback
    assert interface_towards("no.such.host.invalid") == ""
    if socket.has_ipv6 and "::1" in interface_addresses():
        assert interface_towards("::1") == loopback


WHERE = """
import tempfile
from slurm.jobs.ranks import Task, enter_rank
enter_rank(Task(0, 0, 1, ("here",), "1", 0))
from data_pipelines.packed.reader import DEFAULT_CACHE
print(tempfile.gettempdir(), DEFAULT_CACHE.path)
"""


@pytest.mark.parametrize("name", ["RELAYWAVE_SCRATCH", "SLURM_TMPDIR"])
def test_temporary_files_and_shards_go_to_the_nodes_own_disk(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, name: f"{tmp_path}/$SLURM_JOB_ID", "SLURM_JOB_ID": "77"}
    del environment["RELAYWAVE_CACHE"]  # which the tests set
    printed = subprocess.run(
        [sys.executable, "-c", WHERE], env=environment, cwd=SOURCE, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    scratch = f"{tmp_path}/77"
    assert printed.split() == [scratch, f"{scratch}/relaywave-{os.getuid()}/shards"]


def test_a_scratch_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, code in (("TMPDIR", 0), ("RELAYWAVE_SCRATCH", 1)):
        environment = {**os.environ, name: f"{tmp_path}/file/below"}
        done = subprocess.run([sys.executable, "-c", WHERE], env=environment, cwd=SOURCE,
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == code, f"{name}: only the site profile's must be"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-0", 2880), ("1-12:30", 2190)],
)
def test_time_limits(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "1h", "-5", "1:2:3:4"])
def test_invalid_time_limits(text: str) -> None:
    with pytest.raises(ValueError, match="time limit"):
        parse_minutes(text)


@pytest.mark.parametrize("name", ["slurm/site.py", "models/added.py"])
def test_a_copy_of_the_code_that_was_changed_is_rejected(tmp_path: Path, name: str) -> None:
    copy = copy_code(tmp_path)
    (copy / "models" / "__pycache__").mkdir()  # jobs compile what they run
    check_code(copy)
    with (copy / name).open("a") as file:
        file.write("# another line\n")
    for use in (lambda: copy_code(tmp_path), lambda: check_code(copy)):
        with pytest.raises(ConfigError, match=f"{copy} is not what its name says.*--update-code"):
            use()


def test_jobs_run_the_code_that_was_submitted(tmp_path: Path) -> None:
    copy = copy_code(tmp_path)
    assert copy == copy_code(tmp_path), "unchanged code is shared"
    assert code_digest(copy) == code_digest()
    assert code_files(copy) == code_files(SOURCE)
    assert Path("slurm/submit/code_copy.py") in code_files(copy)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", "import slurm; print(slurm.__file__)"]
    printed = subprocess.run(
        command, env=environment, cwd=SOURCE, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip().startswith(str(copy)), "also from the directory of the edited code"


def test_a_job_passes_nothing_of_its_own_to_jobs_that_it_submits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_NTASKS", "SUBMITIT_EXECUTOR", "RANK", "SLURM_CONF", "SOMETHING"):
        monkeypatch.setenv(name, "1")
    environment = outside_environment()
    assert {"SLURM_CONF", "SOMETHING"} <= environment.keys()
    assert not {"SLURM_NTASKS", "SUBMITIT_EXECUTOR", "RANK"} & environment.keys()


def test_progress_and_productive_time(tmp_path: Path) -> None:
    assert images_saved(tmp_path) == 0
    for images in (80, 160):
        marker = tmp_path / "checkpoints" / f"{images:012d}" / "checkpoint.json"
        marker.parent.mkdir(parents=True)
        marker.touch()
    assert images_saved(tmp_path) == 160
    lines = [{"images_seen": seen, "speed/images_per_second": 4.0} for seen in (8, 16)]
    assert productive_seconds(lines) == pytest.approx(4.0)


def test_logs_have_ranks_and_complete_lines(tmp_path: Path) -> None:
    record = JobRecord(
        job_id="5", kind="train", name="x", cluster="slurm", submitted=0.0, cwd="", code="",
        resources=Resources(), logs=str(tmp_path),
    )  # fmt: skip
    logs = TaskLogs(record, "5")
    (tmp_path / "5_0_log.out").write_text("one\ntw")
    (tmp_path / "5_1_log.err").write_text("bad\n")
    (tmp_path / "5_submitted.pkl").write_text("")
    (tmp_path / "55_0_log.out").write_text("another job\n")
    assert list(logs.new_lines()) == ["[0]  one", "[1]! bad"]
    with open(tmp_path / "5_0_log.out", "a") as file:
        file.write("o\nthree")
    assert list(logs.new_lines()) == ["[0]  two"]
    assert list(logs.new_lines(flush=True)) == ["[0]  three"]
