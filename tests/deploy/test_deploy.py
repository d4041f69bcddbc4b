"""Everything under deploy/ fits the real schemas, asks for nothing the package lacks, and gives
away no more than it must.

Compose files: the compose-spec parser. Kubernetes kinds: kubernetes-validate's schemas. RayCluster
and RayJob: the fields of KubeRay's CRD (kuberay_fields.txt), their pod templates and network rules
against Kubernetes' own schemas. The SkyPilot file has no schema that installs without half a cloud
SDK, so its keys are checked by hand.
"""

import copy
import json
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
import yaml

from places import ROOT
from recycler.cli import build_parser

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "docker-compose.yaml"
KUBERNETES = "1.34"
DUMMY = {
    "RAY_AUTH_TOKEN": "t",
    "POSTGRES_PASSWORD": "p",
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
}
TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "list": list,
    "object": dict,
    "map": dict,
    "integer|string": (int, str),
}


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def kinds(name):
    """[(file, document)] of every Kubernetes document of that kind."""
    return [
        (path.name, document)
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in documents(path)
        if document["kind"] == name
    ]


def compose():
    return documents(COMPOSE)[0]


def filled_in(text):
    """The text of a compose file with its variables replaced, as compose itself would."""
    return re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda match: DUMMY[match[1]], text)


# ---------------------------------------------------------------- compose


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.glob("docker-compose*.yaml")), ids=lambda path: path.name
)
def test_compose_files_are_well_formed(path):
    parser = pytest.importorskip(
        "compose_spec", reason="needs compose-spec, see the test extra"
    ).PyCompose
    parsed = parser.from_yaml(json.dumps(yaml.safe_load(filled_in(path.read_text()))))
    parsed.validate()
    assert parsed.service_names()


def test_a_misspelt_compose_key_is_found():
    parser = pytest.importorskip(
        "compose_spec", reason="needs compose-spec, see the test extra"
    ).PyCompose
    wrong = yaml.safe_load(filled_in(COMPOSE.read_text()))
    wrong["services"]["ray-head"]["helthcheck"] = {}
    with pytest.raises(ValueError, match="helthcheck"):
        parser.from_yaml(json.dumps(wrong))


def test_every_service_is_watched_pinned_and_waits_for_what_it_needs():
    services = compose()["services"]
    assert set(services) == {"bucket", "postgres", "ray-head", "ray-worker", "service"}
    for name, service in services.items():
        assert service["healthcheck"]["test"] and service["restart"] == "unless-stopped", name
        assert re.search(r":v?\d+\.\d+", service["image"]), (
            f"{name}: {service['image']} is not pinned"
        )
        assert all(
            services[other]["healthcheck"] and want["condition"] == "service_healthy"
            for other, want in service.get("depends_on", {}).items()
        )


def test_secrets_come_from_the_env_file_and_ports_stay_on_this_machine():
    text = COMPOSE.read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    offered = set(re.findall(r"^(\w+)=$", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    assert used == offered == set(DUMMY), (
        "each variable stands in env.example without a value, and has no default"
    )
    assert len(re.findall(r"\$\{\w+:\?", text)) == len(re.findall(r"\$\{", text)), (
        "compose must refuse to start without a secret"
    )
    ports = [
        port for service in compose()["services"].values() for port in service.get("ports", [])
    ]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_ray_needs_a_token_and_recycler_s_containers_have_no_privilege():
    for name in ("ray-head", "ray-worker", "service"):
        service = compose()["services"][name]
        assert (
            service["environment"]["RAY_AUTH_MODE"] == "token"
            and service["environment"]["RAY_AUTH_TOKEN"]
        )
        assert (
            service["cap_drop"] == ["ALL"]
            and service["read_only"]
            and service["security_opt"] == ["no-new-privileges:true"]
        )


# ---------------------------------------------------------------- Kubernetes


def fields():
    """{path: (type, allowed values)} of a RayJob's spec."""
    lines = [
        line.split()
        for line in (ROOT / "tests/deploy/kuberay_fields.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {path: (kind, rest[0].split("|") if rest else None) for path, kind, *rest in lines}


def core_document(kind, value):
    """A whole Kubernetes document around a part that one of its kinds has too."""
    rules = {"NetworkPolicyIngressRules": "ingress", "NetworkPolicyEgressRules": "egress"}
    if kind == "PodTemplateSpec":
        selector = {"matchLabels": value.get("metadata", {}).get("labels", {"a": "b"})}
        template = copy.deepcopy(value)
        template["spec"].pop("restartPolicy", None)
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "x"},
            "spec": {"selector": selector, "template": template},
        }
    if kind == "Service":
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, **value}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "x"},
        "spec": {"podSelector": {}, rules[kind]: value},
    }


