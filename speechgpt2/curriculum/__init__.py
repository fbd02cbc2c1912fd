"""The curriculum of `mini`: its skills, and the texts of its training data.

skills.py     the registry of skills: draw an exchange, evaluate a reply, type a question
limits.py     questions that `mini` cannot answer, and its replies
sentences.py  sentences without meaning, for reading aloud and dictation
numbers.py    numbers in words
texts.py      reads the texts in texts/*.yaml

A draw depends only on the generator: the same seed gives the same texts.
"""
