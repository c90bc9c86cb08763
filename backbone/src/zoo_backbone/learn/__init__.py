"""Training of the backbone: data, masking, losses, optimizers, checkpoints."""
