"""From recordings to clean clips: what is measured, what is cut, and the presets of rules that judge it.

decode.py       any file -> a standard recording
activity.py     where somebody speaks, by energy or by a model
segment.py      a recording -> clips of speech
spectrum.py     short-time spectra, mel bands, cepstra: what the measures stand on
loudness.py     loudness by ITU-R BS.1770
quality.py      SNR, bandwidth, clipping, overlap, music from the spectrum
speakers.py     changes of speaker, voices as vectors, who is who
wording.py      checks of the transcript: language, rate, repeats, agreement with the sound
duplicates.py   near-duplicates by fingerprint
plugins.py      recognisers, opinion scores, separation, diarisation by others
presets.py      all steps by name; the presets in presets/*.yaml
audit.py        faults planted on purpose, and how many of them each filter finds
"""
