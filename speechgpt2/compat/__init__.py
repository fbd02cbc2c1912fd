"""Import of the released checkpoints: the only place that knows their names."""
