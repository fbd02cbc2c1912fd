"""How many GPUs Ray reserves for a replica."""

import pytest

from tests import needs

needs.module("ray", "ray")

from speechgpt2.scale import deployment
from speechgpt2.server.config import ScaleConfig, ServerConfig, read_config


@pytest.mark.parametrize(
    ("device", "scale", "cluster", "gpus"),
    [
        ("cuda", {}, 0, 1.0),
        ("cpu", {}, 8, 0.0),
        ("auto", {}, 0, 0.0),
        ("auto", {}, 8, 1.0),
        ("auto", {}, 1, 0.5),
        ("auto", {"max_replicas": 3}, 1, 0.3333),
        ("auto", {"num_gpus": 0.0}, 8, 0.0),
        ("cpu", {"num_gpus": 0.25}, 0, 0.25),
    ],
)
def test_replicas_share_the_gpus(monkeypatch, device, scale, cluster, gpus):
    monkeypatch.setattr(deployment.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": float(cluster)})
    config = ServerConfig(device=device, scale=ScaleConfig(replicas=2, **scale))
    assert deployment.gpus_per_replica(config) == gpus


def test_number_of_gpus_is_read_from_the_environment():
    assert read_config(None, {"SG2_SCALE_NUM_GPUS": "0.5", "SG2_SCALE_REPLICAS": "1"}, {}).scale.num_gpus == 0.5
    assert read_config(None, {}, {}).scale.num_gpus is None
