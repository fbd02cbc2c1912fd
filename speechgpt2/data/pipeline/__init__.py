"""Runs clips through steps, with caching and resume.

stage.py          the interface of a stage: one clip in; one, several or a rejection out
global_steps.py   steps over all clips: rules with thresholds, comparisons
clip_audio.py     the audio files of a run, and the audio of a clip
spectra.py        spectra of a clip, computed once
results.py        the results database: by hash of clip, stage, version, config, model
workers.py        worker processes, which may crash on a clip without further harm
cluster.py        workers on Ray Data
input_clips.py    a folder or a manifest -> clips
takedown.py       takedowns of a crawl, applied to the runs made from it
runner.py         the run, which can be resumed at any moment
output.py         the output of a run
shar.py           clips to and from Lhotse cuts in Shar
scores.py         all measures as Parquet
serialization.py  clips as bytes, for internal files
"""
