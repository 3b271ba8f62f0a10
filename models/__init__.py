"""Networks, processes, samplers and snapshots of the two model families.

command_line.py  How every command ends: exit codes, and one line about what went wrong
config_io.py     Frozen dataclasses to JSON and back, and typed `key=value` overrides
families.py      The objectives that configurations and snapshots may name
grid.py          Grids of settings, for sweeps of trainings and of evaluations
layers.py        Layers of all networks, computing in the dtype of their input
objective.py     The interface to the training loop: losses keyed by the network they update
plugins.py       Plugins: what others add to objectives, recipes, sources, metrics, ...
sample_rng.py    Random draws keyed by samples, not by ranks
sampler.py       The interface to evaluation: images from seeds
snapshot.py      Snapshots: weights of a sampled network, and all that sampling needs to know
analysis/        Analyses of images and noise that the papers show
convert/         Conversion of official checkpoints, without executing anything in them
rdm/             Relay Diffusion: EDM and relay stages
safe_files/      Files that others may have damaged or made: how all packages read and write them
wavediff/        WaveDiff and DDGAN
"""
