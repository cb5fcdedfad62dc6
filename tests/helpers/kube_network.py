"""What NetworkPolicies let through, computed as a network plug-in does, and openings that are too wide."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kube_pods import Pod

NAMESPACE = "cytoray"
#: Pods that other folders or people bring into the namespace.
EXTERNAL = [{"app.kubernetes.io/name": "mlflow"}]
METADATA = ipaddress.ip_network("169.254.0.0/16")
#: Parts between whose pods all ports are open, as Ray's are random.
OWN_PORTS = 0


@dataclass(frozen=True)
class Peer:
    """A pod by its labels and those of its namespace, or an address outside of the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, str] = field(default_factory=lambda: {"kubernetes.io/metadata.name": NAMESPACE})
    address: str | None = None


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Whether labels satisfy a selector; an empty one selects everything. Expressions are not understood."""
    selector = selector or {}
    assert selector.keys() <= {"matchLabels"}, f"a selector that these tests do not understand: {selector}"
    return selector.get("matchLabels", {}).items() <= labels.items()


def allows(policies: list[dict[str, Any]], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether ``source`` may open a connection: both ends must allow it; pods outside of the namespace allow all."""
    return _open(policies, source, target, port, protocol, "Egress") and _open(
        policies, target, source, port, protocol, "Ingress"
    )


def _open(policies: list[dict[str, Any]], own: Peer, other: Peer, port: int, protocol: str, kind: str) -> bool:
    if own.address is not None or own.namespace.get("kubernetes.io/metadata.name") != NAMESPACE:
        return True
    mine = [
        policy["spec"]
        for policy in policies
        if kind in policy["spec"]["policyTypes"] and matches(policy["spec"]["podSelector"], own.labels)
    ]
    if not mine:
        return True
    side, ends = ("egress", "to") if kind == "Egress" else ("ingress", "from")
    rules = [rule for spec in mine for rule in spec.get(side, ())]
    return any(_is_end(rule.get(ends), other) and _is_port(rule.get("ports"), port, protocol) for rule in rules)


def _is_port(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    return not ports or any(each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports)


def _is_end(ends: list[dict[str, Any]] | None, peer: Peer) -> bool:
    if not ends:
        return True
    for end in ends:
        if "ipBlock" in end:
            address = ipaddress.ip_address(peer.address) if peer.address else None
            inside = address is not None and address in ipaddress.ip_network(end["ipBlock"]["cidr"])
            if inside and not any(address in ipaddress.ip_network(each) for each in end["ipBlock"].get("except", ())):
                return True
            continue
        inside = (
            matches(end["namespaceSelector"], peer.namespace)
            if "namespaceSelector" in end
            else peer.namespace.get("kubernetes.io/metadata.name") == NAMESPACE
        )
        if peer.address is None and inside and matches(end.get("podSelector"), peer.labels):
            return True
    return False


def policy_problems(policies: list[dict[str, Any]], pods: list[Pod]) -> Iterator[str]:
    """Yield openings that are wider than anything here needs, and selectors that lead nowhere."""
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(policy["spec"] == closed for policy in policies):
        yield "NetworkPolicy: nothing is denied by default"
    for policy in policies:
        spec, place = policy["spec"], f"NetworkPolicy/{policy['metadata']['name']}"
        known = [*(pod.labels for pod in pods), *EXTERNAL]
        selectors = [spec["podSelector"]]
        for side, ends in (("ingress", "from"), ("egress", "to")):
            if spec.get(side) is not None and side.capitalize() not in spec["policyTypes"]:
                yield f"{place}: {side} without {side.capitalize()} among policyTypes"
            for rule in spec.get(side, ()):
                selectors += _own_selectors(rule, ends)
                yield from (f"{place}: {problem}" for problem in _rule(rule, side, ends, spec["podSelector"]))
                yield from (f"{place}: {problem}" for problem in _ports(rule, side, ends, spec["podSelector"], pods))
        for selector in selectors:
            if not any(matches(selector, labels) for labels in known):
                yield f"{place}: no pod has the labels {selector}"


def _own_selectors(rule: dict[str, Any], ends: str) -> list[dict[str, Any]]:
    """Return the selectors of pods of this namespace at the other ends of a rule."""
    return [end["podSelector"] for end in rule.get(ends, ()) if "podSelector" in end and "namespaceSelector" not in end]


def _rule(rule: dict[str, Any], side: str, ends: str, own: dict[str, Any]) -> Iterator[str]:
    if not rule.get(ends):
        yield f"{side} is open to everybody"
    if not rule.get("ports") and rule.get(ends) != [{"podSelector": own}]:
        yield f"{side} on all ports, to other pods than those of the policy"
    for end in rule.get(ends, ()):
        if "ipBlock" in end:
            block = ipaddress.ip_network(end["ipBlock"]["cidr"])
            excepted = [ipaddress.ip_network(each) for each in end["ipBlock"].get("except", ())]
            ports = {each.get("port") for each in rule.get("ports", ())}
            if side == "ingress":
                yield "ingress from addresses"
            elif block.prefixlen == 0 and (ports != {443} or METADATA not in excepted):
                yield "egress to the world on other ports than 443, or to the rights of the node"
        elif end.get("namespaceSelector") == {} or end.get("podSelector") == {} or not end:
            yield f"{side}: all pods, or all namespaces"


def _ports(rule: dict[str, Any], side: str, ends: str, own: dict[str, Any], pods: list[Pod]) -> Iterator[str]:
    """Yield ports that no container of the pods that are opened has."""
    selectors = [own]
    if side == "egress":
        selectors = _own_selectors(rule, ends)
    for selector in selectors:
        numbers = {number for pod in pods if matches(selector, pod.labels) for number in pod.port_numbers().values()}
        for port in rule.get("ports", ()):
            if numbers and port["port"] not in numbers:
                yield f"no container has the port {port['port']}"
