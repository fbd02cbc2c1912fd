"""Evaluation, a module for each command.

codec.py        what a codec preserves of speech: signal measures and judges
speech.py       the speech of a model's replies: is it intelligible, and how does it sound?
spoken_qa.py    held-out questions, asked and answered by speech or text
precision.py    what quantized weights cost

Speech is evaluated by judges that share no weights with the models (judges.py): an ASR model, DNSMOS, a speaker
encoder. Held-out speech is synthesised when it is needed, or read from a folder of recordings. Nothing is sent
to a service.
"""
