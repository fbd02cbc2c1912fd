"""Judges: what a codec keeps of speech (`codec`), what a whole model hears, answers and says (`dialogue`).

They need no download: the judges come with their packages (`speechgpt2[eval]`), the held-out speech is made on the spot.
"""
