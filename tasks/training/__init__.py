"""Training: what it is told, its batches, its loss, its checkpoints, and the process that it runs in."""
