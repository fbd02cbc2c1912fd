"""What both trainers share: the loop, the run's folder with checkpoints and scalars, several processes."""
