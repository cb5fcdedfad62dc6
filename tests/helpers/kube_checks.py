"""Problems between the objects of a rendered overlay: names, selectors, queues, commands, and the service's file."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kube_network import NAMESPACE, matches, policy_problems
from kube_pods import SECRETS, Pod, cluster_spec, list_pods, pod_problems, quantity

from cytoray.config import load_config
from cytoray.errors import ConfigError
from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.config import load_stage_config

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
WITHOUT_NAMESPACE = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue", "WorkloadPriorityClass"}
IMAGE_FOLDER = "/opt/cytoray"  # jobs/, serve/ and configs/ in the image
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
RAY = next(
    line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
)
Document = dict[str, Any]


def of_kind(documents: list[Document], kind: str) -> dict[str, Document]:
    """Return the objects of a kind by name."""
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def check(documents: list[Document]) -> list[str]:
    """Return the problems of objects that are applied together: those of a platform and of its jobs."""
    pods = [pod for document in documents for pod in list_pods(document)]
    found = list(_objects(documents))
    for pod in pods:
        found += pod_problems(pod, documents)
    found += policy_problems(list(of_kind(documents, "NetworkPolicy").values()), pods)
    found += _selectors(documents, pods)
    found += _queues(documents)
    for document in documents:
        spec = cluster_spec(document)
        if spec is not None:
            place = f"{document['kind']}/{document['metadata']['name']}"
            found += [f"{place}: {problem}" for problem in _ray(spec, documents)]
            if document["kind"] == "RayJob":
                found += [f"{place}: {problem}" for problem in _job(document, documents)]
            if document["kind"] == "RayService":
                found += [f"{place}: {problem}" for problem in _service(document, documents)]
    return found


def _objects(documents: list[Document]) -> Iterator[str]:
    """Yield problems of names and namespaces, and secrets whose content is in a file."""
    seen = Counter((each["kind"], each["metadata"].get("name")) for each in documents)
    for (kind, name), count in seen.items():
        if count > 1:
            yield f"{kind}/{name}: {count} objects of that name"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield f"{kind}/{name}: not a name"
    for each in documents:
        place = f"{each['kind']}/{each['metadata'].get('name')}"
        wanted = None if each["kind"] in WITHOUT_NAMESPACE else NAMESPACE
        if each["metadata"].get("namespace") != wanted:
            yield f"{place}: namespace {each['metadata'].get('namespace')}, expected {wanted}"
        if each["kind"] == "Secret":
            yield f"{place}: a secret in clear text"
        if each["kind"] == "ServiceAccount" and each.get("automountServiceAccountToken") is not False:
            yield f"{place}: its pods get a token of the API server unless they refuse it"
        if each["kind"] == "ServiceAccount":
            role = each["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn")
            if role is not None and not re.fullmatch(
                rf"arn:aws[a-z-]*:iam::\d{{12}}:role/{each['metadata']['name']}", role
            ):
                yield f"{place}: {role} is not the role of this account"
    # KubeRay names the Service of a head NAME-head-svc, for either kind: the one's would lead to the other's head.
    for name in of_kind(documents, "RayCluster").keys() & of_kind(documents, "RayService").keys():
        yield f"RayCluster/{name}: the RayService of that name has the same {name}-head-svc"
    levels = of_kind(documents, "Namespace").get(NAMESPACE, {}).get("metadata", {}).get("labels", {})
    if levels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "Namespace: pods are not held to the profile restricted"


def _selectors(documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    """Yield selectors of Services, PodDisruptionBudgets and StatefulSets that match nothing, and ports of nobody."""
    for name, service in of_kind(documents, "Service").items():
        behind = [pod for pod in pods if matches({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        if not behind:
            yield f"Service/{name}: no pod has the labels {service['spec']['selector']}"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for pod in behind:
                ports = pod.port_numbers()
                if target not in ports and target not in ports.values():
                    yield f"Service/{name}: no container of {pod.place} has the port {target}"
    for name, budget in of_kind(documents, "PodDisruptionBudget").items():
        if not any(matches(budget["spec"]["selector"], pod.labels) for pod in pods):
            yield f"PodDisruptionBudget/{name}: no pod has the labels {budget['spec']['selector']}"
    for name, each in of_kind(documents, "StatefulSet").items():
        if not matches(each["spec"]["selector"], each["spec"]["template"]["metadata"].get("labels", {})):
            yield f"StatefulSet/{name}: its selector does not match its pods"
        if each["spec"]["serviceName"] not in of_kind(documents, "Service"):
            yield f"StatefulSet/{name}: unknown service {each['spec']['serviceName']}"


def _queues(documents: list[Document]) -> Iterator[str]:
    """Yield problems of Kueue's objects."""
    for name, queue in of_kind(documents, "LocalQueue").items():
        if queue["spec"]["clusterQueue"] not in of_kind(documents, "ClusterQueue"):
            yield f"LocalQueue/{name}: unknown ClusterQueue {queue['spec']['clusterQueue']}"
    used = set()
    for name, queue in of_kind(documents, "ClusterQueue").items():
        if queue["spec"].get("namespaceSelector", {}).get("matchLabels") != {"kubernetes.io/metadata.name": NAMESPACE}:
            yield f"ClusterQueue/{name}: open to other namespaces, or to none"
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                used.add(flavor["name"])
                if flavor["name"] not in of_kind(documents, "ResourceFlavor"):
                    yield f"ClusterQueue/{name}: unknown ResourceFlavor {flavor['name']}"
                if [each["name"] for each in flavor["resources"]] != group["coveredResources"]:
                    yield f"ClusterQueue/{name}: {flavor['name']} does not list the covered resources in their order"
    for name in of_kind(documents, "ResourceFlavor").keys() - used:
        yield f"ResourceFlavor/{name}: no queue uses it"


