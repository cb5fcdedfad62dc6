"""The distributed run: Ray Train, DeepSpeed, checkpoints."""
