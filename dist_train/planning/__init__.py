"""What a run needs: memory, traffic, operations and time, from data-less tensors.

flops.py     What a training step costs, found by running it on tensors without data
hardware.py  GPUs that runs are planned for, and the links between them
plan.py      `relaywave train plan RECIPE`: what a run needs, before a GPU is asked for
"""
