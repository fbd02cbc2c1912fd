"""Speech data: offline voices, texts, dialogues and the corpora built from them.

Nothing here imports torch, and nothing here needs a network. The synthesis engines are optional:
install the extra ``speechgpt2[synthesis]`` and, for English, the system package ``flite``.
"""
