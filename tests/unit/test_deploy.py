"""The cluster files that are shipped: what reads them takes them, and they say what the README promises of them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from runtime.config import Config
from runtime.yaml_lines import check, read

DEPLOY = Path(__file__).parents[2] / "deploy"
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
QUICK_HEALTH = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def kubernetes() -> dict[str, dict[str, Any]]:
    documents = list(yaml.safe_load_all((DEPLOY / "kuberay-rayjob.yaml").read_text()))
    return {document["kind"]: document for document in documents}


def test_ray_up_takes_the_cluster_file() -> None:
    """In the way that `ray up` reads it; both workers are in it; the three settings that notice a lost node soon are the head's."""
    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert [kind["min_workers"] for kind in prepared["available_node_types"].values()] == [2]
    [start] = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert all(f"{name}={value}" in start for name, value in QUICK_HEALTH.items())
    for command in (start, config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
        assert "\n" not in command.strip(), "a folded command that is several"


def test_kuberays_autoscaler_takes_the_cluster_of_the_job() -> None:
    """Ray's own reader of such a resource makes of it what Ray's schema allows."""
    job = kubernetes()["RayJob"]
    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": job["spec"]["rayClusterSpec"]}
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    jsonschema.validate(derived, SCHEMA)
    types = derived["available_node_types"]
    assert types["callers"]["min_workers"] == 2
    assert derived["head_node_type"] in types


def test_the_pods_of_the_job_find_what_they_mount_and_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Volumes, claims, the configuration and its keys; and that configuration is one that `raycade batch` takes."""
    all_ = kubernetes()
    spec = all_["RayJob"]["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [worker] = [group["template"]["spec"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]]
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert {mount["name"] for mount in head["containers"][0]["volumeMounts"]} == set(volumes)
    claim = volumes["data"]["persistentVolumeClaim"]["claimName"]
    assert claim == all_["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["config"]["configMap"]["name"] == all_["ConfigMap"]["metadata"]["name"]
    [(file, text)] = all_["ConfigMap"]["data"].items()
    assert f"-c /etc/raycade/{file}" in spec["entrypoint"]
    (tmp_path / file).write_text(text)
    config = check(Config, read(str(tmp_path / file)))
    for pod in (head, worker):
        environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        assert {tier.api_key_env for tier in config.tiers} <= set(environment)
        assert all(environment[name]["value"] == value for name, value in QUICK_HEALTH.items())
    assert config.state_dir.startswith("/data/")
