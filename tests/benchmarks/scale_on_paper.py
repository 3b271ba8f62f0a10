"""Tables of docs/scaling.md: `python -m tests.benchmarks.scale_on_paper [PART ...]`.

recipes   every recipe on its own GPUs: counts, times, what bounds the step, published times
sampling  a batch of images by every sampler, and published times
scale     the published stage 2 of RDM on 8 to 1,024 GPUs and several networks
beyond    what other ways of reducing, which the engine does not have, would change at 1,024
month     a 64-GPU month with failures, time limits and queues, simulated with the real policies

Counted and computed without a GPU; nothing here was measured on one.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from dist_train.config import RunConfig, ShardingConfig
from dist_train.dry_run import check_settings
from dist_train.planning.communication import NETWORK_HOP_SECONDS, Message, outlasting
from dist_train.planning.hardware import GPUS, Machine
from dist_train.planning.memory import FLOAT, checkpoint_bytes
from dist_train.planning.plan import (
    COPY_BYTES,
    GPU_HOURS_PER_FAILURE,
    Plan,
    best_interval,
    duration,
    make_plan,
)
from dist_train.planning.published import SAMPLING, TRAINING
from dist_train.planning.roofline import roofline
from dist_train.planning.sampling import measure_sampling, usual_batch
from dist_train.planning.step_time import StepTime
from dist_train.precision import settle_precision
from dist_train.recipes import RECIPES
from slurm.jobs.requeue import Cause, Start, decide
from slurm.resources import Policy
from slurm.site import Site

GPU = GPUS["a100-40g"]
GBIT = 1e9 / 8
NETWORK = 800 * GBIT
UNPUBLISHED = ("debug", "quickstart", "_images")
"""What the names of recipes contain that are nobody's published size."""
STAGE_2 = "rdm_imagenet256"
BUCKETS = 12
"""Of MAX_BUCKET parameters, for its network."""


def full_size() -> list[str]:
    """Return the recipes of published size."""
    return [name for name in RECIPES if not any(word in name for word in UNPUBLISHED)]


def planned(config: RunConfig, machine: Machine) -> Plan:
    """Return the plan of a run whose precision is settled for the machine."""
    config = settle_precision(config, machine.gpu.bfloat16)
    return make_plan(config, check_settings(config, machine.ranks), machine)


# Every recipe.


def recipes() -> Iterator[str]:
    """Yield the table of all recipes."""
    yield (
        "| recipe | GPUs | GFLOP per image | launches per pass | step | to the end | published"
        " | bound by |"
    )
    yield "|--|--|--|--|--|--|--|--|"
    yield from map(recipe_row, full_size())


def recipe_row(name: str) -> str:
    """Return the row of one."""
    config = RECIPES[name]()
    machine = Machine(GPU, config.sharding.nodes, config.sharding.gpus_per_node, NETWORK)
    plan = planned(config, machine)
    published = TRAINING.get(name)
    cells = (
        f"`{name}`",
        f"{machine.ranks}",
        f"{plan.footprint.flops / plan.batches.micro / 1e9:,.1f}",
        f"{plan.footprint.launches():,.0f}",
        f"{plan.step.seconds:.3f} s",
        duration(plan.wall_seconds),
        duration(published.seconds) if published else "-",
        plan.step.describe(),
    )
    return f"| {' | '.join(cells)} |"


def sampling() -> Iterator[str]:
    """Yield the table of all samplers."""
    yield "| recipe | batch | evaluations | predicted | published | ratio | bound by |"
    yield "|--|--|--|--|--|--|--|"
    yield from map(sampling_row, (name for name in full_size() if "_no_" not in name))


def sampling_row(name: str) -> str:
    """Return the row of one."""
    config = settle_precision(RECIPES[name](), bfloat16=True)
    cost = measure_sampling(config.objective, usual_batch(config.data.resolution))
    bounds = roofline(cost.operations, GPU, config.compute.tf32)
    published = SAMPLING.get(name)
    cells = (
        f"`{name}`",
        f"{cost.batch}",
        f"{cost.evaluations}",
        duration(bounds.seconds),
        duration(published) if published else "-",
        f"{bounds.seconds / published:.2f}" if published else "-",
        StepTime(*bounds).describe(),
    )
    return f"| {' | '.join(cells)} |"


