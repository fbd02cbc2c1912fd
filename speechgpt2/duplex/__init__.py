"""Turn taking: who is speaking, when a turn is over, what an interruption means. It knows words and sound, no model."""
