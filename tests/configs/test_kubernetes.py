"""The Kubernetes manifests: valid by Kubernetes' own schemas, and in step with each other, the image and the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_allocator.metrics.table import METRICS
from celery_allocator.settings import table
from tests.support import our_commands
from tests.support.compose import CONFIGS

FOLDER = CONFIGS / "kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
SCALED = FOLDER / "keda" / "worker-scaledobject.yaml"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def everything() -> list[dict[str, Any]]:
    """What is applied, with the example of the Secret, and the DaemonSet as well as the StatefulSet."""
    return [document for path in FILES for document in documents(path)]


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in everything() if one["kind"] in kinds}


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, template of the pod, and container of each workload (each has one)."""
    for name, workload in of_kind(*WORKLOADS).items():
        template = workload["spec"]["template"]
        (container,) = template["spec"]["containers"]
        yield name, template, container


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_what_kubernetes_takes(path: Path) -> None:
    argv = [sys.executable, "-m", "kubernetes_validate", "--strict", str(path)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_would_be_found(tmp_path: Path) -> None:
    wrong = documents(FOLDER / "exporter.yaml")[1]
    wrong["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 5
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    argv = [sys.executable, "-m", "kubernetes_validate", "--strict", str(tmp_path / "wrong.yaml")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "terminationGracePeriodSecond" in done.stdout + done.stderr


def test_kustomization_names_every_file_or_says_why_not() -> None:
    text = (FOLDER / "kustomization.yaml").read_text()
    loaded = yaml.safe_load(text)
    assert loaded["kind"] == "Kustomization" and loaded["namespace"] == "celery-allocator"
    assert {path.name for path in FILES} - set(loaded["resources"]) == {"secret.example.yaml", "worker-daemonset.yaml"}
    assert set(loaded["resources"]) <= {path.name for path in FILES}
    assert "#- worker-daemonset.yaml" in text
    assert documents(FOLDER / "keda" / "kustomization.yaml")[0]["resources"] == [SCALED.name]
    assert [one["name"] for one in loaded["images"]] == ["celery-allocator"]


def test_pods_run_commands_that_exist() -> None:
    for name, _, container in pods():
        if container["image"] == "celery-allocator":
            our_commands.check(container["args"])
        else:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", container["image"]), name


def test_settings_secrets_and_volumes_exist() -> None:
    settings = {row.env for row in table()} | {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "FLOWER_BASIC_AUTH"}
    maps, secrets = of_kind("ConfigMap"), of_kind("Secret")["Secret/celery-allocator"]["stringData"]
    assert set(maps["ConfigMap/celery-allocator"]["data"]) <= settings
    for name, template, container in pods():
        for variable in container.get("env", ()):
            ours = container["image"] == "celery-allocator"
            assert not ours or variable["name"] in settings, f"{name}: {variable['name']}"
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            assert source is None or (source["name"] == "celery-allocator" and source["key"] in secrets), name
        for source in container.get("envFrom", ()):
            assert f"ConfigMap/{source['configMapRef']['name']}" in maps, name
        volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
        claims = of_kind(*WORKLOADS)[name]["spec"].get("volumeClaimTemplates", ())
        volumes |= {claim["metadata"]["name"] for claim in claims}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
    assert all("CHANGE-ME" in value for value in secrets.values())


def test_names_and_ports_lead_somewhere() -> None:
    services, labels = of_kind("Service"), {}
    ports: dict[str, dict[str, int]] = {}
    for name, template, container in pods():
        assert (
            of_kind(*WORKLOADS)[name]["spec"]["selector"]["matchLabels"].items()
            <= template["metadata"]["labels"].items()
        )
        label = template["metadata"]["labels"]["app.kubernetes.io/name"]
        labels[label] = template["metadata"]["labels"]
        ports[label] = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    for service in services.values():
        target = service["spec"]["selector"]["app.kubernetes.io/name"]
        for port in service["spec"]["ports"]:
            assert target in labels
            assert "targetPort" not in port or ports[target][port["targetPort"]] == port["port"]
    annotations = services["Service/exporter"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["exporter"]["metrics"]) == "9808"
    (exporter,) = [container for name, _, container in pods() if name == "Deployment/exporter"]
    assert "9808" in exporter["args"]
    hosts = re.findall(r"@(\w+):(\d+)", str(of_kind("Secret")))
    assert {(host, port) for host, port in hosts if host != "postgres"} == {("ledger", "6379")}
    assert ports["ledger"] == {"redis": 6379}
    for policy in of_kind("NetworkPolicy").values():
        target = policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name")
        for rule in policy["spec"].get("ingress", ()):
            assert all(port["port"] in ports[target] for port in rule["ports"]), policy["metadata"]["name"]


def test_who_talks_to_the_ledger_may() -> None:
    for name, template, container in pods():
        talks = "ledger-url" in str(container.get("env"))
        allowed = template["metadata"]["labels"].get("celery-allocator/ledger-client") == "true"
        assert talks == allowed, name


def test_pods_are_shut_in() -> None:
    for name, template, container in pods():
        pod, own = template["spec"]["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] and pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        # A Service called flower would set FLOWER_PORT, which Flower takes for its own option.
        assert name.endswith("ledger") or template["spec"]["enableServiceLinks"] is False, name


def test_the_ledger_is_state() -> None:
    (workload,) = [one for name, one in of_kind("StatefulSet").items() if name.endswith("ledger")]
    lines = of_kind("ConfigMap")["ConfigMap/ledger"]["data"]["valkey.conf"].splitlines()
    shipped = (CONFIGS / "redis.conf").read_text().splitlines()
    assert {"maxmemory-policy noeviction", "appendonly yes", "dir /data"} <= set(lines)
    # All but where it listens, where its file lies and how much it may take is configs/redis.conf's.
    assert set(lines) - set(shipped) == {"bind 0.0.0.0", "dir /data", "maxmemory 1200mb"}
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    mounts = workload["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {mount["mountPath"] for mount in mounts if mount["name"] == claim["metadata"]["name"]} == {"/data"}


def test_both_workers_are_the_same_but_for_how_they_are_placed() -> None:
    one, other = (of_kind(*WORKLOADS)[f"{kind}/worker"]["spec"]["template"] for kind in ("StatefulSet", "DaemonSet"))
    assert one["spec"].pop("affinity") and "affinity" not in other["spec"]
    for template, path in ((one, "metadata.name"), (other, "spec.nodeName")):
        (container,) = template["spec"]["containers"]
        node = container["env"].pop(0)
        assert node["name"] == "ALLOCATOR_NODE" and node["valueFrom"]["fieldRef"]["fieldPath"] == path
        # Guaranteed: its cores are its own.
        limits = dict(container["resources"]["limits"])
        assert limits.pop("nvidia.com/gpu") == 1 and limits == container["resources"]["requests"]
    assert one == other
    # A warm shutdown: SIGTERM reaches the launcher, and there is time for what runs.
    assert one["spec"]["terminationGracePeriodSeconds"] >= 600
    assert '"dumb-init", "--single-child"' in (CONFIGS / "Dockerfile").read_text()


#: What KEDA's reference names: of a ScaledObject, of its target, of a trigger of type prometheus.
_SPEC = {
    *("scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount"),
    *("minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers"),
}
_TARGET = {"apiVersion", "kind", "name", "envSourceContainerName"}
_TRIGGER = {"type", "name", "metadata", "metricType", "useCachedMetrics", "authenticationRef"}
_PROMETHEUS = {
    *("serverAddress", "query", "queryParameters", "threshold", "activationThreshold", "namespace", "customHeaders"),
    *("ignoreNullValues", "unsafeSsl", "authModes", "timeout"),
}


def test_scaled_object_has_fields_that_keda_knows_and_scales_the_workers() -> None:
    """Written by hand after KEDA's reference: its schema is not to be had from a package index."""
    (scaled,) = documents(SCALED)
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaled["spec"]
    assert set(spec) <= _SPEC and set(spec["scaleTargetRef"]) <= _TARGET
    target = f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"
    assert target in of_kind("StatefulSet", "Deployment")
    assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus" and set(trigger) <= _TRIGGER
    metadata = trigger["metadata"]
    assert {"serverAddress", "query", "threshold"} <= set(metadata) <= _PROMETHEUS
    assert all(isinstance(value, str) for value in metadata.values()) and float(metadata["threshold"]) > 0
    behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert set(behaviour) == {"scaleUp", "scaleDown"}


def test_metrics_that_are_asked_for_exist() -> None:
    """In every file of configs/, as the exporter tells them."""
    known = {metric.full_name for metric in METRICS.values()}
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    asked = {
        name: path.name
        for path in CONFIGS.rglob("*")
        if path.suffix in (".json", ".yaml", ".yml")
        for name in re.findall(r"\bcelery_allocator_\w+", path.read_text())
    }
    assert asked and {name: asked[name] for name in asked if name not in known} == {}