# Many GPUs.

RANKS = (8, 16, 64, 256, 512, 1024)
GBITS = (100, 200, 400, 800)
WAYS: dict[str, ShardingConfig] = {
    "ZeRO-1 (the default)": ShardingConfig(zero_stage=1),
    "ZeRO-2, `overlap_comm`": ShardingConfig(
        zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}}
    ),
    "ZeRO-2, `overlap_comm` and `use_multi_rank_bucket_allreduce`": ShardingConfig(
        zero_stage=2,
        deepspeed={
            "zero_optimization": {"overlap_comm": True, "use_multi_rank_bucket_allreduce": True}
        },
    ),
}


def scale() -> Iterator[str]:
    """Yield a table for each way of reducing, then those of larger batches."""
    for title, sharding in WAYS.items():
        yield f"**{title}**"
        yield ""
        yield from _scale_table(sharding, batch=4096)
        yield ""
    yield "**ZeRO-1, a batch of 16,384**"
    yield ""
    yield from _scale_table(WAYS["ZeRO-1 (the default)"], batch=16384)


def _scale_table(sharding: ShardingConfig, batch: int) -> Iterator[str]:
    networks = " | ".join(f"{gbit} Gbit/s" for gbit in GBITS)
    yield f"| GPUs | passes | alone | {networks} | to the end at 100 and 800 Gbit/s |"
    yield "|--|--|--|" + "--|" * len(GBITS) + "--|"
    for ranks in RANKS:
        plans = [scaled(sharding, batch, ranks, gbit) for gbit in GBITS]
        efficiencies = [efficiency(plan) for plan in plans]
        ends = f"{duration(plans[0].wall_seconds)}, {duration(plans[-1].wall_seconds)}"
        cells = (
            f"{ranks:,}",
            f"{plans[0].batches.accumulation_steps} of {plans[0].batches.micro}",
            f"{plans[0].step.computing:.3f} s",
            *(f"{value:.0%}" for value in efficiencies),
            ends,
        )
        yield f"| {' | '.join(cells)} |"


