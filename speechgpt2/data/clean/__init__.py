"""From recordings to clean clips: decoding, segmentation, measures, and filters.

decode.py             any file -> a standard recording
segment.py            a recording -> clips of speech
cut_clip.py           cuts a span out of a clip, with its labels
loudness.py           loudness by ITU-R BS.1770
quality.py            SNR, bandwidth, clipping, overlap, music from the spectrum
speakers.py           speaker changes, speaker embeddings, speaker names
transcript_checks.py  language, speaking rate, repeats, agreement of transcripts
text_match.py         does the audio contain the text? by comparison with synthetic speech
phone_features.py     features that distinguish phones, for text_match.py
duplicates.py         near-duplicates by fingerprint
plugins.py            external models: recognition, opinion scores, separation, diarisation
html_report.py        the HTML report of a run; its parts are in html_parts.py
"""
