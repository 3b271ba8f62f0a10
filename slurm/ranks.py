"""Making a Slurm (or submitit local) task a rank: who it is, where rank 0 listens, which network.

All of it follows from what Slurm tells each task, so that tasks need not speak to each other first.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

FIRST_PORT, PORTS = 12_000, 18_000
"""Ports of rendezvous: below the range that Linux gives to outgoing connections (from 32768)."""
SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Task:
    """What the launcher says about this task."""

    rank: int
    local_rank: int
    size: int
    hosts: Sequence[str]
    job_id: str
    restart: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `dist_train.distributed.init_world` reads."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "MASTER_ADDR": self.hosts[0] if len(self.hosts) > 1 else "127.0.0.1",
            "MASTER_PORT": str(rendezvous_port(self.job_id, self.restart)),
        }


def this_task() -> Task:
    """Return what submitit's environment (Slurm, local or debug) says about this process."""
    import submitit

    try:
        job = submitit.JobEnvironment()
    except RuntimeError:  # the debug executor runs here, in a process of its own making
        return Task(0, 0, 1, ("localhost",), str(os.getpid()), 0)
    return Task(
        rank=job.global_rank,
        local_rank=job.local_rank,
        size=job.num_tasks,
        hosts=tuple(job.hostnames),
        job_id=job.job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )


def enter_rank(task: Task) -> None:
    """Set this process' environment so that it is a rank of its job's world."""
    os.environ.update(task.environment)
    threads = os.environ.get("SLURM_CPUS_PER_TASK")
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", threads)
    interface = os.environ.get("RELAYWAVE_INTERFACE", "")
    if not interface and len(set(task.hosts)) > 1:
        interface = interface_towards(os.environ["MASTER_ADDR"])
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    scratch = os.path.expandvars(os.environ.get("RELAYWAVE_SCRATCH", ""))
    if scratch:
        Path(scratch).mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = scratch
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{scratch}/torch_extensions")


def rendezvous_port(job_id: str, restart: int) -> int:
    """Return the port of a job's rendezvous; another one each time that the job is run again."""
    job, _, task = job_id.removeprefix("DEBUG_").partition("_")
    number = int(job) + 101 * int(task or 0) + 1009 * restart
    return FIRST_PORT + number % PORTS


def interface_towards(host: str) -> str:
    """Return the network interface whose address reaches `host`, "" if that cannot be told.

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
