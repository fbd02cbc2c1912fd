"""Synthetic conversations: scenario → roles → script → turns → two channels of audio → checks.

script.py          lines, roles, speaking styles, and marks of disfluencies
scene_grammar.py   scenes with slots, expanded at random: scripts without a language model
scenes.py          the scenes, English and Mandarin (texts in curriculum/texts)
llm.py             scripts from a language model with an OpenAI-compatible API
disfluency.py      fillers, repetitions and self-repairs
timing.py          gaps, overlaps and reactions, drawn from distributions that can be fitted
speaking_style.py  engine settings for a style, and the measured style
checks.py          whether a reading matches text, voice and style; the best of several readings
render_script.py   a script -> audio, with exact times of words
acoustics.py       rooms, noise, telephone
build.py           a recipe -> a folder of conversations
clips.py           conversations as records and Lhotse cuts
"""
