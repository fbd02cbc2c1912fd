"""A server's settings: file, environment, flags."""

import pytest

from speechgpt2.errors import UserError
from speechgpt2.server.config import ServerConfig, read


def test_nothing_given_serves_mini_on_this_machine():
    config = read(None, {}, {})
    assert config == ServerConfig() and (config.model, config.host) == ("mini", "127.0.0.1")


def test_flags_go_before_the_environment_before_the_file(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("slots: 2\nport: 1\nmodel: folder\nlimits: {per_key: 3, session_seconds: 60}\n")
    environ = {
        "SG2_PORT": "2",
        "SG2_API_KEYS": "key-number-one, key-number-two",
        "SG2_LIMITS_PER_KEY": "4",
        "HOME": "/",
    }
    config = read(path, environ, {"port": 3, "model": None, "limits": {"idle_seconds": 5.0}})
    assert (config.slots, config.port, config.model) == (2, 3, "folder")
    assert config.api_keys == ("key-number-one", "key-number-two")
    assert (config.limits.per_key, config.limits.session_seconds, config.limits.idle_seconds) == (4, 60.0, 5.0)


@pytest.mark.parametrize(
    ("text", "environ", "flags", "message"),
    [
        ("slotz: 3", {}, {}, "unknown key 'slotz'; did you mean 'slots'"),
        ("limits: {per_keys: 3}", {}, {}, "unknown key 'per_keys'"),
        ("[]", {}, {}, "expected a mapping"),
        ("slots: 0", {}, {}, "slots must be at least 1"),
        ("{}", {"SG2_SLOTS": "many"}, {}, "SG2_SLOTS: expected a number"),
        ("{}", {"SG2_OPEN": "perhaps"}, {}, "SG2_OPEN: expected true or false"),
        ("{}", {}, {"host": "0.0.0.0"}, "without keys lets anyone in"),
        ("{}", {}, {"api_keys": ("short",)}, "at least 8 characters"),
        ("{}", {"SG2_ICE_SERVERS": "stun:here:3478,turn:there"}, {}, "stun:host:port, not turn:there"),
        ("limits: {idle_seconds: 0}", {}, {}, "idle_seconds must be above 0"),
        ("{}", {}, {"port": 70_000}, "port must be"),
        ("scale: {most: 3}", {}, {}, "say how many to begin with"),
        ("scale: {replicas: 3, most: 2}", {}, {}, "most must be at least replicas"),
        ("scale: {replicas: 2, busy: 70}", {}, {}, "busy is a share"),
        ("scale: {replicas: -1}", {}, {}, "must not be negative"),
        ("scale: {replicas: 2}", {}, {"port": 0}, "share a port"),
    ],
)
def test_what_makes_no_sense(tmp_path, text, environ, flags, message):
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path, environ, flags)


def test_the_network_may_be_served_with_keys_or_on_purpose():
    read(None, {"SG2_HOST": "0.0.0.0", "SG2_API_KEYS": "a-good-key"}, {})
    read(None, {"SG2_HOST": "0.0.0.0", "SG2_OPEN": "1"}, {})


def test_replicas_by_file_environment_and_flags(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("scale: {replicas: 2, gpus: 1, cluster: auto}")
    scale = read(path, {"SG2_SCALE_MOST": "6"}, {"scale": {"replicas": 3}}).scale
    assert (scale.replicas, scale.most, scale.gpus, scale.cluster) == (3, 6, 1.0, "auto")
