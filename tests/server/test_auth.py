"""API keys, client secrets, origins, and admission."""

import asyncio

import pytest

from speechgpt2.server.admission import Admission, AdmissionError
from speechgpt2.server.auth import BROWSER_KEY, Authenticator, Principal
from speechgpt2.server.outbound import OutboundQueue, SlowConsumerError

KEYS = ["a-good-key", "another-key"]


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


def test_api_keys():
    authenticator = Authenticator(KEYS, ())
    first = authenticator.authenticate("Bearer a-good-key")
    assert (
        first
        == authenticator.authenticate("bearer  a-good-key")
        == authenticator.authenticate(None, ["realtime", BROWSER_KEY + "a-good-key"])
    )
    assert first.key_id != authenticator.authenticate("Bearer another-key").key_id
    assert "a-good-key" not in first.key_id
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
        assert authenticator.authenticate(wrong) is None


def test_without_keys_everyone_is_authenticated():
    assert Authenticator([], ()).authenticate(None) == Authenticator([], ()).authenticate("Bearer whatever")


def test_client_secret_carries_session_until_it_expires():
    clock = Clock()
    authenticator = Authenticator(KEYS, (), clock)
    principal = authenticator.authenticate("Bearer a-good-key")
    secret, expires_at = authenticator.create_client_secret(principal, {"instructions": "Sei freundlich. 你好"}, 60)
    assert secret.startswith("ek_") and expires_at == 1_000_060
    for opened in (
        authenticator.authenticate(f"Bearer {secret}"),
        authenticator.authenticate(None, [BROWSER_KEY + secret]),
    ):
        assert opened.key_id == principal.key_id and opened.session == {"instructions": "Sei freundlich. 你好"}
    assert (
        Authenticator(KEYS[::-1], (), clock).authenticate(f"Bearer {secret}").key_id == principal.key_id
    )  # another replica
    assert Authenticator(["other-keys"], (), clock).authenticate(f"Bearer {secret}") is None
    clock.now += 61
    assert authenticator.authenticate(f"Bearer {secret}") is None


def test_replicas_without_keys_share_a_signing_key():
    secret, _ = Authenticator((), (), signing_key=b"shared").create_client_secret(Principal("anonymous"), {}, 60)
    assert Authenticator((), (), signing_key=b"shared").authenticate(f"Bearer {secret}").key_id == "anonymous"
    assert Authenticator((), ()).authenticate(f"Bearer {secret}") is None


def test_forged_client_secrets_are_rejected():
    authenticator = Authenticator(KEYS, ())
    secret, _ = authenticator.create_client_secret(authenticator.authenticate("Bearer a-good-key"), {}, 60)
    body, signature = secret.split(".")
    for forged in (body, body + ".", f"{body}.{signature[:-2]}", f"{body[:-2]}xx.{signature}", "ek_", "ek_.", "ek_ü.ü"):
        assert authenticator.authenticate(f"Bearer {forged}") is None
    keyless = Authenticator([], ())
    assert keyless.authenticate("Bearer ek_made.up") is None


def test_client_secret_size_is_limited():
    with pytest.raises(ValueError, match="exceed"):
        Authenticator([], ()).create_client_secret(
            Authenticator([], ()).authenticate(None), {"instructions": "x" * 20_000}, 60
        )


def test_allowed_origins():
    authenticator = Authenticator(KEYS, ["https://app.example"])
    assert authenticator.allows_origin(None, "host:8000")
    assert authenticator.allows_origin("http://host:8000", "host:8000")
    assert authenticator.allows_origin("https://app.example", "host:8000")
    assert not authenticator.allows_origin("https://evil.example", "host:8000")
    assert not authenticator.allows_origin("null", "host:8000")
    assert not authenticator.allows_origin("http://host:8001", "host:8000")
    assert Authenticator(KEYS, ["*"]).allows_origin("https://evil.example", "host:8000")


def test_admission_admits_or_rejects_at_once():
    admission = Admission(2, sessions_per_key=1)
    with admission.admit("a"):
        with pytest.raises(AdmissionError) as error, admission.admit("a"):
            pass
        assert error.value.reason == "per_key"
        with admission.admit("b"):
            with pytest.raises(AdmissionError) as error, admission.admit("c"):
                pass
            assert error.value.reason == "full" and admission.active == 2
        with pytest.raises(ZeroDivisionError), admission.admit("c"):
            raise ZeroDivisionError
    assert admission.active == 0
    admission.draining = True
    with pytest.raises(AdmissionError) as error, admission.admit("a"):
        pass
    assert error.value.reason == "draining"


def test_outbound_queue_is_bounded():
    async def scenario():
        queue = OutboundQueue(10)
        queue.put("12345")
        assert await queue.get() == "12345"
        queue.put("1234567890")
        with pytest.raises(SlowConsumerError):
            queue.put("1")
        queue.put("never sent")
        assert await queue.get() == "1234567890" and await queue.get() is None

    asyncio.run(scenario())


def test_closed_outbound_queue_is_emptied():
    async def scenario():
        queue = OutboundQueue(10)
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.put("last")
        queue.close()
        assert await waiting == "last" and await queue.get() is None

    asyncio.run(scenario())
