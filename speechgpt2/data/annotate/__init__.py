"""From clean clips to labelled ones: where each word is, how it is said, and that in words.

viterbi.py     the best path of a text through any emissions
emissions.py   what an aligner listens with: an interface, and CTC models in ONNX
rehearsal.py   emissions without a model: how a synthetic voice would have said it
align.py       stage: words, phones and tones with their times
prosody.py     stage: F0, energy, speaking rate, pauses
caption.py     survey: Chinese and English captions from bins that fit language and speaker
audit.py       how far labels are from the truth, on speech whose truth is known
"""
