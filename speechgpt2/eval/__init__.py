"""Judges: what a codec keeps of speech (`codec`), what a whole model hears, answers and says (`dialogue`).

They need no download: the judges come in their packages (`speechgpt2[eval]`), held-out speech is made on the spot.
"""
