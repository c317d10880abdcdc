"""The Helm chart, linted and rendered by Helm's own engine, its manifests held against the schemas of Kubernetes, its files against ours."""

from pathlib import Path
from typing import Any

import pytest

from headrace.cluster.formation.addresses import mistakes
from headrace.config import load
from headrace.core.formation.parsing import parse_text
from headrace.model.formation import Declared

yaml = pytest.importorskip("yaml")
helm = pytest.importorskip("helm_python", reason="there is no wheel of Helm's engine for this platform")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

CHART = Path(__file__).parents[2] / "packaging/helm/headrace"
SECRET = {"secretName": "headrace-cluster"}


def rendered(release: str = "events", **values: Any) -> dict[str, dict[str, Any]]:
    """Manifests by kind; services by name."""
    chart = helm.Chart.load(str(CHART))
    merged = SECRET | values
    chart.validate_schema(merged)
    made = chart.render(merged, name=release, namespace="prod", revision=7, is_install=True)
    documents = [d for path, text in made.items() if path.endswith(".yaml") for d in yaml.safe_load_all(text) if d]
    found = {d["kind"] if d["kind"] != "Service" else f"Service {d['metadata']['name']}": d for d in documents}
    assert len(found) == len(documents)
    return found


def declared(manifests: dict[str, dict[str, Any]]) -> Declared:
    parsed = parse_text(manifests["ConfigMap"]["data"]["cluster.toml"])
    assert parsed.config is not None, parsed.mistakes
    assert not mistakes(parsed.config)
    return parsed.config


def broker(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    [container] = manifests["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_helm_finds_nothing_wrong_with_it() -> None:
    report = helm.lint(str(CHART), SECRET, strict=True, quiet=True)
    assert (report["total_charts_linted"], report["errors"]) == (1, []), report
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


@pytest.mark.parametrize(
    "values",
    [
        {}, {"replicas": 1, "voters": 1}, {"replicas": 21, "voters": 5, "spread": "required"}, {"spread": "none", "config": {}},
        {"persistence": {"size": "1Ti", "storageClassName": "fast"}, "podAnnotations": {"a": "b"}, "nodeSelector": {"disk": "nvme"}},
        {"imagePullSecrets": [{"name": "pull"}], "tolerations": [{"key": "broker", "operator": "Exists"}], "service": {"type": "LoadBalancer"}},
    ],
)  # fmt: skip
def test_kubernetes_would_take_every_manifest(values: dict[str, Any]) -> None:
    manifests = rendered(**values)
    assert sorted(manifests) == ["ConfigMap", "PodDisruptionBudget", "Service events", "Service events-peers", "StatefulSet"]
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_members_are_the_pods_by_their_names_in_the_headless_service() -> None:
    manifests = rendered(replicas=5, voters=3, ports={"native": 7580, "admin": 7581, "peer": 9000})
    config = declared(manifests)
    assert (config.version, config.voters) == (7, ("events-0", "events-1", "events-2"))
    stateful = manifests["StatefulSet"]["spec"]
    headless = manifests[f"Service {stateful['serviceName']}"]["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True), "nobody is ready before it has found the others"
    assert [m.address for m in config.members] == [f"events-{n}.{stateful['serviceName']}.prod.svc.cluster.local:9000" for n in range(5)]
    assert stateful["podManagementPolicy"] == "Parallel"
    ports = {p["name"]: p["containerPort"] for p in broker(manifests)["ports"]}
    assert (ports["peer"], ports["gossip"], ports["etcd-client"], ports["etcd-peer"]) == (9000, 9001, 9002, 9003)
    for service in ("Service events", f"Service {stateful['serviceName']}"):
        assert manifests[service]["spec"]["selector"].items() <= stateful["template"]["metadata"]["labels"].items()
        assert {p["targetPort"] for p in manifests[service]["spec"]["ports"]} <= ports.keys()
    assert manifests["PodDisruptionBudget"]["spec"]["selector"] == stateful["selector"]
    shrunk = rendered(replicas=5, members=3)
    assert shrunk["StatefulSet"]["spec"]["replicas"] == 5
    assert declared(shrunk).names == ("events-0", "events-1", "events-2"), "those that leave run until they have handed over what they have"


def test_the_command_is_one_that_the_broker_takes(tmp_path: Path) -> None:
    from typer.main import get_command

    from headrace.cli.app import app

    manifests = rendered(cluster={"version": 12, "options": {"gospel": "events-0"}})
    config = declared(manifests)
    assert (config.version, config.gospel) == (12, "events-0")
    for name, text in manifests["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    container = broker(manifests)
    program, command, *arguments = container["command"]
    assert (program, command) == ("headrace", "start")
    security = manifests["StatefulSet"]["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {security['runAsUser']}\n" in (CHART.parents[2] / "Dockerfile").read_text(), "the image's own"
    start = get_command(app).commands["start"]  # type: ignore[attr-defined]
    given = start.make_context("start", [a.replace("$(POD_NAME)", "events-0") for a in arguments], resilient_parsing=False).params
    assert (given["name"], given["cluster"], given["secret_file"]) == ("events-0", "/etc/headrace/cluster.toml", "/run/secrets/headrace/secret")
    assert given["advertise"] == "events-0.events-peers.prod.svc.cluster.local:7580"
    loaded = load(tmp_path / "headrace.toml", {}).config
    assert loaded.defaults.queue.replication_factor == loaded.defaults.stream.replication_factor == 3
    mounted = {m["mountPath"] for m in container["volumeMounts"]}
    assert {"/etc/headrace", "/run/secrets/headrace", given["data_dir"]} <= mounted
    drain = container["lifecycle"]["preStop"]["exec"]["command"][-1].split(" || ")[0].split()
    assert drain[0] == "headrace"
    assert get_command(app).commands[drain[1]].make_context("drain", drain[2:]).params["grace"] == "30s"  # type: ignore[attr-defined]
    assert manifests["StatefulSet"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 30


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"secretName": ""}, "make a Secret"), ({"replicas": 2, "voters": 3}, "cannot vote"), ({"members": 2}, "cannot vote"),
        ({"members": 4}, "cannot be members"), ({"replica": 3}, "replica"), ({"spread": "maybe"}, "spread"),
        ({"ports": {"native": 1, "admin": 2, "peer": 65534}}, "peer"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_installed(values: dict[str, Any], why: str) -> None:
    with pytest.raises(helm.HelmError, match=why):
        rendered(**values)
