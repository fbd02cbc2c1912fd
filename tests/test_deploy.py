"""Files for deployment fit the project: metrics, settings, extras and paths exist."""

import json
import re
from pathlib import Path

import yaml

from speechgpt2.server.config import ServerConfig, read_environment
from tests import needs

ROOT = Path(__file__).parent.parent


def test_dashboard_shows_metrics_that_exist():
    needs.module("prometheus_client", "server")
    from speechgpt2.server.metrics import Metrics

    known = Metrics(1).exposition().decode()
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    shown = set(re.findall(r"sg2_\w+", json.dumps(dashboard)))
    assert len(dashboard["panels"]) == 8
    assert not {name for name in shown if f"# TYPE {name.removesuffix('_bucket').removesuffix('_total')}" not in known}


def test_settings_in_deployment_files_exist():
    files = [ROOT / "Dockerfile", ROOT / "deploy/compose.yaml", ROOT / "deploy/speechgpt2.service"]
    names = {name for path in files for name in re.findall(r"SG2_[A-Z_]+", path.read_text())}
    values = {"SG2_API_KEYS": "a-long-secret", "SG2_SLOTS": "8", "SG2_HOST": "0.0.0.0", "SG2_LOG_JSON": "true"}
    assert names == set(values)
    assert set(read_environment(values)) == {"api_keys", "slots", "host", "log_json"}
    assert ServerConfig(host="0.0.0.0", api_keys=("a-long-secret",)).limits.drain_seconds < 40


def test_compose_file_names_files_that_exist():
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            assert (ROOT / "deploy" / volume.split(":")[0]).is_file()


def test_dockerfile_copies_files_that_exist_and_installs_extras_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (?!--)(.+)$", text, re.M) for name in line.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in ignored
    (extras,) = re.findall(r"'\.\[(.+)\]'", text)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras.split(","))
