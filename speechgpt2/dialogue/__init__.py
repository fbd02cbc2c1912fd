"""Turn taking: who is speaking, when a turn is over, what an interruption means. Knows words and sound, and no model."""
