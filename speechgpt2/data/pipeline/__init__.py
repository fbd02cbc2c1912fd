"""One record, one runner: clips go through stages, and every result is filed under what it was made from.

stage.py      what a stage is: one clip in, one or several or a refusal out
survey.py     what looks at all clips at once, cheaply: rules with thresholds, counts, comparisons
sound.py      where the sound of a run lies, and how a stage gets at it
results.py    results by key: hash of clip, stage, version, config, model
workers.py    processes that work through stages, and may die of a clip without harm
cluster.py    the same on Ray Data
intake.py     a folder or a manifest -> clips
takedown.py   what a crawl takes back goes out of the runs made from it
runner.py     the whole run, resumable at any moment
shar.py       clips -> Lhotse cuts in Shar, with FLAC, and back
scores.py     everything that was measured, of kept and rejected clips, as Parquet
"""
