"""What we ask of somebody's Trainer: its batches, its network, its ranks, checkpoints, averages, and our options."""
