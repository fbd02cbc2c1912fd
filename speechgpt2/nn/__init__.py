"""Building blocks without a task: causal convolutions, windowed attention, norms, rotary embedding."""
