"""Networks, processes, samplers and snapshots of the two model families.

config_io.py   Frozen dataclasses to JSON and back, and typed `key=value` overrides
families.py    The objectives that configurations and snapshots may name
layers.py      Layers of all networks, computing in the dtype of their input
objective.py   The seam between models and the training loop
sample_rng.py  Random draws that belong to samples, not to ranks
sampler.py     The seam between models and evaluation: images from seeds
snapshot.py    Snapshots
analysis/      Analyses of images and noise that the papers show
convert/       Conversion of official checkpoints, which are read without executing anything in
rdm/           Relay Diffusion
safe_files/    Files that others may have damaged or made: how all packages read and write them
wavediff/      WaveDiff
"""
