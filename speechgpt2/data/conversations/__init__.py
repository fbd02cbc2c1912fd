"""Conversations made from nothing: scenario → roles → oral script → turns → two channels of sound → checks.

script.py       what is said, by whom, how: lines, styles, and the marks of spoken language
grammar.py      scenes with slots, expanded by chance: the script writer that needs no network
scenes.py       the scenes themselves, English and Mandarin
llm.py          scripts from a language model behind an OpenAI-compatible endpoint
oral.py         fillers, repetitions and self-repairs
timing.py       gaps, overlaps and reactions, drawn from distributions that can be fitted
style.py       styles asked for and styles measured
checks.py       does it say the text, in the voice and the style asked for: the best of several readings
performance.py  a script becomes sound, with exact times of words
place.py        rooms, noise, telephone
build.py        a recipe becomes a folder of conversations
clips.py        … of records and Lhotse cuts, for the other data systems
turns.py        … of turns, for training
learning.py     examples for the language model, drawn from turns
"""
