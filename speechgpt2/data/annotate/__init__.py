"""Labels of clean clips: the times of words, prosody, and captions.

align.py         stage: words, phones and tones with their times
prosody.py       stage: F0, energy, speaking rate, pauses
caption.py       global step: Chinese and English captions, relative to language and speaker
known_labels.py  labels of synthetic speech, as ground truth
"""
