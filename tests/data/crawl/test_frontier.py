"""Leases, duplicates, depth and takedowns of the frontier, with a clock of our own."""

import subprocess
import sys
from itertools import permutations

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.frontier import Frontier, LeaseLost
from speechgpt2.data.crawl.frontier_reader import Link
from speechgpt2.data.crawl.hosts import Hosts, RobotsText
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.crawl.urls import item_id
from speechgpt2.errors import UserError

LEASE = 10.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def database(tmp_path, clock):
    opened = Database(tmp_path / "frontier.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def frontier(database):
    return Frontier(database, "first", LEASE)


def url(name: str) -> str:
    return f"http://example.org/{name}"


def media(*names: str) -> list[Link]:
    return [Link(url(name), "media") for name in names]


def fetched(frontier: Frontier, name: str, probed: str, sha: str = "") -> None:
    """Take exactly that item and finish it."""
    others = []
    while (item := frontier.lease_item(per_host=99)).url != url(name):
        others.append(item.id)
    for other in others:
        frontier.release(other)
    frontier.finish_recording(item.id, sha or f"bytes of {name}", probed, 10, 1.0, {"hops": [item.url]})


def states(frontier: Frontier) -> dict[str, str]:
    return {item.url.rpartition("/")[2]: item.reason or item.state for item in frontier.items()}


def test_lease_is_exclusive_until_it_runs_out(frontier, database, clock):
    other = Frontier(database, "second", LEASE)
    frontier.add(media("a"))
    item = frontier.lease_item(2)
    assert item.url == url("a") and other.lease_item(2) is None
    clock.now += LEASE - 1
    frontier.renew()
    clock.now += LEASE - 1
    assert other.lease_item(2) is None
    clock.now += 2
    assert other.lease_item(2).id == item.id
    for late in (
        lambda: frontier.reject(item.id, ItemRejected("x", "")),
        lambda: frontier.retry(item.id, 1.0),
        lambda: frontier.remember(item.id, {}),
        lambda: frontier.finish_recording(item.id, "s", "f", 1, 1.0, {}),
    ):
        with pytest.raises(LeaseLost):
            late()
    frontier.release(item.id)  # no longer held: nothing happens
    assert frontier.lease_item(2) is None


def test_lease_that_ran_out_is_not_renewed(frontier, database, clock):
    frontier.add(media("a"))
    frontier.lease_item(2)
    clock.now += LEASE + 1
    frontier.renew()
    assert Frontier(database, "second", LEASE).lease_item(2) is not None


def test_leases_respect_limits_and_pauses_of_hosts(frontier, database, clock):
    frontier.add([*media("a", "b", "c"), Link("http://other.example/d", "media")])
    hosts = Hosts(database, LEASE)
    taken = [frontier.lease_item(per_host=2) for _ in range(4)]
    assert sorted(item.host for item in taken if item) == ["example.org", "example.org", "other.example"]
    frontier.release(taken[0].id)
    hosts.pause(taken[0].host, 5.0)
    assert frontier.lease_item(per_host=2) is None and frontier.next_due() == pytest.approx(5.0)
    clock.now += 5.1
    assert frontier.lease_item(per_host=2) is not None


def test_requests_to_a_host_are_spaced_over_all_processes(database, clock):
    first, second = Hosts(database, LEASE), Hosts(database, LEASE)
    waits = [hosts.reserve("h", 2.0) for hosts in (first, second, first)] + [second.reserve("other", 2.0)]
    assert waits == [0.0, 2.0, 4.0, 0.0]
    clock.now += 100
    assert first.reserve("h", 2.0) == 0.0


def test_one_worker_fetches_a_robots_txt(database, clock):
    hosts = Hosts(database, LEASE)
    assert hosts.claim_robots("o") and not hosts.claim_robots("o") and hosts.robots("o") is None
    hosts.set_robots("o", RobotsText(200, "body"), valid_seconds=60)
    assert hosts.robots("o") == (200, "body") and not hosts.claim_robots("o")
    clock.now += 61
    assert hosts.robots("o") is None and hosts.claim_robots("o")
    clock.now += LEASE + 1  # and if that worker died
    assert hosts.claim_robots("o")
    hosts.give_up_robots("o")
    assert hosts.claim_robots("o")


def test_retry_waits_and_counts(frontier, clock):
    frontier.add(media("a"))
    item = frontier.lease_item(2)
    frontier.retry(item.id, after=30.0)
    assert frontier.lease_item(2) is None and frontier.next_due() == pytest.approx(30.0)
    clock.now += 31
    assert frontier.lease_item(2).attempts == 1
    frontier.retry(item.id, after=0.0, count=False)
    assert frontier.lease_item(2).attempts == 1


@pytest.mark.parametrize("order", permutations("abc"))
def test_of_equal_audio_the_smallest_url_is_kept(frontier, order):
    frontier.add(media("a", "b", "c"))
    for name in order:
        fetched(frontier, name, "same sound")
    assert states(frontier) == {"a": "done", "b": "duplicate", "c": "duplicate"}


def test_withdrawn_recording_reopens_its_duplicates(frontier):
    frontier.add(media("a", "b", "c"))
    for name, probed in (("a", "x"), ("b", "x"), ("c", "y")):
        fetched(frontier, name, probed)
    frontier.withdraw(item_id(url("a")), ItemRejected("licence", ""))
    assert states(frontier) == {"a": "licence", "b": "open", "c": "done"}
    fetched(frontier, "b", "x")
    assert states(frontier) == {"a": "licence", "b": "done", "c": "done"}


def test_page_found_by_a_shorter_way_is_read_again(frontier):
    frontier.add([Link(url("p"), "page", 0)])
    item = frontier.lease_item(2)
    frontier.finish_document(item.id, [], {}, {"depth": 0})
    frontier.add([Link(url("p"), "page", 0)])
    assert frontier.lease_item(2) is None
    frontier.add([Link(url("p"), "page", 2)])
    again = frontier.lease_item(2)
    assert again.depth == 2
    frontier.add([Link(url("p"), "page", 3)])  # while it is being read
    frontier.finish_document(item.id, [], {}, {"depth": 2})
    assert frontier.lease_item(2).depth == 3


def family(frontier: Frontier) -> None:
    """A page that links a feed and a recording; the feed has two episodes, one of them a copy of another site's."""
    frontier.add([Link(url("page"), "page", 1), Link("http://other.example/copy", "media")])

    def document(name: str, links: list[Link]) -> None:
        item = next(item for item in iter(lambda: frontier.lease_item(9), None) if item.url == url(name))
        frontier.finish_document(item.id, links, {}, {"depth": 1})

    document("page", [Link(url("show/feed"), "feed"), Link(url("talk"), "media")])
    document("show/feed", media("show/1", "show/2"))
    for item in frontier.items("state = 'open'"):
        frontier.release(item.id)
    while item := frontier.lease_item(9):
        probed = "same" if item.url.endswith(("copy", "show/2")) else item.url
        frontier.finish_recording(item.id, item.url, probed, 1, 1.0, {"hops": [item.url, item.url + "?moved"]})


ALL = {"page", "show/feed", "show/1", "show/2", "talk", "copy"}


@pytest.mark.parametrize(
    "source, gone",
    [
        ("talk", {"talk"}),
        ("talk?moved", {"talk"}),  # where a redirect led
        ("show/1", {"show/1"}),
        ("show/2", {"show/2", "copy"}),  # the same content elsewhere
        ("show/feed", {"show/feed", "show/1", "show/2", "copy"}),
        ("show/", {"show/feed", "show/1", "show/2", "copy"}),
        ("page", {"page", "talk"}),  # its link to the feed is a mere reference
        ("", ALL),  # the whole host, and copies elsewhere
        ("nobody", set()),
    ],
)
def test_takedown_removes_only_what_is_derived(frontier, source, gone):
    family(frontier)
    removed = {
        item.url.removeprefix("http://example.org/").rpartition("example/")[2]
        for item in frontier.take_down(url(source))
    }
    assert removed == gone
    assert {item.url for item in frontier.items("reason = 'taken-down'")} >= {
        item.url for item in frontier.items() if item.url.removeprefix("http://example.org/") in gone
    }


def test_taken_down_item_is_not_crawled_again(frontier):
    frontier.take_down(url("show/"))
    frontier.add([*media("show/new"), *media("else")])
    assert states(frontier) == {"new": "taken-down", "else": "open"}
    fetched(frontier, "else", "sound")
    frontier.take_down(url("else"))
    frontier.add(media("mirror", "through"))
    item = frontier.lease_item(9)
    with pytest.raises(ItemRejected, match="content was taken down"):
        frontier.finish_recording(item.id, "bytes", "sound", 1, 1.0, {"hops": [item.url]})
    with pytest.raises(ItemRejected, match="source was taken down"):
        frontier.finish_recording(item.id, "b", "s", 1, 1.0, {"hops": [item.url, url("show/x")]})


def test_takedown_ends_a_lease(frontier):
    frontier.add(media("a"))
    item = frontier.lease_item(9)
    frontier.take_down(url("a"))
    with pytest.raises(LeaseLost):
        frontier.finish_recording(item.id, "s", "f", 1, 1.0, {})


def test_invalid_frontier_is_a_user_error(tmp_path, database):
    (tmp_path / "other.db").write_text("not a database, but long enough to be one" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        Database(tmp_path / "other.db")
    database.run("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="version 99"):
        Database(database.path)


WORKER = """
import sys
from pathlib import Path
from speechgpt2.data.crawl.database import Database
from speechgpt2.data.crawl.frontier import Frontier
frontier = Frontier(Database(Path(sys.argv[1])), sys.argv[2], 60.0)
while item := frontier.lease_item(1000):
    frontier.finish_recording(item.id, item.url, item.url, 1, 1.0, {"hops": []})
    print(item.url)
"""


def test_racing_processes_never_lease_the_same_item(tmp_path):
    frontier = Frontier(Database(tmp_path / "frontier.db"), "x", 60.0)
    frontier.add(media(*(f"{i}" for i in range(150))))
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "frontier.db"), f"{i}"], stdout=subprocess.PIPE)
        for i in range(2)
    ]
    taken = [line for worker in workers for line in worker.communicate(timeout=60)[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(taken) == len(set(taken)) == 150
    assert frontier.totals().recordings == 150
