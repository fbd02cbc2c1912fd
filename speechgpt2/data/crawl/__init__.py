"""From seeds to recordings: a polite crawler for speech that can be killed, resumed, audited and taken back.

    seeds.py       what a person writes: seeds, licences, limits
    frontier.py    what is to be fetched and what became of it: one SQLite file, shared by workers and processes
    permit.py      who may be asked, and when: takedowns, robots.txt, the pace of a host
    fetch.py       HTTP: guarded, limited, resumed
    discover.py    feeds, sitemaps and pages -> links with their licences
    licence.py     what a licence text means
    probe.py       is it sound, how long, and which sound
    provenance.py  how it was got: a WARC file per item
    store.py       where the files of a crawl lie
    crawler.py     the loop
    takedown.py    a source is removed with everything derived from it, and stays away

Needs the extra ``speechgpt2[crawl]``.
"""
