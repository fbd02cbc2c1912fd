"""Speech data: crawl, clean and label recordings, and make conversations.

record.py        the record of a clip, which all stages read and write
decoding.py      any audio file -> samples
crawl/           fetch recordings from the web
pipeline/        run steps over clips, with resume and caching
clean/           measures and filters
annotate/        labels: times, prosody, captions
conversations/   synthetic conversations
steps.py         the registry of steps, and presets
audit/           known faults and truths: how well filters and labels work

Nothing here loads torch when it is imported. The synthesis engines are optional: install `speechgpt2[synthesis]` and,
for English, the system package `flite`.
"""
