"""What a run needs: memory, traffic, operations and time, from data-less tensors."""
