"""The language model: every position is one text token and one patch of codec frames."""
