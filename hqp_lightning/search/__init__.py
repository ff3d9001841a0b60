"""The conditional search on a live Trainer: its state, the verdicts, the operation of a step, what is told."""
