"""What `mini` is taught: skills, and the texts that training material is drawn from.

skills.py     the registry of skills: draw an exchange, judge a reply, type a question
sentences.py  sentences without meaning, for reading aloud and dictation
numbers.py    numbers as they are said
texts.py      the texts themselves, in texts/*.yaml

A draw depends on the generator alone: the same seed gives the same texts.
"""
