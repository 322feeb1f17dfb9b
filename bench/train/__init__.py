"""Training: pairs, losses, schedules, the loop and its checkpoints."""
