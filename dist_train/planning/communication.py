"""What the ranks of a step send each other, bucket by bucket, and how long the step waits for it.

As the engine does it (engine.py): ZeRO-0 and 1 reduce all gradients of a network in one collective
after its last backward pass, which nothing overlaps. ZeRO-2 and 3, and ZeRO-1 with offloading,
leave it to DeepSpeed: bucket by bucket in each backward pass, beside it if `overlap_comm` is set
(DeepSpeed's default under ZeRO-3 only).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dist_train.config import ShardingConfig
from dist_train.engine.deepspeed_config import MAX_BUCKET, engine_settings, used_stage
from dist_train.planning.hardware import Machine
from dist_train.planning.memory import FLOAT

NODE_HOP_SECONDS = 3.4e-6
"""From one GPU to the next of a ring within a node: what NCCL's own tuning model assumes."""
NETWORK_HOP_SECONDS = 14e-6
"""The same between nodes."""


@dataclass(frozen=True)
class Message:
    """Collectives of a bucket.

    Attributes:
        sent: Bytes that each rank sends.
        rounds: How often they go around the ring of all ranks, one after the other.
    """

    sent: float
    rounds: float

    def seconds(self, machine: Machine) -> float:
        """Return the time of a ring over all ranks: that of its slowest link, and of its hops.

        Within a node each GPU has a link of its own; between nodes all of a node's GPUs share one,
        which the ring passes once.
        """
        if machine.ranks == 1:
            return 0.0
        slowest = machine.gpu.link_bytes
        if machine.nodes > 1:
            slowest = min(slowest, machine.network_bytes)
        between = machine.nodes if machine.nodes > 1 else 0
        hops = (machine.ranks - 1 - between) * NODE_HOP_SECONDS + between * NETWORK_HOP_SECONDS
        return self.sent / slowest + self.rounds * max(hops, 0.0)


@dataclass(frozen=True)
class Messages:
    """What is sent in an update of one network (docs/reference/deepspeed.md#3.2).

    Attributes:
        gathered: In the forward and in the backward pass of each micro-batch: buckets of weights.
        reduced: In the backward pass of each micro-batch: buckets of gradients.
        at_the_end: Once, after the last backward pass.
        overlap: Whether what is sent in a pass is sent beside its computing.
    """

    gathered: Sequence[Message] = ()
    reduced: Sequence[Message] = ()
    at_the_end: Sequence[Message] = ()
    overlap: bool = False

    def sent(self, passes: int) -> float:
        """Return the bytes that each rank sends in all passes of an update."""
        of_a_pass = 2 * sum(m.sent for m in self.gathered) + sum(m.sent for m in self.reduced)
        return passes * of_a_pass + sum(m.sent for m in self.at_the_end)

    def exposed(self, passes: int, forward: float, backward: float, machine: Machine) -> float:
        """Return the seconds of an update that communication adds to its computing.

        Args:
            passes: Number of micro-batches.
            forward: Seconds of the forward pass of one.
            backward: The same of its backward pass.
            machine: Where it runs.
        """
        gathers, reductions, last = (
            [message.seconds(machine) for message in messages]
            for messages in (self.gathered, self.reduced, self.at_the_end)
        )
        if not self.overlap:
            return passes * (2 * sum(gathers) + sum(reductions)) + sum(last)
        # Gathers come before what they are for: the same, with time running backwards.
        waits = outlasting(gathers, forward) + outlasting([*gathers, *reductions], backward)
        return passes * waits + sum(last)


def outlasting(seconds: Sequence[float], computing: float) -> float:
    """Return by how much messages end after the pass during which they become ready, evenly."""
    end = 0.0
    for number, duration in enumerate(seconds, 1):
        end = max(end, computing * number / len(seconds)) + duration
    return max(end - computing, 0.0)


def messages(sharding: ShardingConfig, parameters: int, ranks: int, passes: int) -> Messages:
    """Return what is sent in an update of a network of so many parameters.

    Args:
        sharding: Stage and settings of DeepSpeed, which decide about buckets and overlap.
        parameters: Size of the network.
        ranks: Number of ranks.
        passes: Micro-batches of an update.
    """
    stage, share = used_stage(sharding, ranks), FLOAT * (ranks - 1) / ranks
    whole = Message(share * parameters, 1)
    if stage == 0:
        return Messages(at_the_end=[Message(2 * whole.sent, 2)])
    if stage == 1 and sharding.offload == "none":
        return Messages(at_the_end=[whole, whole])  # gradients scattered, then weights gathered
    settings = engine_settings(
        sharding,
        micro_batch_size=1,
        accumulation_steps=passes,
        clip=0.0,
        parameters=parameters,
    )["zero_optimization"]
    reduced = _buckets(parameters, settings["reduce_bucket_size"], share)
    if stage < 3 and settings["use_multi_rank_bucket_allreduce"]:
        reduced = [Message(2 * bucket.sent, 2) for bucket in reduced]
    elif stage < 3:  # to one rank after the other, each time by a ring of its own
        reduced = [Message(bucket.sent, ranks) for bucket in reduced]
    overlap = bool(settings.get("overlap_comm", stage == 3))
    if stage < 3:
        return Messages((), reduced, [whole], overlap)
    if parameters <= MAX_BUCKET:  # such a network stays gathered for a step
        return Messages((), reduced, [whole], overlap)
    gathered = _buckets(parameters, settings["stage3_prefetch_bucket_size"], share)
    return Messages(gathered, reduced, (), overlap)


def _buckets(parameters: int, size: int, share: float) -> list[Message]:
    count = max(math.ceil(parameters / max(size, 1)), 1)
    return [Message(share * parameters / count, 1)] * count


def traffic(sharding: ShardingConfig, networks: Iterable[int], ranks: int, passes: int) -> float:
    """Return the bytes that a rank sends per step, for networks of these sizes."""
    return sum(messages(sharding, size, ranks, passes).sent(passes) for size in networks)
