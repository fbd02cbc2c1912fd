"""From clean clips to labelled ones: where each word is, how it is said, and that in words.

viterbi.py     the best path of a text through any emissions
emissions.py   what an aligner listens with: an interface
reading.py     a text read by espeak, the same whatever was read before
synthesis_aligner.py   emissions without a model: how a synthetic voice would have said it
ctc.py         emissions of a CTC model in ONNX
align.py       stage: words, phones and tones with their times
pitch.py       F0 at some hundred times real time
prosody.py     stage: F0, energy, speaking rate, pauses
caption.py     survey: Chinese and English captions from bins that fit language and speaker
truth.py       what is known of synthetic speech, as labels that stay
audit.py       how far labels are from the truth, on speech whose truth is known
"""
