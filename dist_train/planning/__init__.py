"""What a run needs: memory, traffic, operations and time; and whether its settings fit together.

checks.py    What has to fit together: batch and ranks, data, networks, sharding
flops.py     What a training step costs, found by running it on tensors without data
hardware.py  GPUs that runs are planned for, and the links between them
plan.py      `relaywave train plan RECIPE`: estimates of memory, traffic and time
roofline.py  Time of counted operations: each takes the longest of arithmetic, memory and its launch
"""