def _ray(spec: Document, documents: list[Document]) -> Iterator[str]:
    """Yield problems of the spec of a Ray cluster."""
    if spec.get("rayVersion") != RAY:
        yield f"rayVersion {spec.get('rayVersion')}, the image has {RAY}"
    if spec.get("authOptions", {}).get("mode") != "token" or spec["authOptions"].get("secretName") != "ray-token":
        yield "no authentication by the token of the secret ray-token"
    if spec.get("headGroupSpec", {}).get("rayStartParams", {}).get("num-cpus") != "0":
        yield "work may be placed on the head"
    names = Counter(group.get("groupName") for group in spec.get("workerGroupSpecs", ()))
    yield from (f"two groups called {name}" for name, count in names.items() if count > 1)
    for group in spec.get("workerGroupSpecs", ()):
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            yield f"group {group.get('groupName')}: minReplicas <= replicas <= maxReplicas does not hold"
    for template in [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", ())]:
        names = [each["name"] for each in template.get("template", {}).get("spec", {}).get("containers", ())]
        if names not in (["ray-head"], ["ray-worker"]):
            yield f"containers {names}, expected ray-head or ray-worker"
    if spec.get("enableInTreeAutoscaling") and spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "the autoscaler is not of version v2"
    images = {each["image"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
              for each in group["template"]["spec"]["containers"]}  # fmt: skip
    if len(images) > 1:
        yield f"its nodes have different images: {sorted(images)}"
    yield from _redis(spec.get("gcsFaultToleranceOptions", {}), documents)


def _redis(options: Document, documents: list[Document]) -> Iterator[str]:
    """Yield problems of the place where a head keeps its state."""
    password = options.get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef", {})
    if options and password.get("key") not in SECRETS.get(password.get("name"), ()):
        yield "redisPassword is not that of a known secret"
    address = options.get("redisAddress", "")
    host = re.sub(r"^rediss?://", "", address).partition(":")[0]
    if address and not re.fullmatch(r"(rediss?://)?[a-z0-9.-]+:\d+", address):
        yield f"not an address: {address}"
    elif address and "." not in host and host not in of_kind(documents, "Service"):
        yield f"unknown service {host} of redisAddress"


def _job(document: Document, documents: list[Document]) -> Iterator[str]:
    """Yield problems of a RayJob: its queue, its retries, and its command."""
    spec, labels = document["spec"], document["metadata"].get("labels", {})
    if QUEUE in labels:
        if labels[QUEUE] not in of_kind(documents, "LocalQueue"):
            yield f"unknown queue {labels[QUEUE]}"
        if labels.get(PRIORITY) not in of_kind(documents, "WorkloadPriorityClass"):
            yield f"unknown WorkloadPriorityClass {labels.get(PRIORITY)}"
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield "Kueue does not admit jobs that autoscale"
        yield from _fits(spec["rayClusterSpec"], documents)
    elif of_kind(documents, "LocalQueue"):
        yield "it has no queue"
    if spec.get("shutdownAfterJobFinishes") is not True or not spec.get("ttlSecondsAfterFinished"):
        yield "its cluster stays when it has ended, or goes before its logs can be read"
    if not 1 <= spec.get("backoffLimit", 0) <= 20:
        yield "it is not tried again after a lost head"
    wait = yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    seconds = float(wait.get("env_vars", {}).get("RAY_JOB_STOP_WAIT_TIME_S", 3))
    if not 60 <= seconds <= head.get("terminationGracePeriodSeconds", 30):
        yield f"it is killed {seconds:g} s after it was asked to stop"
    yield from entrypoint_problems(spec.get("entrypoint", ""), head, documents)


def _fits(spec: Document, documents: list[Document]) -> Iterator[str]:
    """Yield pods that no quota can ever admit, as they ask for more than a flavor's whole quota."""
    for queue in of_kind(documents, "ClusterQueue").values():
        for group in spec["workerGroupSpecs"]:
            requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
            pool = group["template"]["spec"].get("nodeSelector", {}).get("cytoray/pool")
            quotas = {
                each["name"]: {one["name"]: quantity(one["nominalQuota"]) for one in each["resources"]}
                for groups in queue["spec"]["resourceGroups"]
                for each in groups["flavors"]
            }
            for name, amount in requests.items():
                if quantity(amount) * group["replicas"] > quotas.get(f"cytoray-{pool}", {}).get(name, 0):
                    yield f"{group['replicas']} x {amount} {name} never fit into the quota of cytoray-{pool}"


def entrypoint_problems(entrypoint: str, head: Document, documents: list[Document]) -> Iterator[str]:
    """Yield problems of the command of a job: no module of that name, no such file, settings that it would refuse.

    ``head`` is the spec of the pod that runs it; variables come from the ConfigMap cytoray-environment.
    """
    environment = of_kind(documents, "ConfigMap").get("cytoray-environment", {}).get("data", {})
    for name in sorted(set(re.findall(r"\$\{?(\w+)", entrypoint)) - environment.keys()):
        yield f"entrypoint: unknown variable {name}"
    filled = re.sub(r"\$\{?(\w+)\}?", lambda match: environment.get(match[1], ""), entrypoint)
    match shlex.split(filled):
        case ["python", "-m", module, "--config", path, *rest] if module.startswith("jobs."):
            if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
                yield f"entrypoint: unknown module {module}"
            if rest[::2] != ["--set"] * len(rest[1::2]):
                yield f"entrypoint: not a list of --set KEY=VALUE: {rest}"
            text = _find_file(path, head, documents)
            if text is None:
                yield f"entrypoint: no file {path} in the image or in what is mounted"
            else:
                yield from _settings(text, tuple(rest[1::2]), module)
        case words:
            yield f"entrypoint: not `python -m jobs.NAME --config FILE`: {words[:5]}"


def _find_file(path: str, head: Document, documents: list[Document]) -> str | None:
    """Return the content of a file of the image, or of a ConfigMap that is mounted; None if there is none."""
    if path.startswith(f"{IMAGE_FOLDER}/configs/"):
        file = ROOT / path.removeprefix(f"{IMAGE_FOLDER}/")
        return file.read_text(encoding="utf-8") if file.is_file() else None
    folder, _, name = path.rpartition("/")
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0].get("volumeMounts", ())}
    volume = next((each for each in head.get("volumes", ()) if each["name"] == mounts.get(folder)), {})
    source = of_kind(documents, "ConfigMap").get(volume.get("configMap", {}).get("name"), {})
    found: str | None = source.get("data", {}).get(name)
    return found


