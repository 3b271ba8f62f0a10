"""What a run needs: memory, traffic, operations and time; and whether its settings fit together.

checks.py         What has to fit together: batch and ranks, data, networks, sharding
communication.py  What ranks send each other, bucket by bucket, and what of it a step waits for
flops.py          What a training step costs, found by running it on tensors without data
hardware.py       GPUs that runs are planned for, and the links between them
memory.py         Bytes on a GPU by ZeRO stage, on hosts, and in a checkpoint
micro_batch.py    `micro_batch_size=auto`: from the plan's memory, tried once, then kept
plan.py           `relaywave train plan RECIPE`: estimates of memory, traffic and time
published.py      What published runs and samplers took
roofline.py       Time of counted operations: the longest of arithmetic, memory and launch
sampling.py       What drawing a batch of images costs
step_time.py      Seconds of a step by what bounds it: arithmetic, memory, launches, network, data
"""
