"""Distributed training: one loop for every objective, sharded by DeepSpeed, exactly resumable."""
