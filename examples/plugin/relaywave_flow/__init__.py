"""A relaywave plugin: importing it registers one thing of each kind.

flow.py      An objective: flow matching on relaywave's U-Net
recipe.py    A recipe that trains it
arrays.py    A source of images and a data backend: arrays in .npy files
measures.py  A metric, a detector and a protocol
log.py       A logger
workflow.py  A workflow of jobs
"""

from relaywave_flow import arrays, flow, log, measures, recipe, workflow

__all__ = ["arrays", "flow", "log", "measures", "recipe", "workflow"]
