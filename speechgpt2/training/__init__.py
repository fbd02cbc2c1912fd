"""What both train loops share: the run folder with its checkpoints and scalars, the learning rate, precision."""
