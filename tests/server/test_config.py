"""A server's settings: file, environment, flags."""

import pytest

from speechgpt2.errors import UserError
from speechgpt2.server.config import ServerConfig, read_config


def test_defaults():
    config = read_config(None, {}, {})
    assert config == ServerConfig() and (config.model, config.host) == ("mini", "127.0.0.1")


def test_flags_override_environment_overrides_file(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("slots: 2\nport: 1\nmodel: folder\nlimits: {sessions_per_key: 3, session_seconds: 60}\n")
    environ = {
        "SG2_PORT": "2",
        "SG2_API_KEYS": "key-number-one, key-number-two",
        "SG2_LIMITS_SESSIONS_PER_KEY": "4",
        "HOME": "/",
    }
    config = read_config(path, environ, {"port": 3, "model": None, "limits": {"idle_seconds": 5.0}})
    assert (config.slots, config.port, config.model) == (2, 3, "folder")
    assert config.api_keys == ("key-number-one", "key-number-two")
    assert (config.limits.sessions_per_key, config.limits.session_seconds, config.limits.idle_seconds) == (4, 60.0, 5.0)


def test_greeting_is_chosen_by_index_or_name():
    assert read_config(None, {"SG2_GREETING_INDEX": "2"}, {}).greeting_index == 2
    assert read_config(None, {"SG2_VOICE": "anna", "SG2_GREETINGS": "g.jsonl"}, {}).voice == "anna"


@pytest.mark.parametrize(
    ("text", "environ", "flags", "message"),
    [
        ("{}", {"SG2_GREETING_INDEX": "x"}, {}, "SG2_GREETING_INDEX: expected a number, got 'x'"),
        ("{}", {}, {"greeting_index": -1}, "greeting_index must be at least 0"),
        ("{}", {"SG2_VOICE": "anna"}, {"greeting_index": 1}, "voice and greeting_index exclude each other"),
        ("slotz: 3", {}, {}, "unknown key 'slotz'; did you mean 'slots'"),
        ("limits: {sessions_per_keys: 3}", {}, {}, "unknown key 'sessions_per_keys'"),
        ("[]", {}, {}, "expected a mapping"),
        ("slots: 0", {}, {}, "slots must be at least 1"),
        (f"slots: {10**30}", {}, {}, "slots must be at least 1 and at most 100,000"),
        (f"context: {10**30}", {}, {}, "context must be at most"),
        ("{}", {"SG2_SLOTS": "many"}, {}, "SG2_SLOTS: expected a number"),
        ("{}", {"SG2_ALLOW_UNAUTHENTICATED": "perhaps"}, {}, "SG2_ALLOW_UNAUTHENTICATED: expected true or false"),
        ("{}", {}, {"host": "0.0.0.0"}, "without API keys lets anyone connect"),
        ("{}", {}, {"api_keys": ("short",)}, "at least 8 characters"),
        ("{}", {"SG2_ICE_SERVERS": "stun:here:3478,turn:there"}, {}, "stun:host:port, not turn:there"),
        ("limits: {idle_seconds: 0}", {}, {}, "idle_seconds must be above 0"),
        ("{}", {}, {"port": 70_000}, "port must be"),
        ("scale: {max_replicas: 3}", {}, {}, "set replicas to at least 1"),
        ("scale: {replicas: 3, max_replicas: 2}", {}, {}, "max_replicas must be at least replicas"),
        ("scale: {replicas: 2, target_utilization: 70}", {}, {}, "target_utilization must be"),
        ("scale: {replicas: -1}", {}, {}, "must not be negative"),
        ("scale: {replicas: 2}", {}, {"port": 0}, "need a fixed port"),
    ],
)
def test_invalid_settings(tmp_path, text, environ, flags, message):
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(path, environ, flags)


def test_network_needs_keys_or_explicit_permission():
    read_config(None, {"SG2_HOST": "0.0.0.0", "SG2_API_KEYS": "a-good-key"}, {})
    read_config(None, {"SG2_HOST": "0.0.0.0", "SG2_ALLOW_UNAUTHENTICATED": "1"}, {})


def test_scale_settings_from_all_sources(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("scale: {replicas: 2, num_gpus: 1, cluster: auto}")
    scale = read_config(path, {"SG2_SCALE_MAX_REPLICAS": "6"}, {"scale": {"replicas": 3}}).scale
    assert (scale.replicas, scale.max_replicas, scale.num_gpus, scale.cluster) == (3, 6, 1.0, "auto")


def test_tools_and_persona_come_from_flags_and_environment():
    from speechgpt2.server.config import ToolsConfig

    environ = {"SG2_TOOLS_MCP": "a b,c", "SG2_TOOLS_TIMEOUT": "3", "SG2_PERSONA": "pirate"}
    settings = read_config(None, environ, {"tools": {"search": "ddgs"}})
    assert settings.tools == ToolsConfig(mcp=("a b", "c"), timeout=3.0, search="ddgs")
    assert settings.persona == "pirate"
    with pytest.raises(UserError, match="timeout must be above 0"):
        read_config(None, {"SG2_TOOLS_TIMEOUT": "0"}, {})
