"""Networks, processes, samplers and snapshots of the two model families."""
