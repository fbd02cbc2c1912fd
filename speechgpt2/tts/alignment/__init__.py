"""Forced alignment: the times of the words and phones of a known text in a recording."""
