"""Online search as a tool: a SearXNG instance, DuckDuckGo by the package `ddgs`, or a knowledge base.

    toolbox = Toolbox([web_search(open_engine("searxng@http://localhost:8888"))])

Pages are not fetched: the model gets titles, excerpts and addresses as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlencode

from speechgpt2.assistant.functions import PythonTool, tool
from speechgpt2.assistant.http_json import check_address, exchange
from speechgpt2.assistant.knowledge import KnowledgeBase
from speechgpt2.errors import UserError
from speechgpt2.extras import require

TIMEOUT = 8.0  # seconds
RESULTS = 4
MAX_EXCERPT = 500  # characters

Engine = Callable[[str], "list[SearchResult]"]


class SearchResult(NamedTuple):
    """One result of a search. `url` names the source: an address, or the path of a document."""

    title: str
    excerpt: str
    url: str


def open_engine(name: str) -> Engine:
    """Return a search engine by its name.

    Args:
        name: ``searxng@http://HOST:PORT``, whose settings must allow the format json; ``ddgs``; or ``kb@FILE``, a
            knowledge base of `sg2 kb`.

    Raises:
        UserError: There is no such engine, or its address or file is invalid.
        MissingDependency: The package that it needs is not installed.
    """
    engine, _, address = name.partition("@")
    if engine == "searxng":
        return _searxng(check_address(address, "SearXNG"))
    if engine == "ddgs" and not address:
        return _ddgs(require("ddgs", "search"))
    if engine == "kb" and address:
        return _knowledge(KnowledgeBase(address))
    raise UserError(f"no search engine {name!r}; there are searxng@URL, ddgs, and kb@FILE")


def web_search(engine: Engine) -> PythonTool:
    """Return the tool `web_search`."""

    @tool(timeout=TIMEOUT + 2)
    def web_search(query: str) -> list[dict[str, str]]:
        """Search the web for news, facts and whatever changes. Name the source in the answer.

        Args:
            query: Some key words.
        """
        found = [_bounded(result)._asdict() for result in engine(query)[:RESULTS]]
        return found or [{"title": "nothing was found", "excerpt": "", "url": ""}]

    return PythonTool.from_function(web_search)


def _bounded(result: SearchResult) -> SearchResult:
    title, excerpt = (" ".join(text.split()) for text in (result.title, result.excerpt))
    return SearchResult(title[:MAX_EXCERPT], excerpt[:MAX_EXCERPT], result.url[:MAX_EXCERPT])


def _searxng(address: str) -> Engine:
    def search(query: str) -> list[SearchResult]:
        url = f"{address.rstrip('/')}/search?{urlencode({'q': query, 'format': 'json'})}"
        return _results(exchange(url, "SearXNG", TIMEOUT), "results", "title", "content", "url")

    return search


def _ddgs(ddgs: Any) -> Engine:
    def search(query: str) -> list[SearchResult]:
        try:
            found = ddgs.DDGS(timeout=int(TIMEOUT)).text(query, max_results=RESULTS)
        except ddgs.exceptions.DDGSException as error:
            raise RuntimeError(f"DuckDuckGo cannot be searched ({error})") from None
        return _results({"results": found}, "results", "title", "body", "href")

    return search


def _knowledge(base: KnowledgeBase) -> Engine:
    def search(query: str) -> list[SearchResult]:
        return [SearchResult(p.title, p.text, p.source) for p in base.search(query, RESULTS)]

    return search


def _results(reply: Any, key: str, title: str, excerpt: str, url: str) -> list[SearchResult]:
    """Read the results in a reply. Any field of them may be missing."""
    entries = reply.get(key) if isinstance(reply, dict) else None
    if not isinstance(entries, list):
        raise RuntimeError("the search engine sent no results in its form")
    texts = ({k: e.get(k) for k in (title, excerpt, url)} for e in entries if isinstance(e, dict))
    return [SearchResult(*(str(t[k] or "") for k in (title, excerpt, url))) for t in texts]
