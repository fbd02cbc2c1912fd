"""A crawler for speech that respects robots.txt and licences, and can be stopped, resumed, audited and taken down.

seeds.py          the configuration: seeds, licences, limits
frontier.py       the items of a crawl and their states: one SQLite file, shared by workers and processes
access_policy.py  whether and when a URL may be requested: takedowns, robots.txt, the pace of a host
fetch.py          HTTP: guarded addresses, limits, resumed downloads
discover.py       feeds, sitemaps and pages -> links with their licences
licence.py        the meaning of a licence text
probe.py          whether a file holds audio, how much, and its fingerprint
provenance.py     the requests of an item, as a WARC file
crawl_folder.py   where the files of a crawl are
handlers.py       processing of an item, by its kind
crawler.py        the loop
takedown.py       remove a source with everything derived from it, and never fetch it again
demo_site.py      a small web site with difficult cases, for the demonstration and the tests

Needs the extra `speechgpt2[crawl]`.
"""
