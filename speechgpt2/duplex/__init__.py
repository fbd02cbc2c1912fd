"""Turn taking: voice activity, endpointing, interruption and echo. It uses an engine by protocol.py and no model."""
