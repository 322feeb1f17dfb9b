"""Training of an encoder: pairs, losses, optimisers, the training loop and its checkpoints."""