@cache
def _settings(text: str, overrides: tuple[str, ...], module: str) -> tuple[str, ...]:
    """Return what cytoray itself says about a configuration with overrides, and a stage that the job does not run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            kind = str(getattr(load_stage_config(file, overrides=overrides), "kind", ""))
        except ConfigError as error:
            return (f"entrypoint: {error}",)
    runs = {"jobs.assess": kind.startswith("assess-"), "jobs.answer": kind in ("annotate", "map", "predict-proteins")}
    if not runs.get(module, module == f"jobs.{kind.replace('-', '_')}"):
        return (f"entrypoint: {module} does not run {kind}",)
    return ()


@cache
def serve_problems(text: str) -> tuple[str, ...]:
    """Return what cytoray and Ray Serve say about a file for `serve deploy`."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            load_config(DeployFile, file)
        except ConfigError as error:
            found.append(f"serveConfigV2: {error}")
    try:
        ServeDeploySchema.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        found.append(f"serveConfigV2: {error}")
    return tuple(found)


def _service(document: Document, documents: list[Document]) -> Iterator[str]:
    """Yield problems of a RayService: its file, its ports and files, and how it is upgraded."""
    spec = document["spec"]
    found = serve_problems(spec["serveConfigV2"])
    yield from found
    upgrade, cluster = spec.get("upgradeStrategy", {}), spec["rayClusterConfig"]
    if upgrade.get("type") not in ("NewCluster", "NewClusterWithIncrementalUpgrade"):
        yield f"upgradeStrategy {upgrade.get('type')}: users would see a pause"
    if upgrade.get("type") == "NewClusterWithIncrementalUpgrade":
        options = upgrade.get("clusterUpgradeOptions", {})
        if not 1 <= options.get("stepSizePercent", 0) <= options.get("maxSurgePercent", 0) <= 100:
            yield "stepSizePercent is not between 1 and maxSurgePercent"
        if not cluster.get("enableInTreeAutoscaling"):
            yield "an incremental upgrade needs the autoscaler"
    if spec.get("excludeHeadPodFromServeSvc") is not True:
        yield "users' requests reach the head"
    if "gcsFaultToleranceOptions" not in cluster:
        yield "a head that dies takes the service along"
    if found:
        return
    file = yaml.safe_load(spec["serveConfigV2"])
    pods = [each for each in list_pods(document) if "head" not in each.place]
    if file["http_options"]["host"] != "0.0.0.0" or not all(
        pod.port_numbers().get("serve") == file["http_options"]["port"] for pod in pods
    ):
        yield "http_options: not the port `serve` of its pods, or not reachable from outside of the pod"
    arguments = file["applications"][0]["args"]
    jobs = arguments.get("jobs", {}).get("folder") or ""
    environment = of_kind(documents, "ConfigMap").get("cytoray-environment", {}).get("data", {})
    if jobs.startswith("s3://") and jobs != f"{environment.get('CYTORAY_STORE')}/jobs":
        yield f"jobs.folder {jobs} is not below CYTORAY_STORE"
    keys = arguments.get("edge", {}).get("keys_file") or ""
    for pod in list_pods(document):
        mounts = [mount["mountPath"] for each in pod.containers for mount in each["volumeMounts"]]
        if str(Path(keys).parent) not in mounts:
            yield f"edge.keys_file {keys!r} is not mounted in {pod.place}"