def wrong_fields(value, path, known, validate):
    """What a spec has that KubeRay's CRD does not know, or knows otherwise."""
    if path not in known:
        return [f"{path} is unknown"]
    kind, allowed = known[path]
    if kind not in TYPES:
        validate(core_document(kind, value), KUBERNETES, strict=True)
        return []
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{path} is a {type(value).__name__}, not a {kind}"]
    if allowed and value not in allowed:
        return [f"{path} is {value!r}, not one of {allowed}"]
    if kind == "map":
        return [
            f"{path}.{key} is no string" for key, item in value.items() if not isinstance(item, str)
        ]
    if kind == "list":
        return [
            found for item in value for found in wrong_fields(item, f"{path}[]", known, validate)
        ]
    return (
        [
            found
            for key, item in value.items()
            for found in wrong_fields(item, f"{path}.{key}".removeprefix("."), known, validate)
        ]
        if kind == "object"
        else []
    )


def wrong_spec(document, validate):
    spec = (
        document["spec"] if document["kind"] == "RayJob" else {"rayClusterSpec": document["spec"]}
    )
    known = fields()
    return [
        found for key, value in spec.items() for found in wrong_fields(value, key, known, validate)
    ]


@pytest.fixture
def validate():
    return pytest.importorskip(
        "kubernetes_validate", reason="needs kubernetes-validate, see the test extra"
    ).validate


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_ray_kinds_have_only_fields_that_kuberay_knows(kind, validate):
    found = kinds(kind)
    assert found and all(document["apiVersion"] == "ray.io/v1" for _, document in found)
    assert [wrong for _, document in found for wrong in wrong_spec(document, validate)] == []


@pytest.mark.parametrize(
    "path, value",
    [
        ("backofLimit", 3),
        ("backoffLimit", "3"),
        ("submissionMode", 1),
        ("suspend", "no"),
        ("rayClusterSpec.authOptions.mode", "tokens"),
        ("rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        ("rayClusterSpec.networkPolicy.mode", "Deny"),
        ("rayClusterSpec.workerGroupSpecs", {}),
    ],
)
def test_a_wrong_field_of_a_ray_job_is_found(path, value, validate):
    document = copy.deepcopy(kinds("RayJob")[0][1])
    *parents, last = path.split(".")
    place = document["spec"]
    for name in parents:
        place = place[name]
    place[last] = value
    assert wrong_spec(document, validate)


def test_a_wrong_field_of_a_pod_is_found(validate):
    document = copy.deepcopy(kinds("RayJob")[0][1])
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "imagePullPolice"
    ] = "Always"
    with pytest.raises(Exception, match="imagePullPolice"):
        wrong_spec(document, validate)


def test_other_kubernetes_kinds_are_well_formed(validate):
    found = [
        document
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in documents(path)
        if not document["apiVersion"].startswith("ray.io/")
    ]
    assert found
    for document in found:
        validate(document, KUBERNETES, strict=True)


def clusters():
    return [document["spec"] for _, document in kinds("RayCluster")] + [
        document["spec"]["rayClusterSpec"] for _, document in kinds("RayJob")
    ]


def test_clusters_need_a_token_and_refuse_other_traffic():
    for cluster in clusters():
        assert (
            cluster["authOptions"]["mode"] == "token"
            and cluster["networkPolicy"]["mode"] == "DenyAll"
        )
        ports = [
            port["port"]
            for rule in cluster["networkPolicy"]["worker"]["egressRules"]
            for port in rule["ports"]
        ]
        assert 53 in ports, "without names workers do not find the head"
        blocks = [
            to["ipBlock"]
            for group in ("head", "worker")
            for rule in cluster["networkPolicy"][group]["egressRules"]
            for to in rule["to"]
            if "ipBlock" in to
        ]
        assert all("169.254.169.254/32" in block["except"] for block in blocks), (
            "the cloud's metadata server gives away keys"
        )


def test_pods_have_no_privilege_and_no_token_of_kubernetes():
    for cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert (
                pod["securityContext"]["runAsNonRoot"]
                and pod["automountServiceAccountToken"] is False
            )
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert (
                    re.search(r":\d+\.\d+", container["image"])
                    and container["resources"]["limits"]["memory"]
                )
                assert not any("value" in variable for variable in container.get("env", [])), (
                    "secrets come from a secret"
                )


def test_a_ray_job_is_tried_again_goes_away_and_is_queued():
    spec, labels = kinds("RayJob")[0][1]["spec"], kinds("RayJob")[0][1]["metadata"]["labels"]
    assert (
        spec["backoffLimit"] >= 3
        and spec["shutdownAfterJobFinishes"]
        and spec["activeDeadlineSeconds"] > 0
    )
    assert "kueue.x-k8s.io/queue-name" in labels


def test_the_versions_are_those_that_are_tested():
    pinned = dict(
        line.split("==")
        for line in (ROOT / ".ci/constraints.txt").read_text().split()
        if "==" in line
    )
    assert {cluster["rayVersion"] for cluster in clusters()} == {pinned["ray"]}


