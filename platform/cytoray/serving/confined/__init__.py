"""Files from outside, read in a process of its own with limits: the model's process opens none of them."""
