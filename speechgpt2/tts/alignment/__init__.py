"""Forced alignment: at which time each word and phone of a known text is spoken.

align.py              times and agreement from emissions
emissions.py          the interface of emission models
viterbi.py            the best path of a text through emissions
synthesis_aligner.py  emissions without a trained model, by comparison with synthetic speech
isolated_espeak.py    espeak in a process of its own, with reproducible results
ctc.py                emissions of a CTC model in ONNX
"""