# ---------------------------------------------------------------- image, SkyPilot, systemd


def instructions():
    """[(instruction, rest)] of the Dockerfile, continued lines joined."""
    text = re.sub(
        r"\\\n",
        " ",
        "\n".join(
            line
            for line in (DEPLOY / "Dockerfile").read_text().splitlines()
            if not line.startswith("#")
        ),
    )
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_is_pinned_built_in_stages_and_not_root():
    found = instructions()
    names = [name for name, _ in found]
    assert set(names) <= {
        "ARG",
        "FROM",
        "ENV",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "VOLUME",
        "ENTRYPOINT",
        "CMD",
    }
    assert names.count("FROM") == 2 and re.search(r"python:3\.11\.\d+-", found[0][1])
    users = [rest for name, rest in found if name == "USER"]
    assert users[-1] == "10001:10001" and names.index("USER") > len(names) - 1 - names[::-1].index(
        "RUN"
    )
    assert "--constraint constraints.txt" in " ".join(rest for _, rest in found)


def test_the_image_copies_and_installs_only_what_there_is():
    sources = [
        word
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for word in shlex.split(rest)[:-1]
    ]
    assert sources and all((ROOT / source).exists() for source in sources)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignored and all(f"!{source}" in ignored for source in sources)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = (
        next(rest for name, rest in instructions() if rest.startswith("EXTRAS="))
        .removeprefix("EXTRAS=")
        .split(",")
    )
    assert set(wanted) <= set(extras)


def test_the_skypilot_task_has_only_keys_that_sky_knows():
    task = documents(DEPLOY / "skypilot.yaml")[0]
    assert set(task) <= {
        "name",
        "workdir",
        "resources",
        "num_nodes",
        "file_mounts",
        "setup",
        "run",
        "envs",
        "secrets",
        "volumes",
        "service",
    }
    assert set(task["resources"]) <= {
        "infra",
        "accelerators",
        "cpus",
        "memory",
        "use_spot",
        "disk_size",
        "disk_tier",
        "image_id",
        "ports",
        "job_recovery",
        "any_of",
        "ordered",
        "labels",
        "autostop",
        "network_tier",
        "priority",
    }
    for mount in task["file_mounts"].values():
        assert set(mount) <= {"name", "source", "mode", "store", "persistent"} and mount[
            "mode"
        ] in ("MOUNT", "COPY", "MOUNT_CACHED")
    assert all(isinstance(value, str) for value in task["envs"].values())


def commands():
    """Every recycler command line under deploy/, with where it stands."""
    found = [
        (DEPLOY / "skypilot.yaml", line)
        for line in documents(DEPLOY / "skypilot.yaml")[0]["run"].splitlines()
    ]
    found += [
        (COMPOSE, shlex.join(service["command"]))
        for service in compose()["services"].values()
        if "command" in service
    ]
    found += [
        (DEPLOY / "kubernetes", document["spec"]["entrypoint"]) for _, document in kinds("RayJob")
    ]
    found += [
        (DEPLOY / "recycler.service", line.removeprefix("ExecStart="))
        for line in (DEPLOY / "recycler.service").read_text().splitlines()
        if line.startswith("ExecStart=")
    ]
    return [
        (where.name, shlex.split(line))
        for where, line in found
        if shlex.split(line)[0].rsplit("/", 1)[-1] == "recycler"
    ]


def test_every_command_is_one_that_recycler_has():
    found = commands()
    assert {where for where, _ in found} == {
        "skypilot.yaml",
        "docker-compose.yaml",
        "kubernetes",
        "recycler.service",
    }
    for _, words in found:
        build_parser().parse_args(words[1:])


def test_the_job_in_the_config_map_is_a_good_job(tmp_path):
    from recycler.specs.job import read_job

    text = next(document["data"]["job.yaml"] for _, document in kinds("ConfigMap"))
    (tmp_path / "job.yaml").write_text(text)
    assert read_job(tmp_path / "job.yaml")[0].budget.trials == 100


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian's systemd)"
)
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path):
    unit = tmp_path / "recycler.service"
    unit.write_text(
        (DEPLOY / "recycler.service").read_text().replace("/opt/recycler/bin/recycler", "/bin/true")
    )
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stderr == ""
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=50", unit],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout.splitlines()[-1]


def test_nothing_under_deploy_holds_a_secret():
    texts = {path.name: path.read_text() for path in DEPLOY.rglob("*") if path.is_file()}
    found = [
        (name, line)
        for name, text in texts.items()
        for line in text.splitlines()
        if re.search(r"(?i)(password|secret|token)\w*\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{12,}", line)
        and "${" not in line
        and "secretRef" not in line
    ]
    assert found == []
