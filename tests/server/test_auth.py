"""Keys, client secrets, origins, and places."""

import asyncio

import pytest

from speechgpt2.server.auth import BROWSER_KEY, Caller, Doorkeeper
from speechgpt2.server.limits import Admission, Outbox, Overflow, Refused

KEYS = ["a-good-key", "another-key"]


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


def test_keys():
    door = Doorkeeper(KEYS, ())
    first = door.caller("Bearer a-good-key")
    assert first == door.caller("bearer  a-good-key") == door.caller(None, ["realtime", BROWSER_KEY + "a-good-key"])
    assert first.name != door.caller("Bearer another-key").name
    assert "a-good-key" not in first.name
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer a-good-ke",
        "Bearer a-good-keys",
        "Basic a-good-key",
        "Bearer é",
    ):
        assert door.caller(wrong) is None


def test_without_keys_everyone_is_let_in():
    assert Doorkeeper([], ()).caller(None) == Doorkeeper([], ()).caller("Bearer whatever")


def test_a_client_secret_carries_its_session_until_it_ends():
    clock = Clock()
    door = Doorkeeper(KEYS, (), clock)
    caller = door.caller("Bearer a-good-key")
    secret, ends = door.mint(caller, {"instructions": "Sei freundlich. 你好"}, 60)
    assert secret.startswith("ek_") and ends == 1_000_060
    for opened in (door.caller(f"Bearer {secret}"), door.caller(None, [BROWSER_KEY + secret])):
        assert opened.name == caller.name and opened.session == {"instructions": "Sei freundlich. 你好"}
    assert Doorkeeper(KEYS[::-1], (), clock).caller(f"Bearer {secret}").name == caller.name  # another replica
    assert Doorkeeper(["other-keys"], (), clock).caller(f"Bearer {secret}") is None
    clock.now += 61
    assert door.caller(f"Bearer {secret}") is None


def test_without_keys_replicas_agree_on_what_they_sign_with():
    secret, _ = Doorkeeper((), (), signing=b"shared").mint(Caller("anyone"), {}, 60)
    assert Doorkeeper((), (), signing=b"shared").caller(f"Bearer {secret}").name == "anyone"
    assert Doorkeeper((), ()).caller(f"Bearer {secret}") is None


def test_a_client_secret_cannot_be_made_up():
    door = Doorkeeper(KEYS, ())
    secret, _ = door.mint(door.caller("Bearer a-good-key"), {}, 60)
    body, signature = secret.split(".")
    for forged in (body, body + ".", f"{body}.{signature[:-2]}", f"{body[:-2]}xx.{signature}", "ek_", "ek_.", "ek_ü.ü"):
        assert door.caller(f"Bearer {forged}") is None
    unlocked = Doorkeeper([], ())
    assert unlocked.caller("Bearer ek_made.up") is None


def test_a_client_secret_fits_a_header():
    with pytest.raises(ValueError, match="exceed"):
        Doorkeeper([], ()).mint(Doorkeeper([], ()).caller(None), {"instructions": "x" * 20_000}, 60)


def test_origins():
    door = Doorkeeper(KEYS, ["https://app.example"])
    assert door.welcomes(None, "host:8000")
    assert door.welcomes("http://host:8000", "host:8000")
    assert door.welcomes("https://app.example", "host:8000")
    assert not door.welcomes("https://evil.example", "host:8000")
    assert not door.welcomes("null", "host:8000")
    assert not door.welcomes("http://host:8001", "host:8000")
    assert Doorkeeper(KEYS, ["*"]).welcomes("https://evil.example", "host:8000")


def test_places_are_given_and_refused_at_once():
    admission = Admission(2, per_key=1)
    with admission.place("a"):
        with pytest.raises(Refused) as error, admission.place("a"):
            pass
        assert error.value.reason == "per_key"
        with admission.place("b"):
            with pytest.raises(Refused) as error, admission.place("c"):
                pass
            assert error.value.reason == "full" and admission.taken == 2
        with pytest.raises(ZeroDivisionError), admission.place("c"):
            raise ZeroDivisionError
    assert admission.taken == 0
    admission.draining = True
    with pytest.raises(Refused) as error, admission.place("a"):
        pass
    assert error.value.reason == "draining"


def test_an_outbox_holds_only_so_much():
    async def story():
        outbox = Outbox(10)
        outbox.put("12345")
        assert await outbox.get() == "12345"
        outbox.put("1234567890")
        with pytest.raises(Overflow):
            outbox.put("1")
        outbox.put("never sent")
        assert await outbox.get() == "1234567890" and await outbox.get() is None

    asyncio.run(story())


def test_a_closed_outbox_lets_out_what_it_holds():
    async def story():
        outbox = Outbox(10)
        waiting = asyncio.create_task(outbox.get())
        await asyncio.sleep(0)
        outbox.put("last")
        outbox.close()
        assert await waiting == "last" and await outbox.get() is None

    asyncio.run(story())
