"""One spelling for every URL, and addresses where a crawler has no business."""

from pathlib import Path

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl import urls
from speechgpt2.data.crawl.address_guard import AddressGuard, ForbiddenAddress
from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.errors import UserError


@pytest.mark.parametrize(
    "given, spelled",
    [
        ("HTTP://Example.ORG:80/a/../b/./c?x=1#part", "http://example.org/b/c?x=1"),
        ("https://example.org", "https://example.org/"),
        ("https://example.org?x=1", "https://example.org/?x=1"),
        ("http://example.org/../../etc/passwd", "http://example.org/etc/passwd"),
        ("http://münchen.example/ü", "http://xn--mnchen-3ya.example/%C3%BC"),
        ("  http://example.org/a b  ", "http://example.org/a%20b"),
        ("../other.mp3", "http://base.example/other.mp3"),
        ("//cdn.example/x", "http://cdn.example/x"),
    ],
)
def test_spelling(given, spelled):
    assert urls.normalise(given, base="http://base.example/feeds/all.xml") == spelled
    assert urls.normalise(spelled) == spelled


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a", "file:///etc/passwd", "javascript:alert(1)", "data:audio/wav;base64,AAAA", "http://",
        "http://name:word@example.org/", "http://example.org:99999/", "http://exa mple.org/",
        "http://example.org/" + "a" * 3000, "http://[::1", "http://example.org\\@127.0.0.1/",
    ],
)  # fmt: skip
def test_forbidden_urls_are_rejected(url):
    with pytest.raises(ItemRejected) as rejection:
        urls.normalise(url)
    assert rejection.value.reason == "bad-url"


def test_file_url_round_trip(tmp_path):
    path = tmp_path / "录音 #1?.wav"
    assert urls.to_file(urls.of_file(path)) == path.resolve()


def test_id_is_a_safe_name():
    name = urls.item_id("http://example.org/../../%2e%2e/etc/passwd")
    assert name.isalnum() and Path(name).name == name


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "2002:0a00:0001::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not AddressGuard().permits(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses(address):
    assert AddressGuard().permits(address)


def test_allowed_network_does_not_allow_others():
    guard = AddressGuard(["127.0.0.0/8"])
    assert guard.permits("127.1.2.3") and guard.permits("::ffff:127.0.0.1")
    assert not guard.permits("10.0.0.1") and not guard.permits("::1")
    with pytest.raises(ForbiddenAddress):
        guard.socket((2, 1, 6, "", ("10.0.0.1", 80)))
    with pytest.raises(UserError, match=r"127\.0\.0\.0/8"):
        AddressGuard(["loopback"])
