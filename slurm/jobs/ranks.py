"""Making a Slurm (or submitit local) task a rank: its number, rank 0's address, the network.

All of it follows from the task's environment, so that tasks need not communicate first. Only on
rank 0's node can it be tried whether a port is free. The batch script runs there: it calls
`python -m slurm.jobs.ranks`, which prints a free port, and exports it to all tasks as
RELAYWAVE_PORT.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from slurm.log_lines import time_lines

FIRST_PORT, PORTS = 12_000, 18_000
"""Ports of rendezvous: below the range that Linux gives to outgoing connections (from 32768)."""
PORT_TRIES = 64
SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Task:
    """A task, as its launcher describes it."""

    rank: int
    local_rank: int
    size: int
    hosts: Sequence[str]
    job_id: str
    restart: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `dist_train.runtime.world.init_world` reads."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "MASTER_ADDR": address_of(self.hosts[0]) if len(self.hosts) > 1 else "127.0.0.1",
            "MASTER_PORT": os.environ.get("RELAYWAVE_PORT")
            or str(next(rendezvous_ports(self.job_id, self.restart))),
        }


def this_task() -> Task:
    """Return the task that this process is, from submitit's environment (Slurm, local or debug)."""
    import submitit

    try:
        job = submitit.JobEnvironment()
    except RuntimeError:  # the debug executor, which runs jobs in the process that submits them
        return Task(0, 0, 1, ("localhost",), str(os.getpid()), 0)
    return Task(
        rank=job.global_rank,
        local_rank=job.local_rank,
        size=job.num_tasks,
        hosts=tuple(job.hostnames),
        job_id=job.job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )


def this_host() -> str:
    """Return the name of this node, as Slurm has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def address_of(host: str) -> str:
    """Return by what rank 0's node is reached: its name, or its address if that does not resolve.

    The address is that from which srun has started the tasks: the batch script runs on that node.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or host
    return host


def own_job_id() -> str:
    """Return the id of the job that this process belongs to: `12`, or `12_3` in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def enter_rank(task: Task) -> None:
    """Set this process' environment so that it is a rank of its job's world."""
    os.environ.update(task.environment)
    time_lines()
    if task.restart:  # logs are appended to; see exit_reason.START
        print(f"start {task.restart + 1} of job {task.job_id}", file=sys.stderr, flush=True)
    _remove_partial_files(task)
    threads = os.environ.get("SLURM_CPUS_PER_TASK")
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", threads)
    interface = os.environ.get("RELAYWAVE_INTERFACE", "")
    if not interface and len(set(task.hosts)) > 1:
        interface = interface_towards(os.environ["MASTER_ADDR"])
    if interface:
        names = interface.removeprefix("=")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names)
        # without the mark, NCCL takes any interface whose name begins so: ib0 would allow ib01
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={names}")
    _use_scratch()


def _remove_partial_files(task: Task) -> None:
    """Remove what this rank was writing when an earlier start was killed.

    submitit does not overwrite a temporary file: a rank that was killed while it wrote one would
    fail at every later start.
    """
    if "SUBMITIT_FOLDER" not in os.environ:  # the debug executor writes nothing
        return
    import submitit

    paths = submitit.JobEnvironment().paths
    for path in (paths.result_pickle, *([] if task.rank else [paths.submitted_pickle])):
        path.with_name(f"{path.name}.save_tmp").unlink(missing_ok=True)


def _use_scratch() -> None:
    """Point temporary files, builds and copies of remote shards at the node's own disk.

    That is the site profile's `scratch`, or the directory that the site sets for jobs.
    """
    names = ("RELAYWAVE_SCRATCH", "SLURM_TMPDIR", "TMPDIR")
    named = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not named:
        return
    scratch = Path(os.path.expandvars(named))
    ours = scratch / f"relaywave-{os.getuid()}"  # others' jobs may have the same scratch
    try:
        ours.mkdir(parents=True, exist_ok=True)
    except OSError:
        if os.environ.get("RELAYWAVE_SCRATCH"):
            raise
        return  # a directory of the login node, inherited, which does not exist here
    os.environ["TMPDIR"] = str(scratch)
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(ours / "torch_extensions"))
    os.environ.setdefault("RELAYWAVE_CACHE", str(ours / "shards"))


def rendezvous_ports(job_id: str, restart: int) -> Iterator[int]:
    """Yield the ports that a job's rendezvous may use, in order; others for each restart."""
    job, _, task = job_id.removeprefix("DEBUG_").partition("_")
    number = int(job) + 101 * int(task or 0) + 1009 * restart
    for step in range(PORT_TRIES):
        yield FIRST_PORT + (number + 7919 * step) % PORTS


def free_port(job_id: str, restart: int) -> int:
    """Return the first of a job's ports on which nothing listens on this machine.

    Raises:
        OSError: All of them are taken.
    """
    for port in rendezvous_ports(job_id, restart):
        if is_free(port):
            return port
    tried = ", ".join(map(str, rendezvous_ports(job_id, restart)))
    raise OSError(f"no port for the rendezvous is free on {socket.gethostname()}: tried {tried}")


def is_free(port: int) -> bool:
    """Whether a server can listen on a port, for IPv4 and, where the machine has it, IPv6."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
                probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def interface_towards(host: str) -> str:
    """Return the network interface whose address reaches `host`, "" if it is unknown.

    gloo by itself takes the address that the machine's own name resolves to, which on machines with
    several networks, or with 127.0.1.1 in the hosts file, the other nodes cannot reach.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
            probe.connect(address)
            own = probe.getsockname()[0].partition("%")[0]
    except OSError:
        return ""
    return interface_addresses().get(own, "")


def interface_addresses() -> Mapping[str, str]:
    """Return {address: interface} of this machine."""
    found = {}
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        digits, *_, name = line.split()
        found[str(IPv6Address(int(digits, 16)))] = name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no IPv4 address
                continue
            found[str(ip_address(answer[20:24]))] = name
    return found


def main() -> int:
    """Print a free port for this job; returns the exit code."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        print(free_port(own_job_id(), restart))
    except OSError as error:
        print(f"slurm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
