"""Pure functions on tensors and records; they neither log, nor read configuration, nor change an argument."""
