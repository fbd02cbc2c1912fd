"""Evaluation: what a codec keeps (`codec`), what a model says (`speech`), what it hears and answers (`spoken_qa`).

Speech is evaluated by judges that share no weights with the models (`judges`): an ASR model, DNSMOS, a speaker encoder.
Held-out speech is synthesised when it is needed, or read from a folder of recordings. Nothing is sent to a service.
"""