def scaled(sharding: ShardingConfig, batch: int, ranks: int, gbit: float) -> Plan:
    """Return the published stage 2 on so many GPUs, eight to a node."""
    config = replace(
        RECIPES[STAGE_2](),
        sharding=sharding,
        global_batch_size=batch,
        micro_batch_size=min(8, batch // ranks),
    )
    return planned(config, Machine(GPU, ranks // 8, 8, gbit * GBIT))


def efficiency(plan: Plan) -> float:
    """Return the rate of a GPU against that of one that sends nothing, with the same passes."""
    alone = replace(
        plan.config,
        sharding=ShardingConfig(),
        global_batch_size=plan.batches.total // plan.machine.ranks,
        micro_batch_size=min(8, plan.batches.total // plan.machine.ranks),
    )
    single = planned(alone, replace(plan.machine, nodes=1, gpus_per_node=1))
    return single.step.computing / plan.step.seconds


def beyond(ranks: int = 1024) -> Iterator[str]:
    """Yield the table of what is not there yet."""
    networks = " | ".join(f"{gbit} Gbit/s" for gbit in GBITS)
    yield f"| {ranks:,} GPUs | {networks} |"
    yield "|--|" + "--|" * len(GBITS)
    for name in ("as it is", *CHANGES):
        cells = (f"{changed_efficiency(name, ranks, gbit):.0%}" for gbit in GBITS)
        yield f"| {name} | {' | '.join(cells)} |"


CHANGES = {
    "in two levels, node and network": "hierarchy",
    "scattered in 12 buckets beside the last backward pass": "overlap",
    "gradients sent in bfloat16": "halves",
    "all three": "hierarchy overlap halves",
    "all three, and a batch of 16,384": "hierarchy overlap halves batch",
}
"""Ways to reduce gradients, by their name in the table."""


def changed_efficiency(name: str, ranks: int, gbit: float) -> float:
    """Return the efficiency of ZeRO-1 with changes to how it sends."""
    how = CHANGES.get(name, "")
    plan = scaled(ShardingConfig(), 16384 if "batch" in how else 4096, ranks, gbit)
    size = FLOAT * sum(plan.footprint.parameters.values()) * (ranks - 1) / ranks
    buckets = BUCKETS if "overlap" in how else 1
    bucket = Message((0.5 if "halves" in how else 1.0) * size / buckets, 1)
    send = two_levels if "hierarchy" in how else Message.seconds
    scattering = [send(bucket, plan.machine)] * buckets
    backward = roofline(plan.footprint.operations["denoiser", "backward"], GPU, None).seconds
    waiting = outlasting(scattering, backward if "overlap" in how else 0.0)
    gathering = send(Message(size, 1), plan.machine)
    return efficiency(plan) * plan.step.seconds / (plan.step.computing + waiting + gathering)


def two_levels(message: Message, machine: Machine) -> float:
    """Return the time of a collective within nodes first, then between their GPUs of one place.

    A node's link carries as many bytes as in one ring over all, but they make fewer hops.
    """
    inside = Message(message.sent, message.rounds).seconds(replace(machine, nodes=1))
    hops = message.rounds * (machine.nodes - 1) * NETWORK_HOP_SECONDS
    return inside + message.sent / machine.network_bytes + hops


# A month with failures.

MONTH = 30 * 86400.0
STORAGE_BYTES = 2e9
"""Bytes per second that shared storage takes from, and gives to, all ranks together."""
START_SECONDS = 90.0
"""From a job's start to its first step: imports, networks, NCCL, the first batch."""
QUEUE_SECONDS = 600.0
"""Mean wait in the queue after a requeue, exponential."""
TIME_LIMIT = 24 * 3600.0
PRICE = 2.0
"""Dollars of a GPU-hour, an example."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job, as its policies make it.

    Attributes:
        ranks: GPUs.
        interval: Seconds of training between checkpoints.
        stall: Seconds that a checkpoint stops training for.
        write: Seconds until it is complete; a failure before that loses it.
        read: Seconds that all ranks need to read it at a restart.
        gpu_hours_per_failure: Mean GPU-hours between failures.
        margin: Seconds before the time limit at which it saves and ends.
        policy: How crashes are followed by another start.
    """

    ranks: int
    interval: float
    stall: float
    write: float
    read: float
    gpu_hours_per_failure: float = GPU_HOURS_PER_FAILURE
    margin: float = Site().signal_seconds
    policy: Policy = field(default_factory=Policy)


@dataclass
class Account:
    """Where the seconds of a simulated month went.

    Attributes:
        trained: Steps that count.
        lost: Steps that were done again.
        stalled: Checkpoints, and saving before a time limit.
        started: From the start of a job to its first step, reading a checkpoint included.
        queued: In the queue, and waiting after a crash; costs nothing.
        crashes: Failures.
        ended: Whether the policy gave the job up.
    """

    trained: float = 0.0
    lost: float = 0.0
    stalled: float = 0.0
    started: float = 0.0
    queued: float = 0.0
    crashes: int = 0
    restarts: int = 0
    ended: bool = False

    @property
    def allocated(self) -> float:
        """Seconds that the job had its GPUs."""
        return self.trained + self.lost + self.stalled + self.started

    @property
    def goodput(self) -> float:
        """Share of the allocated time that trained the model."""
        return self.trained / self.allocated

    @property
    def progress(self) -> float:
        """Share of the month that trained the model."""
        return self.trained / (self.allocated + self.queued)


def job_of(plan: Plan, interval: float | None = None) -> Job:
    """Return the job of a plan; the interval is by default the recipe's."""
    size = checkpoint_bytes(plan.config, plan.footprint)
    every = plan.config.checkpoint.every_images / plan.images_per_second
    return Job(
        ranks=plan.machine.ranks,
        interval=every if interval is None else interval,
        stall=size / plan.machine.ranks / COPY_BYTES,
        write=size / STORAGE_BYTES,
        read=size / STORAGE_BYTES,
    )


def simulate(job: Job, seed: int, month: float = MONTH) -> Account:
    """Return where a month went, failure by failure."""
    chance, account, starts = random.Random(seed), Account(), []
    failure_rate = job.ranks / (job.gpu_hours_per_failure * 3600)
    while (left := month - account.allocated - account.queued) > 0:
        to_failure = chance.expovariate(failure_rate)
        starting = min(START_SECONDS + job.read, left)
        time = min(TIME_LIMIT - job.margin, left)  # of this start, until it is asked to save
        crashed = to_failure < time
        account.started += min(starting, to_failure)
        training = max(min(time, to_failure) - starting, 0.0)
        saved = _train(account, job, training, crashed=crashed)
        account.crashes += crashed
        cause: Cause = "crash" if crashed else "time limit"
        decision = decide(starts, saved, cause, job.policy)
        if not decision.requeue:
            account.ended = True
            return account
        starts.append(Start(saved, cause))
        account.restarts += 1
        account.queued += decision.delay + chance.expovariate(1 / QUEUE_SECONDS)
    return account


def _train(account: Account, job: Job, seconds: float, *, crashed: bool) -> bool:
    """Account for training of so many seconds; returns whether anything new was saved."""
    period = job.interval + job.stall
    complete = math.floor(max(seconds - job.write, 0.0) / period)  # whose write had ended, too
    stalls = math.floor(seconds / period)
    account.stalled += stalls * job.stall
    steps = seconds - stalls * job.stall
    kept = complete * job.interval if crashed else steps
    account.trained += kept
    account.lost += steps - kept
    if not crashed:
        account.stalled += job.write
    return complete > 0 or not crashed


def average(job: Job, seeds: int = 200) -> dict[str, float]:
    """Return the means of many months."""
    accounts = [simulate(job, seed) for seed in range(seeds)]

    def mean(value: Callable[[Account], float]) -> float:
        return statistics.mean(map(value, accounts))

    return {
        "goodput": mean(lambda a: a.goodput),
        "progress": mean(lambda a: a.progress),
        "crashes": mean(lambda a: a.crashes),
        "restarts": mean(lambda a: a.restarts),
        "lost hours": mean(lambda a: a.lost / 3600),
        "stalled hours": mean(lambda a: a.stalled / 3600),
        "starting hours": mean(lambda a: a.started / 3600),
        "given up": mean(lambda a: a.ended),
        "GPU-hours": mean(lambda a: job.ranks * a.allocated / 3600),
        "images": mean(lambda a: a.trained),
    }


def month() -> Iterator[str]:
    """Yield the table of a month by number of GPUs, reliability and interval."""
    yield (
        "| GPUs | GPU-hours per failure | checkpoint every | failures | restarts | read by them"
        " | lost | starting | stalled | goodput | of the month | given up | cost | images |"
    )
    yield "|--|--|--|--|--|--|--|--|--|--|--|--|--|--|"
    for ranks in (64, 256, 1024):
        plan = scaled(ShardingConfig(), 4096, ranks, 800)
        for reliability in (GPU_HOURS_PER_FAILURE, 5_000):
            best = best_interval(job_of(plan).stall, ranks, reliability)
            every = job_of(plan).interval
            for interval in (every, best, 4 * 3600.0) if ranks == 64 else (every,):
                job = replace(job_of(plan, interval), gpu_hours_per_failure=reliability)
                yield _month_row(plan, job)


def _month_row(plan: Plan, job: Job) -> str:
    of = average(job)
    cells = (
        f"{job.ranks:,}",
        f"{job.gpu_hours_per_failure:,}",
        duration(job.interval),
        f"{of['crashes']:.1f}",
        f"{of['restarts']:.0f}",
        f"{of['restarts'] * job.read * STORAGE_BYTES / 1e9:,.0f} GB",
        f"{of['lost hours']:.1f} h",
        f"{of['starting hours']:.1f} h",
        f"{of['stalled hours']:.1f} h",
        f"{of['goodput']:.1%}",
        f"{of['progress']:.1%}",
        f"{of['given up']:.0%}",
        f"${of['GPU-hours'] * PRICE:,.0f}",
        f"{of['images'] * plan.images_per_second / 1e9:.2f}e9",
    )
    return f"| {' | '.join(cells)} |"


PARTS = {"recipes": recipes, "sampling": sampling, "scale": scale, "beyond": beyond,
         "month": month}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[*PARTS], choices=[*PARTS])
    for part in parser.parse_args().parts:
        print("\n".join(PARTS[part]()), flush=True)
        print()
