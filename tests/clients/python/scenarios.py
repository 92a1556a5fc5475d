"""What programs written with the Python client of Kubernetes do, one function per scenario.

    scenarios.py list                      the names of the scenarios, one per line
    scenarios.py run SCENARIO NAMESPACE    runs one; the exit code says whether everything held

The cluster is the one of KUBECONFIG, the namespace is there and empty, and the image busybox:1 has its shell as its
entry point. A scenario waits for conditions, never for durations, and uses only what the client's own documents show:
what it calls is code of others, which does not know who answers.
"""

import asyncio
import base64
import copy
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from kubernetes import client, config, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError, ResourceNotFoundError
from kubernetes.informer import SharedInformer
from kubernetes.stream import portforward, stream

# How long anything may take. Only waited for when something is broken.
PATIENCE = 40
IMAGE = "busybox:1"
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__.replace("_", "-")] = function
    return function


def equal(actual, expected, what):
    assert actual == expected, f"{what}: {actual!r}, expected {expected!r}"


def contains(text, part, what):
    assert part in (text or ""), f"{what}: no {part!r} in {text!r}"


def eventually(what, look):
    """Calls `look` until it gives something true, and gives that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: gave up, the last look gave {found!r}"
        time.sleep(0.02)


def refused(status, reason, part, function, *args, **kwargs):
    """Holds that a call is refused with this code, this reason and a message that contains this text."""
    try:
        answer = function(*args, **kwargs)
    except ApiException as e:
        equal(e.status, status, f"code of the refusal {e.body}")
        body = client.ApiClient().deserialize(Answer(e.body), "V1Status")
        equal((body.kind, body.status, body.code), ("Status", "Failure", status), "the refusal is a Status")
        equal(body.reason, reason, f"reason of {body.message!r}")
        contains(body.message, part, "message")
        return body
    raise AssertionError(f"accepted, but should be refused with {status} {reason}: {answer}")


class Answer:
    """What the client's decoder wants of an answer."""

    def __init__(self, body):
        self.data = body.decode() if isinstance(body, bytes) else body


def pod(name, script, **spec):
    container = {"name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", script]}
    container.update(spec.pop("container", {}))
    whole = {"containers": [container], "terminationGracePeriodSeconds": 1, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": whole}


def deployment(name, replicas):
    template = pod(name, "sleep 1000")
    template = {"metadata": {"labels": {"app": name}}, "spec": template["spec"]}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def config_map(name, data=None, labels=None):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data=data)


def running_pod(namespace, name, script, **spec):
    core = client.CoreV1Api()
    core.create_namespaced_pod(namespace, pod(name, script, **spec))

    def ready():
        status = core.read_namespaced_pod(name, namespace).status
        return any(c.type == "Ready" and c.status == "True" for c in status.conditions or [])

    eventually(f"pod {name} is ready", ready)


# One row per kind: the API, the kind's name in method names, whether it lives in a namespace, and an object.
def kinds(namespace):
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    rbac, schedule = client.RbacAuthorizationV1Api(), client.SchedulingV1Api()
    meta = client.V1ObjectMeta
    cluster_name = f"{namespace}-a"
    rule = client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["get"])
    account = client.RbacV1Subject(kind="ServiceAccount", name="a", namespace=namespace)
    reference = client.V1RoleRef(api_group="rbac.authorization.k8s.io", kind="ClusterRole", name=cluster_name)
    labels = {"app": "a"}
    template = client.V1PodTemplateSpec(
        metadata=meta(labels=labels),
        spec=client.V1PodSpec(containers=[client.V1Container(name="c", image=IMAGE)]),
    )
    selector = client.V1LabelSelector(match_labels=labels)
    now = datetime.datetime.now(datetime.timezone.utc)
    involved = client.V1ObjectReference(kind="Pod", name="a", namespace=namespace)
    endpoint = client.V1Endpoint(addresses=["192.0.2.1"], conditions=client.V1EndpointConditions(ready=True))
    port = client.V1ServicePort(name="http", port=80, target_port="http")
    return [
        (core, "config_map", True, client.V1ConfigMap(data={"a": "1"}, binary_data={"b": "AAH/"})),
        (core, "secret", True, client.V1Secret(data={"a": "AAH/"}, type="Opaque")),
        (core, "service_account", True, client.V1ServiceAccount(automount_service_account_token=False)),
        (core, "service", True, client.V1Service(spec=client.V1ServiceSpec(selector=labels, ports=[port]))),
        (core, "pod", True, client.V1Pod(spec=client.V1PodSpec(node_name="absent", containers=template.spec.containers))),
        (core, "event", True, client.CoreV1Event(metadata=meta(), involved_object=involved, reason="Said", message="m", type="Normal",
                                                first_timestamp=now, last_timestamp=now, count=1)),
        (core, "namespace", False, client.V1Namespace()),
        (apps, "deployment", True, client.V1Deployment(
            spec=client.V1DeploymentSpec(replicas=0, selector=selector, template=template))),
        (apps, "replica_set", True, client.V1ReplicaSet(
            spec=client.V1ReplicaSetSpec(replicas=0, selector=selector, template=template))),
        (client.CoordinationV1Api(), "lease", True, client.V1Lease(
            spec=client.V1LeaseSpec(holder_identity="me", lease_duration_seconds=15, renew_time=now))),
        (client.DiscoveryV1Api(), "endpoint_slice", True, client.V1EndpointSlice(
            address_type="IPv4", endpoints=[endpoint], ports=[client.DiscoveryV1EndpointPort(name="http", port=80)])),
        (rbac, "role", True, client.V1Role(rules=[rule])),
        (rbac, "role_binding", True, client.V1RoleBinding(role_ref=reference, subjects=[account])),
        (rbac, "cluster_role", False, client.V1ClusterRole(rules=[rule])),
        (rbac, "cluster_role_binding", False, client.V1ClusterRoleBinding(role_ref=reference, subjects=[account])),
        (schedule, "priority_class", False, client.V1PriorityClass(value=7, description="seven")),
    ]


# More kinds, as documents: the API, the kind, whether it lives in a namespace, and what stands beside the metadata.
# Nothing of them runs: replicas are zero, jobs are suspended, selectors match no node.
MORE_KINDS = [
    (client.AppsV1Api, "ControllerRevision", True, {"revision": 1, "data": {"a": 1}}),
    (client.AppsV1Api, "DaemonSet", True, {"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"nodeSelector": {"no": "node"}, "containers": [{"name": "c", "image": IMAGE}]}}}}),
    (client.AppsV1Api, "StatefulSet", True, {"spec": {
        "replicas": 0, "serviceName": "a", "selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": IMAGE}]}}}}),
    (client.AutoscalingV2Api, "HorizontalPodAutoscaler", True, {"spec": {
        "maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "absent"}}}),
    (client.BatchV1Api, "CronJob", True, {"spec": {"suspend": True, "schedule": "0 0 1 1 *", "jobTemplate": {"spec": {
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE}]}}}}}}),
    (client.BatchV1Api, "Job", True, {"spec": {"suspend": True, "template": {
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE}]}}}}),
    (client.NetworkingV1Api, "Ingress", True, {"spec": {"defaultBackend": {
        "service": {"name": "a", "port": {"number": 80}}}}}),
    (client.NetworkingV1Api, "IngressClass", False, {"spec": {"controller": "sampan.test/ingress"}}),
    (client.NetworkingV1Api, "NetworkPolicy", True, {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}),
    (client.NodeV1Api, "RuntimeClass", False, {"handler": "a"}),
    (client.PolicyV1Api, "PodDisruptionBudget", True, {"spec": {
        "minAvailable": 1, "selector": {"matchLabels": {"app": "absent"}}}}),
    (client.StorageV1Api, "StorageClass", False, {"provisioner": "sampan.test/none"}),
    (client.StorageV1Api, "CSIDriver", False, {"spec": {"attachRequired": False}}),
    (client.AdmissionregistrationV1Api, "ValidatingWebhookConfiguration", False, {"webhooks": []}),
    (client.AdmissionregistrationV1Api, "MutatingWebhookConfiguration", False, {"webhooks": []}),
    (client.FlowcontrolApiserverV1Api, "PriorityLevelConfiguration", False, {"spec": {
        "type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}}),
    (client.CoreV1Api, "PodTemplate", True, {"template": {"spec": {"containers": [{"name": "c", "image": IMAGE}]}}}),
    (client.CoreV1Api, "ReplicationController", True, {"spec": {"replicas": 0, "selector": {"app": "a"}, "template": {
        "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": IMAGE}]}}}}),
    (client.CoreV1Api, "LimitRange", True, {"spec": {"limits": [{"type": "Pod", "max": {"cpu": "64"}}]}}),
    (client.CoreV1Api, "ResourceQuota", True, {"spec": {"hard": {"pods": "1k"}}}),
]
# Kinds whose class in the client is named by another version than the first.
CLASSES = {"HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler"}


def more_kinds():
    for api, kind, namespaced, document in MORE_KINDS:
        # As the client's own generator does: CSIDriver is csi_driver.
        noun = re.sub("([a-z0-9])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        answer = Answer(json.dumps({"metadata": {}, **document}))
        yield api(), noun, namespaced, client.ApiClient().deserialize(answer, CLASSES.get(kind, f"V1{kind}"))


@scenario
def typed_objects(namespace):
    for api, noun, namespaced, wanted in kinds(namespace):
        typed_object(namespace, api, noun, namespaced, wanted)


@scenario
def more_typed_objects(namespace):
    for api, noun, namespaced, wanted in more_kinds():
        typed_object(namespace, api, noun, namespaced, wanted)


def typed_object(namespace, api, noun, namespaced, wanted):
    """The life of one object through the methods of its kind."""
    name = "a" if namespaced else f"{namespace}-a"
    space = [namespace] if namespaced else []
    infix = "namespaced_" if namespaced else ""

    def verb(verb_name):
        return getattr(api, f"{verb_name}_{infix}{noun}")

    what = type(wanted).__name__
    wanted.metadata = client.V1ObjectMeta(name=name, labels={"test": namespace, "app": "a"})
    dry = verb("create")(*space, wanted, dry_run="All")
    equal(dry.metadata.name, name, f"{what} of a dry run")
    refused(404, "NotFound", f'"{name}" not found', verb("read"), name, *space)

    made = verb("create")(*space, wanted)
    assert made.metadata.uid and made.metadata.creation_timestamp and made.metadata.resource_version, what
    equal(made.metadata.managed_fields[0].operation, "Update", f"{what}: the first manager")
    refused(409, "AlreadyExists", f'"{name}" already exists', verb("create"), *space, wanted)
    read = verb("read")(name, *space)
    equal(read.metadata.uid, made.metadata.uid, f"{what}: uid")

    listed = verb("list")(*space, label_selector=f"test={namespace},app in (a,b),!absent")
    equal([i.metadata.name for i in listed.items], [name], f"{what} by labels")
    equal(listed.kind, f"{made.kind}List", f"{what}: kind of the list")
    listed = verb("list")(*space, field_selector=f"metadata.name={name}")
    equal([i.metadata.name for i in listed.items], [name], f"{what} by name")
    listed = verb("list")(*space, label_selector="test=nobody")
    equal(listed.items, [], f"{what} of nobody")

    patched = verb("patch")(name, *space, {"metadata": {"labels": {"app": None, "more": "1"}}})
    equal(patched.metadata.labels.get("more"), "1", f"{what}: a label is added")
    assert "app" not in patched.metadata.labels, f"{what}: a label is removed: {patched.metadata.labels}"
    refused(409, "Conflict", "the object has been modified", verb("replace"), name, *space, stale(made))

    def annotate():
        fresh = verb("read")(name, *space)
        fresh.metadata.annotations = {**(fresh.metadata.annotations or {}), "note": "x"}
        return verb("replace")(name, *space, fresh)

    replaced = despite_conflicts(annotate)
    equal(replaced.metadata.annotations.get("note"), "x", f"{what}: replaced")
    equal(replaced.metadata.uid, made.metadata.uid, f"{what}: uid after a replacement")
    equal(replaced.metadata.creation_timestamp, made.metadata.creation_timestamp, f"{what}: time after a replacement")

    def unchanged():
        seen = verb("read")(name, *space)
        return seen, verb("replace")(name, *space, seen)

    seen, again = despite_conflicts(unchanged)
    equal(again.metadata.resource_version, seen.metadata.resource_version, f"{what}: nothing changed, nothing written")

    wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="00000000-0000-0000-0000-000000000000"))
    refused(409, "Conflict", "Precondition failed: UID in precondition", verb("delete"), name, *space, body=wrong)
    right = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=made.metadata.uid), grace_period_seconds=0)
    verb("delete")(name, *space, body=right)

    def gone():
        try:
            return verb("read")(name, *space) is None
        except ApiException as e:
            return e.status == 404

    eventually(f"{what} is gone", gone)


def despite_conflicts(change):
    """Reads and writes again while a controller writes in between."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return change()
        except ApiException as e:
            if e.status != 409 or time.monotonic() > deadline:
                raise


def stale(made):
    """An object as it was, with a change."""
    old = copy.deepcopy(made)
    old.metadata.labels = {**old.metadata.labels, "stale": "1"}
    return old


@scenario
def patches(namespace):
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    apps.create_namespaced_deployment(namespace, deployment("web", 0))

    def send(body, kind, name="web"):
        return apps.patch_namespaced_deployment(name, namespace, body, _content_type=kind)

    side = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": IMAGE}]}}}}
    strategic = send(side, "application/strategic-merge-patch+json")
    names = sorted(c.name for c in strategic.spec.template.spec.containers)
    equal(names, ["c", "side"], "a strategic patch merges containers by name")
    directive = {"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}}
    strategic = send(directive, "application/strategic-merge-patch+json")
    equal([c.name for c in strategic.spec.template.spec.containers], ["c"], "a directive removes a container")

    merged = send({"spec": {"template": {"spec": {"containers": [{"name": "only", "image": IMAGE}]}}}},
                  "application/merge-patch+json")
    equal([c.name for c in merged.spec.template.spec.containers], ["only"], "a merge patch replaces a list")

    operations = [{"op": "test", "path": "/spec/replicas", "value": 0},
                  {"op": "add", "path": "/metadata/annotations", "value": {"b.c/d": "1"}},
                  {"op": "add", "path": "/spec/paused", "value": True},
                  {"op": "replace", "path": "/metadata/annotations/b.c~1d", "value": "2"}]
    tools = send(operations, "application/json-patch+json")
    equal(tools.metadata.annotations["b.c/d"], "2", "a JSON patch walks escaped names")
    equal(tools.spec.paused, True, "a JSON patch adds a field")
    failing = [{"op": "test", "path": "/spec/replicas", "value": 5}]
    unfit = "the server rejected our request due to an error in our request"
    refused(422, "Invalid", unfit, send, failing, "application/json-patch+json")
    refused(422, "Invalid", unfit, send, [{"op": "remove", "path": "/spec/absent"}], "application/json-patch+json")
    refused(415, "UnsupportedMediaType", "application/json-patch+json", send, {}, "application/json")
    refused(404, "NotFound", '"absent" not found', send, {}, "application/merge-patch+json", name="absent")
    refused(422, "Invalid", "spec.replicas", send, {"spec": {"replicas": -1}}, "application/merge-patch+json")
    immutable = {"spec": {"selector": {"matchLabels": {"app": "else"}}, "template": {"metadata": {"labels": {"app": "else"}}}}}
    refused(422, "Invalid", "field is immutable", send, immutable, "application/merge-patch+json")
    old = {"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}}
    refused(409, "Conflict", "the object has been modified", send, old, "application/merge-patch+json")

    # Apply makes what is not there, and says who owns what.
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}

    def apply(manager, data, **more):
        return core.patch_namespaced_config_map("applied", namespace, {**body, "data": data}, field_manager=manager,
                                                _content_type="application/apply-patch+yaml", **more)

    first = apply("one", {"a": "1", "b": "1"})
    equal([(m.manager, m.operation) for m in first.metadata.managed_fields], [("one", "Apply")], "managers")
    same = apply("one", {"a": "1", "b": "1"})
    equal(same.metadata.resource_version, first.metadata.resource_version, "an apply that changes nothing writes nothing")
    conflict = refused(409, "Conflict", 'conflict with "one"', apply, "two", {"a": "2"})
    equal([(c.reason, c.field) for c in conflict.details.causes], [("FieldManagerConflict", ".data.a")], "causes")
    equal(apply("two", {"a": "2"}, force=True).data, {"a": "2", "b": "1"}, "a forced apply")
    equal(apply("one", {}).data, {"a": "2"}, "what an applier no longer names and nobody else owns goes")
    refused(422, "Invalid", "fieldManager: Required value: is required for apply patch", core.patch_namespaced_config_map, "applied",
            namespace, body, _content_type="application/apply-patch+yaml")


@scenario
def watches(namespace):
    core = client.CoreV1Api()
    core.create_namespaced_config_map(namespace, config_map("before", labels={"seen": "yes"}))
    listed = core.list_namespaced_config_map(namespace)
    version = listed.metadata.resource_version
    core.create_namespaced_config_map(namespace, config_map("a", {"n": "1"}, {"seen": "yes"}))
    core.create_namespaced_config_map(namespace, config_map("b", {"n": "1"}, {"seen": "no"}))
    core.patch_namespaced_config_map("a", namespace, {"data": {"n": "2"}})
    # One leaves what the selector sees, the other enters it.
    core.patch_namespaced_config_map("a", namespace, {"metadata": {"labels": {"seen": "no"}}})
    core.patch_namespaced_config_map("b", namespace, {"metadata": {"labels": {"seen": "yes"}}})
    core.delete_namespaced_config_map("b", namespace)

    def events(count, **kwargs):
        seen = []
        watcher = watch.Watch()
        for event in watcher.stream(core.list_namespaced_config_map, namespace, **kwargs):
            if event["type"] == "BOOKMARK":
                continue
            seen.append((event["type"], event["object"].metadata.name))
            if len(seen) == count:
                break
        return seen

    equal(events(6, resource_version=version),
          [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("MODIFIED", "a"), ("MODIFIED", "b"), ("DELETED", "b")],
          "all that happened since the list")
    equal(events(5, resource_version=version, label_selector="seen=yes"),
          [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b"), ("DELETED", "b")],
          "what happened to what the selector sees")
    equal(events(2, resource_version=version, field_selector="metadata.name=b")[0], ("ADDED", "b"), "one by name")
    # Without a version a watch begins with what is there.
    first = events(2, label_selector="seen", timeout_seconds=PATIENCE)
    equal(sorted(first), [("ADDED", "a"), ("ADDED", "before")], "what is there comes first")
    # A watch ends when it was asked to.
    began = time.monotonic()
    equal(events(100, resource_version=core.list_namespaced_config_map(namespace).metadata.resource_version,
                 timeout_seconds=1), [], "nothing happens")
    assert 0.8 < time.monotonic() - began < 20, "a watch of one second lasts about that long"

    # A list that is streamed: what is there, then a bookmark that says so.
    kinds_seen = []
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, namespace, send_initial_events=True,
                                resource_version_match="NotOlderThan", allow_watch_bookmarks=True, timeout_seconds=10):
        kinds_seen.append(event["type"])
        if event["type"] == "BOOKMARK":
            notes = event["raw_object"]["metadata"].get("annotations", {})
            if notes.get("k8s.io/initial-events-end") == "true":
                break
    equal(kinds_seen.count("ADDED"), len(core.list_namespaced_config_map(namespace).items), "what is there is streamed")
    equal(kinds_seen[-1], "BOOKMARK", "then the mark")

    refused(400, "BadRequest", "", core.list_namespaced_config_map, namespace, resource_version="abc",
            watch=True, _preload_content=False)
    refused(400, "BadRequest", "", core.list_namespaced_config_map, namespace, resource_version="nonsense",
            resource_version_match="Exact")


@scenario
def watches_that_are_too_old(namespace):
    """History is bounded. Who asks for what is forgotten hears it with code 410, and lists again."""
    core = client.CoreV1Api()
    old = core.list_namespaced_secret(namespace).metadata.resource_version
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "big"}, "data": {}}
    core.create_namespaced_secret(namespace, secret)
    filling = base64.b64encode(os.urandom(690_000)).decode()

    def expired():
        for turn in range(10):
            core.replace_namespaced_secret("big", namespace, {**secret, "data": {"n": filling, "turn": "AAAA"[:4 * (turn % 2)]}})
        try:
            for _ in watch.Watch().stream(core.list_namespaced_secret, namespace, resource_version=old,
                                          timeout_seconds=1):
                break
        except ApiException as e:
            equal(e.status, 410, f"a watch from the past: {e.reason}")
            contains(e.reason, "Expired", "reason")
            contains(e.reason, "too old resource version", "message")
            return True
        return False

    eventually("history is forgotten", expired)
    # The client's informer knows this answer: it begins with the version it has, hears 410 and lists again.
    informer = SharedInformer(core.list_namespaced_secret, namespace=namespace)
    informer._resource_version = old
    informer.start()
    try:
        eventually("the informer has listed again", lambda: informer.cache.get_by_key(f"{namespace}/big"))
        core.create_namespaced_secret(namespace, {"metadata": {"name": "later"}})
        eventually("and watches again", lambda: informer.cache.get_by_key(f"{namespace}/later"))
    finally:
        informer.stop()


@scenario
def informers(namespace):
    core = client.CoreV1Api()
    seen = {"ADDED": [], "MODIFIED": [], "DELETED": []}
    informer = SharedInformer(core.list_namespaced_config_map, namespace=namespace, label_selector="kept=yes")
    for kind, names in seen.items():
        informer.add_event_handler(kind, lambda o, names=names: names.append(o.metadata.name))
    core.create_namespaced_config_map(namespace, config_map("a", {"n": "0"}, {"kept": "yes"}))
    informer.start()
    try:
        eventually("the first list", lambda: seen["ADDED"] == ["a"])
        core.create_namespaced_config_map(namespace, config_map("b", {"n": "0"}, {"kept": "yes"}))
        core.create_namespaced_config_map(namespace, config_map("c", {"n": "0"}, {"kept": "no"}))
        for turn in range(20):
            core.patch_namespaced_config_map("b", namespace, {"data": {"n": str(turn)}})
        eventually("every change", lambda: seen["MODIFIED"].count("b") >= 19)
        eventually("the last value", lambda: informer.cache.get_by_key(f"{namespace}/b").data == {"n": "19"})
        core.delete_namespaced_config_map("a", namespace)
        eventually("the deletion", lambda: seen["DELETED"] == ["a"])
        equal(sorted(informer.cache.list_keys()), [f"{namespace}/b"], "the cache")
    finally:
        informer.stop()


@scenario
def dynamic_client(namespace):
    dynamic = DynamicClient(client.ApiClient())
    contains(str(dynamic.version["kubernetes"]["gitVersion"]), "v1.", "version")
    maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
    equal((maps.name, maps.namespaced, "cm" in maps.short_names), ("configmaps", True, True), "discovery")
    deployments = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
    equal("scale" in deployments.subresources and "status" in deployments.subresources, True, "subresources")
    try:
        dynamic.resources.get(api_version="v1", kind="Nonsense")
        raise AssertionError("a kind that is not there was found")
    except ResourceNotFoundError:
        pass

    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d", "labels": {"a": "b"}}, "data": {"x": "1"}}
    made = maps.server_side_apply(body=body, namespace=namespace, field_manager="robot")
    equal(made.metadata.managedFields[0].manager, "robot", "manager")
    body["data"]["x"] = "2"
    try:
        maps.server_side_apply(body=body, namespace=namespace, field_manager="rival")
        raise AssertionError("a conflict was not seen")
    except ConflictError as e:
        contains(e.summary(), 'conflict with "robot"', "conflict")
    forced = maps.server_side_apply(body=body, namespace=namespace, field_manager="rival", force_conflicts=True)
    equal(forced.data.x, "2", "forced")
    equal([i.metadata.name for i in maps.get(namespace=namespace, label_selector="a=b").items], ["d"], "list")
    seen = []
    for event in maps.watch(namespace=namespace, name="d", timeout=10):
        seen.append(event["type"])
        if event["type"] == "ADDED":
            maps.delete(name="d", namespace=namespace)
        if event["type"] == "DELETED":
            break
    equal(seen, ["ADDED", "DELETED"], "watch")
    try:
        maps.get(name="d", namespace=namespace)
        raise AssertionError("a deleted object was found")
    except NotFoundError:
        pass


@scenario
def exec_streams(namespace):
    core = client.CoreV1Api()
    running_pod(namespace, "p", "sleep 1000")

    def start(command, **kwargs):
        options = {"stderr": True, "stdin": False, "stdout": True, "tty": False, "_preload_content": False, **kwargs}
        return stream(core.connect_get_namespaced_pod_exec, "p", namespace, command=command, **options)

    whole = stream(core.connect_get_namespaced_pod_exec, "p", namespace, command=["echo", "plain"],
                   stderr=True, stdin=False, stdout=True, tty=False)
    equal(whole, "plain\n", "everything at once")
    both = start(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
    both.run_forever(timeout=PATIENCE)
    equal((both.read_stdout(), both.read_stderr(), both.returncode), ("out\n", "err\n", 7), "outputs and code")
    good = start(["true"])
    good.run_forever(timeout=PATIENCE)
    equal(good.returncode, 0, "code of success")

    typed = start(["/bin/sh"], stdin=True)
    typed.write_stdin("echo $((6 * 7))\n")
    equal(typed.readline_stdout(timeout=PATIENCE), "42", "what a typed command says")
    typed.write_stdin("exit 3\n")
    typed.run_forever(timeout=PATIENCE)
    equal(typed.returncode, 3, "code of a shell")

    big = start(["/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"])
    got = 0
    while big.is_open():
        big.update(timeout=1)
        got += len(big.read_stdout(timeout=0))
    got += len(big.read_stdout(timeout=0)) if big.peek_stdout(timeout=0) else 0
    equal(got, 3_000_000, "nothing is lost")

    terminal = start(["/bin/sh"], stdin=True, tty=True)
    terminal.write_channel(4, '{"Width": 123, "Height": 45}')
    terminal.write_stdin("until stty size | grep -x '45 123'; do :; done; exit\n")
    terminal.run_forever(timeout=PATIENCE)
    contains(terminal.read_stdout(), "45 123", "size of the terminal")


def text_of_log(core, *args, **kwargs):
    """The text of a log. Without `_preload_content` this version of the client shows bytes as Python writes them."""
    return core.read_namespaced_pod_log(*args, _preload_content=False, **kwargs).data.decode()


@scenario
def logs(namespace):
    core = client.CoreV1Api()
    script = "echo one; echo two; until test -f /go; do sleep 0.05; done; echo three"
    core.create_namespaced_pod(namespace, pod("p", script, restartPolicy="Never"))
    eventually("the pod runs", lambda: core.read_namespaced_pod("p", namespace).status.phase == "Running")
    lines = []
    for line in watch.Watch().stream(core.read_namespaced_pod_log, name="p", namespace=namespace):
        lines.append(line)
        if line == "two":
            stream(core.connect_get_namespaced_pod_exec, "p", namespace, command=["touch", "/go"], stdout=True)
    equal(lines, ["one", "two", "three"], "followed to the end")

    def log(*args, **kwargs):
        return text_of_log(core, *args, **kwargs)

    equal(log("p", namespace), "one\ntwo\nthree\n", "everything")
    equal(log("p", namespace, tail_lines=1), "three\n", "the end")
    equal(log("p", namespace, limit_bytes=5), "one\nt", "the first bytes")
    equal(log("p", namespace, since_seconds=3600, container="c"), "one\ntwo\nthree\n", "the last hour")
    stamp = log("p", namespace, timestamps=True, tail_lines=1).split(" ")
    datetime.datetime.fromisoformat(stamp[0].split(".")[0])
    equal(stamp[1], "three\n", "a line with its time")
    refused(400, "BadRequest", "previous terminated container", log, "p", namespace, previous=True)
    refused(400, "BadRequest", "container absent is not valid for pod p", log, "p", namespace, container="absent")
    refused(404, "NotFound", 'pods "absent" not found', log, "absent", namespace)
    refused(422, "Invalid", "tailLines", log, "p", namespace, tail_lines=-1)


@scenario
def port_forwards(namespace):
    running_pod(namespace, "p", "mkdir /www; echo forwarded > /www/index.html; exec httpd -f -p 8080 -h /www",
                container={"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}})
    for _ in range(3):
        forward = portforward(client.CoreV1Api().connect_get_namespaced_pod_portforward, "p", namespace, ports="8080")
        link = forward.socket(8080)
        link.settimeout(PATIENCE)
        link.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while True:
            data = link.recv(1024)
            if not data:
                break
            answer += data
        link.close()
        equal(forward.error(8080), None, "error channel")
        assert answer.endswith(b"forwarded\n"), answer
    # Nobody listens there: the error channel says so.
    forward = portforward(client.CoreV1Api().connect_get_namespaced_pod_portforward, "p", namespace, ports="81")
    link = forward.socket(81)
    link.settimeout(PATIENCE)
    try:
        link.sendall(b"x")
        link.recv(1)
    except (ConnectionError, socket.timeout):
        pass
    contains(eventually("an error arrives", lambda: forward.error(81)), "81", "error channel")


@scenario
def pages(namespace):
    core = client.CoreV1Api()
    for number in range(23):
        core.create_namespaced_config_map(namespace, config_map(f"m-{number:02}", labels={"page": "yes"}))
    names, token, versions, turns = [], None, set(), 0
    while True:
        page = core.list_namespaced_config_map(namespace, limit=5, _continue=token, label_selector="page=yes")
        names += [i.metadata.name for i in page.items]
        versions.add(page.metadata.resource_version)
        token = page.metadata._continue
        if turns == 0:
            # What changes while one reads is not in what is read.
            core.create_namespaced_config_map(namespace, config_map("m-99", labels={"page": "yes"}))
            core.delete_namespaced_config_map("m-20", namespace)
        turns += 1
        if not token:
            break
        assert turns < 50, "pages do not end"
    equal(names, [f"m-{n:02}" for n in range(23)], "all pages show one moment")
    equal((turns, len(versions)), (5, 1), "pages and versions")
    first = core.list_namespaced_config_map(namespace, limit=4)
    total = len(core.list_namespaced_config_map(namespace).items)
    equal(first.metadata.remaining_item_count, total - 4, "how many remain")
    equal(core.list_namespaced_config_map(namespace, limit=500).metadata._continue, None, "a page that holds all")
    refused(400, "BadRequest", "continue key is not valid", core.list_namespaced_config_map, namespace,
            limit=5, _continue="nonsense")
    at_zero = core.list_namespaced_config_map(namespace, resource_version="0")
    equal(len(at_zero.items), total, "any version will do")
    exact = core.list_namespaced_config_map(namespace, resource_version=first.metadata.resource_version,
                                            resource_version_match="Exact", limit=500)
    equal(exact.metadata.resource_version, first.metadata.resource_version, "exactly that version")


@scenario
def deletions(namespace):
    core, apps = client.CoreV1Api(), client.AppsV1Api()

    def owned(name):
        sets = apps.list_namespaced_replica_set(namespace, label_selector=f"app={name}").items
        pods = core.list_namespaced_pod(namespace, label_selector=f"app={name}").items
        return len(sets), len([p for p in pods if not p.metadata.deletion_timestamp])

    def there(name):
        listed = apps.list_namespaced_deployment(namespace, field_selector=f"metadata.name={name}").items
        return listed[0] if listed else None

    for policy in ("Foreground", "Background", "Orphan"):
        name = policy.lower()
        apps.create_namespaced_deployment(namespace, deployment(name, 1))
        eventually(f"{name} is available", lambda: there(name).status.available_replicas == 1)
        answer = apps.delete_namespaced_deployment(name, namespace, propagation_policy=policy)
        # What a finalizer holds is shown, what is gone is not.
        equal(answer.kind, "Status" if policy == "Background" else "Deployment", f"answer of a deletion, {policy}")
        if policy == "Foreground":
            left = there(name)
            if left:
                contains(str(left.metadata.finalizers), "foregroundDeletion", "finalizers")
        eventually(f"{name} is gone", lambda: not there(name))
        if policy == "Orphan":
            equal(owned(name), (1, 1), "what an orphan's owner leaves")
            left = apps.list_namespaced_replica_set(namespace, label_selector=f"app={name}").items[0]
            eventually("the owner is forgotten", lambda: not apps.read_namespaced_replica_set(
                left.metadata.name, namespace).metadata.owner_references)
        else:
            eventually(f"what {name} owned is gone", lambda: owned(name) == (0, 0))
            if policy == "Foreground":
                equal(owned(name), (0, 0), "in the foreground the owner goes last")

    # A finalizer holds an object until its owner lets it go.
    held = config_map("held")
    held.metadata.finalizers = ["test.sampan/hold"]
    core.create_namespaced_config_map(namespace, held)
    core.delete_namespaced_config_map("held", namespace)
    waiting = core.read_namespaced_config_map("held", namespace)
    assert waiting.metadata.deletion_timestamp, "a held object is marked"
    core.delete_namespaced_config_map("held", namespace)
    refused(422, "Invalid", "no new finalizers can be added if the object is being deleted",
            core.patch_namespaced_config_map, "held", namespace, {"metadata": {"finalizers": ["test.sampan/hold", "test.sampan/more"]}})
    core.patch_namespaced_config_map("held", namespace, [{"op": "remove", "path": "/metadata/finalizers"}])
    refused(404, "NotFound", "held", core.read_namespaced_config_map, "held", namespace)

    for name, tier in (("a", "x"), ("b", "x"), ("c", "y")):
        core.create_namespaced_config_map(namespace, config_map(name, labels={"tier": tier}))
    core.delete_collection_namespaced_config_map(namespace, label_selector="tier=x")
    left = core.list_namespaced_config_map(namespace, label_selector="tier").items
    equal([i.metadata.name for i in left], ["c"], "a collection is deleted by labels")
    dry = core.delete_namespaced_config_map("c", namespace, dry_run="All")
    assert dry and core.read_namespaced_config_map("c", namespace), "a dry run deletes nothing"


MANIFEST = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: from-yaml
data:
  a: "1"
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: from-yaml
spec:
  replicas: 0
  selector: {matchLabels: {app: y}}
  template:
    metadata: {labels: {app: y}}
    spec: {containers: [{name: c, image: "busybox:1"}]}
---
apiVersion: v1
kind: List
items:
  - apiVersion: rbac.authorization.k8s.io/v1
    kind: Role
    metadata: {name: from-yaml}
    rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
  - apiVersion: v1
    kind: Service
    metadata: {name: from-yaml}
    spec: {clusterIP: None, selector: {app: y}, ports: [{port: 80}]}
"""


@scenario
def manifests(namespace):
    api = client.ApiClient()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(MANIFEST)
        file.flush()
        utils.create_from_yaml(api, file.name, namespace=namespace)
        equal(client.CoreV1Api().read_namespaced_service("from-yaml", namespace).spec.cluster_ip, "None", "service")
        try:
            utils.create_from_yaml(api, file.name, namespace=namespace)
            raise AssertionError("what is there was made again")
        except utils.FailToCreateError as e:
            equal([f.status for f in e.api_exceptions], [409] * 4, "everything is there already")
        documents = [d for d in MANIFEST.split("---") if "List" not in d]
        file.seek(0)
        file.truncate()
        file.write("---".join(documents))
        file.flush()
        utils.create_from_yaml(api, file.name, namespace=namespace, apply=True)
    managers = client.CoreV1Api().read_namespaced_config_map("from-yaml", namespace).metadata.managed_fields
    equal(("python-client", "Apply") in [(m.manager, m.operation) for m in managers], True, f"managers {managers}")


@scenario
def custom_objects(namespace):
    group, plural = f"{namespace}.sampan.test", "gadgets"
    schema = {"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "colour": {"type": "string", "enum": ["red", "green"], "default": "green"},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                      "items": {"type": "object", "required": ["name"],
                                "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}}},
            "x-kubernetes-validations": [{"rule": "self.size != 7", "message": "seven brings bad luck"}]},
        "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                  "metadata": {"name": f"{plural}.{group}"},
                  "spec": {"group": group, "scope": "Namespaced",
                           "names": {"kind": "Gadget", "plural": plural, "singular": "gadget", "shortNames": ["gg"]},
                           "versions": [{"name": "v1", "served": True, "storage": True,
                                         "schema": {"openAPIV3Schema": schema},
                                         "subresources": {"status": {}, "scale": {
                                             "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}}}]}}
    extensions = client.ApiextensionsV1Api()
    extensions.create_custom_resource_definition(definition)
    try:
        def established():
            conditions = extensions.read_custom_resource_definition(f"{plural}.{group}").status.conditions or []
            return any(c.type == "Established" and c.status == "True" for c in conditions)

        eventually("the kind is established", established)
        use_custom_objects(namespace, group, plural)
    finally:
        extensions.delete_custom_resource_definition(f"{plural}.{group}")
    eventually("the kind is gone", lambda: not [d for d in extensions.list_custom_resource_definition().items
                                                 if d.metadata.name == f"{plural}.{group}"])

    def unknown():
        try:
            return not client.CustomObjectsApi().list_namespaced_custom_object(group, "v1", namespace, plural)
        except ApiException as e:
            return e.status == 404

    eventually("the path of a kind that is gone is unknown", unknown)


def use_custom_objects(namespace, group, plural):
    api = client.CustomObjectsApi()
    place = (group, "v1", namespace, plural)

    def gadget(name, **spec):
        return {"apiVersion": f"{group}/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": spec}

    made = api.create_namespaced_custom_object(*place, gadget("a", size=3, parts=[{"name": "p", "count": 1}]))
    equal(made["spec"]["colour"], "green", "a default")
    equal(made["metadata"]["generation"], 1, "generation")
    refusal = refused(422, "Invalid", "spec.size in body should be less than or equal to 9",
                      api.create_namespaced_custom_object, *place, gadget("b", size=10))
    equal((refusal.details.kind, refusal.details.group), ("Gadget", group), "details of the refusal")
    refused(422, "Invalid", "seven brings bad luck", api.create_namespaced_custom_object, *place, gadget("b", size=7))
    refused(422, "Invalid", "spec.size: Required value", api.create_namespaced_custom_object, *place, gadget("b"))
    refused(422, "Invalid", 'spec.colour: Unsupported value: "blue"', api.create_namespaced_custom_object, *place,
            gadget("b", size=1, colour="blue"))
    refused(422, "Invalid", 'spec.size in body must be of type integer: "string"',
            api.create_namespaced_custom_object, *place, gadget("b", size="x"))
    refused(422, "Invalid", "Duplicate value", api.create_namespaced_custom_object, *place,
            gadget("b", size=1, parts=[{"name": "p"}, {"name": "p"}]))
    pruned = api.create_namespaced_custom_object(*place, gadget("pruned", size=1, unknown=1))
    assert "unknown" not in pruned["spec"], f"unknown fields are dropped: {pruned}"
    refused(400, "BadRequest", 'unknown field "spec.unknown"', api.create_namespaced_custom_object, *place,
            gadget("strict", size=1, unknown=1), field_validation="Strict")

    patched = api.patch_namespaced_custom_object(*place, "a", {"spec": {"size": 4}, "status": {"size": 99}})
    equal((patched["spec"]["size"], patched["metadata"]["generation"]), (4, 2), "patched")
    assert "status" not in patched, "the status has a door of its own"
    status = api.patch_namespaced_custom_object_status(*place, "a", {"status": {"size": 4}, "spec": {"size": 9}})
    equal((status["status"], status["spec"]["size"], status["metadata"]["generation"]), ({"size": 4}, 4, 2), "status")
    scale = api.get_namespaced_custom_object_scale(*place, "a")
    equal((scale["kind"], scale["apiVersion"], scale["spec"]["replicas"], scale["status"]["replicas"]),
          ("Scale", "autoscaling/v1", 4, 4), "scale")
    scale["spec"]["replicas"] = 5
    equal(api.replace_namespaced_custom_object_scale(*place, "a", scale)["spec"]["replicas"], 5, "scaled")
    equal(api.get_namespaced_custom_object(*place, "a")["spec"]["size"], 5, "scaled object")

    dynamic = DynamicClient(client.ApiClient())
    gadgets = dynamic.resources.get(api_version=f"{group}/v1", kind="Gadget")
    applied = gadgets.server_side_apply(body=gadget("a", size=5, parts=[{"name": "q", "count": 2}]), namespace=namespace,
                                        field_manager="robot", force_conflicts=True)
    equal(sorted(p.name for p in applied.spec.parts), ["p", "q"], "a list with keys is merged")
    refused(415, "UnsupportedMediaType", "application/merge-patch+json", patch_as, group, plural, namespace,
            "application/strategic-merge-patch+json")
    seen = [(e["type"], e["object"]["metadata"]["name"]) for e in watch.Watch().stream(
        api.list_namespaced_custom_object, *place, timeout_seconds=1)]
    equal(sorted(seen), [("ADDED", "a"), ("ADDED", "pruned")], "watched")
    everywhere = api.list_cluster_custom_object(group, "v1", plural)
    equal(sorted(i["metadata"]["name"] for i in everywhere["items"]), ["a", "pruned"], "listed everywhere")
    equal(everywhere["kind"], "GadgetList", "kind of the list")
    api.delete_collection_namespaced_custom_object(*place)
    equal(api.list_namespaced_custom_object(*place)["items"], [], "all are gone")


def patch_as(group, plural, namespace, content_type):
    path = f"/apis/{group}/v1/namespaces/{namespace}/{plural}/a"
    return client.ApiClient().call_api(path, "PATCH", body={}, auth_settings=["BearerToken"], response_types_map={200: "object"},
                                       header_params={"Content-Type": content_type, "Accept": "application/json"})


@scenario
def discovery(namespace):
    version = client.VersionApi().get_code()
    equal(version.major, "1", "major version")
    equal(client.CoreApi().get_api_versions().versions, ["v1"], "versions of the core group")
    groups = client.ApisApi().get_api_versions().groups
    names = [g.name for g in groups]
    equal(len(names), len(set(names)), "groups stand once")
    custom = client.CustomObjectsApi()
    for group in groups:
        equal(group.preferred_version.group_version in [v.group_version for v in group.versions], True, group.name)
        for served in group.versions:
            listed = custom.get_api_resources(group.name, served.version)
            equal(listed.group_version, served.group_version, "version of a list of resources")
            for resource in listed.resources:
                assert resource.kind and resource.verbs, resource
                assert "/" in resource.name or resource.singular_name, f"{resource.name} has a singular name"
    core = {r.name: r for r in client.CoreV1Api().get_api_resources().resources}
    equal((core["pods"].kind, core["pods"].namespaced, core["pods"].short_names), ("Pod", True, ["po"]), "pods")
    for part in ("pods/exec", "pods/log", "pods/portforward", "pods/attach", "pods/status", "pods/binding", "pods/eviction",
                 "namespaces/finalize", "nodes/proxy", "serviceaccounts/token", "services/proxy"):
        assert part in core, f"{part} is not in discovery"
    equal((core["serviceaccounts/token"].kind, core["serviceaccounts/token"].group), ("TokenRequest", "authentication.k8s.io"),
          "tokens")
    issuer = client.WellKnownApi().get_service_account_issuer_open_id_configuration(_preload_content=False)
    document = json.loads(issuer.data)
    assert document["issuer"] and document["jwks_uri"].endswith("/openid/v1/jwks"), document
    keys = json.loads(client.OpenidApi().get_service_account_issuer_open_id_keyset(_preload_content=False).data)["keys"]
    assert keys and all(k["kid"] and k["use"] == "sig" for k in keys), keys


@scenario
def rights(namespace):
    core, authorization = client.CoreV1Api(), client.AuthorizationV1Api()
    me = client.AuthenticationV1Api().create_self_subject_review({}).status.user_info
    assert "system:authenticated" in me.groups, me
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "robot"}})
    wanted = {"spec": {"audiences": [], "expirationSeconds": 3600}}
    answer = core.create_namespaced_service_account_token("robot", namespace, wanted)
    left = answer.status.expiration_timestamp - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(minutes=59) < left <= datetime.timedelta(minutes=61), left
    refused(422, "Invalid", "may not specify a duration less than 10 minutes", core.create_namespaced_service_account_token,
            "robot", namespace, {"spec": {"expirationSeconds": 60}})
    refused(404, "NotFound", "absent", core.create_namespaced_service_account_token, "absent", namespace, wanted)
    token = answer.status.token
    review = client.AuthenticationV1Api().create_token_review({"spec": {"token": token}})
    user = f"system:serviceaccount:{namespace}:robot"
    equal((review.status.authenticated, review.status.user.username), (True, user), "review of a token")
    assert f"system:serviceaccounts:{namespace}" in review.status.user.groups, review.status.user
    bad = client.AuthenticationV1Api().create_token_review({"spec": {"token": token[:-4] + "AAAA"}})
    equal(bool(bad.status.authenticated), False, "review of a forged token")

    settings = client.Configuration.get_default_copy()
    settings.cert_file = settings.key_file = None
    settings.api_key = {"authorization": f"Bearer {token}"}
    robot = client.ApiClient(settings)
    robot_core = client.CoreV1Api(robot)
    name = client.AuthenticationV1Api(robot).create_self_subject_review({}).status.user_info.username
    equal(name, user, "who the robot is")

    def may(verb, resource, name=None):
        attributes = {"namespace": namespace, "verb": verb, "resource": resource, "name": name}
        return client.AuthorizationV1Api(robot).create_self_subject_access_review(
            {"spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}}}).status.allowed

    equal(may("list", "configmaps"), False, "nothing without a role")
    refused(403, "Forbidden", f'configmaps is forbidden: User "{user}" cannot list resource "configmaps" in API group ""'
            f' in the namespace "{namespace}"', robot_core.list_namespaced_config_map, namespace)
    rbac = client.RbacAuthorizationV1Api()
    rbac.create_namespaced_role(namespace, {"metadata": {"name": "r"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["get", "update"]}]})
    rbac.create_namespaced_role_binding(namespace, {
        "metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot"}]})
    eventually("the role counts", lambda: may("list", "configmaps"))
    core.create_namespaced_config_map(namespace, config_map("mine"))
    equal([may("get", "configmaps", "mine"), may("get", "configmaps", "other"), may("delete", "configmaps", "mine")],
          [True, False, False], "names count")
    robot_core.list_namespaced_config_map(namespace)
    refused(403, "Forbidden", "cannot delete", robot_core.delete_namespaced_config_map, "mine", namespace)
    rules = client.AuthorizationV1Api(robot).create_self_subject_rules_review({"spec": {"namespace": namespace}})
    mine = [r for r in rules.status.resource_rules if r.resource_names == ["mine"]]
    equal([sorted(r.verbs) for r in mine], [["get", "update"]], "rules of the robot")
    other = authorization.create_subject_access_review({"spec": {
        "user": user, "groups": ["system:authenticated"],
        "resourceAttributes": {"namespace": namespace, "verb": "watch", "resource": "configmaps"}}})
    equal(other.status.allowed, True, "review of somebody else")
    contains(other.status.reason, "RBAC: allowed by RoleBinding", "reason")
    # Nobody gives away what they have not.
    rbac.create_namespaced_role(namespace, {"metadata": {"name": "maker"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}]})
    rbac.create_namespaced_role_binding(namespace, {
        "metadata": {"name": "maker"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maker"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot"}]})

    def escalates():
        try:
            client.RbacAuthorizationV1Api(robot).create_namespaced_role(namespace, {"metadata": {"name": "more"}, "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]})
        except ApiException as e:
            equal(e.status, 403, e.body)
            return "attempting to grant RBAC permissions not currently held" in e.body
        raise AssertionError("a role with more rights than its maker has was made")

    eventually("escalation is refused", escalates)
    # As somebody else, for who may be so.
    robot.close()
    admin = client.ApiClient()
    admin.set_default_header("Impersonate-User", user)
    refused(403, "Forbidden", f'User "{user}" cannot list resource "secrets"',
            client.CoreV1Api(admin).list_namespaced_secret, namespace)
    settings.api_key = {"authorization": "Bearer nonsense"}
    refused(401, "Unauthorized", "Unauthorized", client.CoreV1Api(client.ApiClient(settings)).list_namespace)


@scenario
def subresources(namespace):
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    apps.create_namespaced_deployment(namespace, deployment("web", 1))
    scale = apps.read_namespaced_deployment_scale("web", namespace)
    equal((scale.kind, scale.spec.replicas, scale.status.selector), ("Scale", 1, "app=web"), "scale")
    scale.spec.replicas = 2
    # The version would be that of the deployment, whose status changes all the time.
    scale.metadata.resource_version = None
    equal(apps.replace_namespaced_deployment_scale("web", namespace, scale).spec.replicas, 2, "replaced")
    apps.patch_namespaced_deployment_scale("web", namespace, {"spec": {"replicas": 1}})
    found = apps.read_namespaced_deployment("web", namespace)
    equal(found.spec.replicas, 1, "scaled")
    managers = {(m.manager, m.subresource) for m in found.metadata.managed_fields}
    assert any(part == "scale" for _, part in managers), f"the scale has a manager: {managers}"

    def available():
        status = apps.read_namespaced_deployment_status("web", namespace).status
        return status.available_replicas == 1 and status.replicas == 1

    eventually("one replica is available", available)
    generation = found.metadata.generation
    note = apps.patch_namespaced_deployment_status("web", namespace, {"status": {"conditions": [
        {"type": "Noted", "status": "True", "reason": "Test", "message": "m"}]}, "spec": {"replicas": 7}})
    equal((note.spec.replicas, note.metadata.generation), (1, generation), "a status changes nothing else")
    assert "Noted" in [c.type for c in note.status.conditions], note.status
    name = core.list_namespaced_pod(namespace, label_selector="app=web").items[0].metadata.name
    core.create_namespaced_pod_eviction(name, namespace, {"metadata": {"name": name}})
    eventually("an evicted pod is replaced", lambda: name not in [
        p.metadata.name for p in core.list_namespaced_pod(namespace, label_selector="app=web").items])

    # A pod is bound by hand.
    free = pod("free", "sleep 1000", schedulerName="nobody")
    core.create_namespaced_pod(namespace, free)
    node = core.list_node().items[0].metadata.name
    core.create_namespaced_pod_binding("free", namespace, {
        "metadata": {"name": "free"}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}}, _preload_content=False)
    eventually("the bound pod runs", lambda: core.read_namespaced_pod("free", namespace).status.phase == "Running")
    core.patch_namespaced_pod_ephemeralcontainers("free", namespace, {"spec": {"ephemeralContainers": [
        {"name": "debug", "image": IMAGE, "command": ["/bin/sh", "-c", "echo looking"]}]}})
    eventually("the debugger has run", lambda: [
        s for s in core.read_namespaced_pod("free", namespace).status.ephemeral_container_statuses or []
        if s.state.terminated and s.state.terminated.exit_code == 0])
    equal(text_of_log(core, "free", namespace, container="debug"), "looking\n", "what it said")


@scenario
def many_at_once(namespace):
    """Threads that change one object: nothing is lost, because each says which version it has seen."""
    core = client.CoreV1Api()
    core.create_namespaced_config_map(namespace, config_map("counter", {"n": "0"}))
    conflicts, failures = [], []

    def count():
        try:
            for _ in range(10):
                while True:
                    seen = core.read_namespaced_config_map("counter", namespace)
                    seen.data["n"] = str(int(seen.data["n"]) + 1)
                    try:
                        core.replace_namespaced_config_map("counter", namespace, seen)
                        break
                    except ApiException as e:
                        if e.status != 409:
                            raise
                        conflicts.append(e.status)
        except Exception:  # a thread's failure is the scenario's
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(failures, [], "failures")
    equal(core.read_namespaced_config_map("counter", namespace).data["n"], "40", "the count")


@scenario
def an_operator(namespace):
    """An operator written with Kopf: finalizers, status, children, events, and webhooks that it registers itself."""
    group, plural = f"{namespace}.sampan.test", "tunes"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                  "metadata": {"name": f"{plural}.{group}"},
                  "spec": {"group": group, "scope": "Namespaced", "names": {"kind": "Tune", "plural": plural},
                           "versions": [{"name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
                                         "schema": {"openAPIV3Schema": schema}}]}}
    extensions = client.ApiextensionsV1Api()
    extensions.create_custom_resource_definition(definition)
    try:
        with tempfile.TemporaryDirectory() as directory, Operator(namespace, group, plural, directory) as operator:
            use_operator(namespace, group, plural, operator)
    finally:
        extensions.delete_custom_resource_definition(f"{plural}.{group}")
        admission = client.AdmissionregistrationV1Api()
        for kind in ("validating", "mutating"):
            try:
                getattr(admission, f"delete_{kind}_webhook_configuration")(f"{namespace}.sampan.test")
            except ApiException as e:
                # An operator that failed early has made none; its failure is what is to be seen.
                equal(e.status, 404, e.body)


class Operator:
    """A running operator: what it does for a tune, and what it was told."""

    def __init__(self, namespace, group, plural, directory):
        import kopf

        self.seen = []
        self.failure = None
        self.stop = threading.Event()
        self.ready = threading.Event()
        certificate, key = f"{directory}/cert.pem", f"{directory}/key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2",
                        "-out", certificate, "-keyout", key], check=True, capture_output=True)
        registry = kopf.OperatorRegistry()
        place = (group, "v1", plural)

        @kopf.on.login(registry=registry)
        def login(**kwargs):
            return kopf.login_with_kubeconfig(**kwargs)

        @kopf.on.startup(registry=registry)
        def configure(settings, **_):
            settings.admission.server = kopf.WebhookServer(
                addr="127.0.0.1", host="127.0.0.1", certfile=certificate, pkeyfile=key, cafile=certificate)
            settings.admission.managed = f"{namespace}.sampan.test"

        @kopf.on.mutate(*place, id="complete", registry=registry)
        def complete(spec, patch, **_):
            patch.spec.setdefault("key", spec.get("key", "c"))

        @kopf.on.validate(*place, id="check", registry=registry)
        def check(spec, warnings, **_):
            if spec.get("text") == "noise":
                raise kopf.AdmissionError("noise is no tune", code=422)
            if spec.get("text") == "loud":
                warnings.append("this is loud")

        @kopf.on.create(*place, id="create", registry=registry)
        def create(body, spec, name, patch, **_):
            child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"tune-{name}"},
                     "data": {"text": spec["text"]}}
            kopf.adopt(child, owner=body)
            client.CoreV1Api().create_namespaced_config_map(namespace, child)
            patch.status["played"] = 1
            self.seen.append(("create", name))
            return {"done": True}

        @kopf.on.update(*place, field="spec.text", registry=registry)
        def update(old, new, name, **_):
            self.seen.append(("update", name, old, new))

        @kopf.on.delete(*place, registry=registry)
        def delete(name, **_):
            self.seen.append(("delete", name))

        def run():
            try:
                asyncio.run(kopf.operator(registry=registry, namespaces=[namespace], standalone=True,
                                          stop_flag=self.stop, ready_flag=self.ready))
            except BaseException:  # the scenario asks for it
                self.failure = traceback.format_exc()

        self.thread = threading.Thread(target=run, daemon=True)

    def __enter__(self):
        self.thread.start()
        eventually("the operator is ready", lambda: self.ready.is_set() or self.failure)
        equal(self.failure, None, "failure of the operator")
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(PATIENCE)


def use_operator(namespace, group, plural, operator):
    api, core = client.CustomObjectsApi(), client.CoreV1Api()
    place = (group, "v1", namespace, plural)

    def tune(name, text):
        return {"apiVersion": f"{group}/v1", "kind": "Tune", "metadata": {"name": name}, "spec": {"text": text}}

    def registered():
        found = client.AdmissionregistrationV1Api().list_validating_webhook_configuration().items
        return [w for c in found if c.metadata.name == f"{namespace}.sampan.test" for w in c.webhooks or []]

    eventually("the webhook is registered", registered)
    # A server takes note of a webhook when it sees it.
    eventually("the webhook is asked", lambda: asked(api, place, tune))
    made = api.create_namespaced_custom_object(*place, tune("a", "la"))
    equal(made["spec"], {"text": "la", "key": "c"}, "a mutating webhook completes the object")
    loud = api.create_namespaced_custom_object_with_http_info(*place, tune("loud", "loud"))
    contains(loud[2].get("Warning"), "this is loud", "a webhook warns")

    def status():
        return api.get_namespaced_custom_object(*place, "a").get("status", {})

    eventually("the handler has written a status", lambda: status().get("played") == 1 and status().get("create") == {"done": True})
    child = core.read_namespaced_config_map("tune-a", namespace)
    equal([(o.kind, o.name) for o in child.metadata.owner_references], [("Tune", "a")], "the child has its owner")
    found = api.get_namespaced_custom_object(*place, "a")
    contains(str(found["metadata"].get("finalizers")), "kopf", "the operator holds the object")
    api.patch_namespaced_custom_object(*place, "a", {"spec": {"text": "do"}})
    eventually("an update is told", lambda: ("update", "a", "la", "do") in operator.seen)
    api.delete_namespaced_custom_object(*place, "a")
    eventually("a deletion is told", lambda: ("delete", "a") in operator.seen)

    def gone(read, *args):
        try:
            return read(*args) is None
        except ApiException as e:
            return e.status == 404

    eventually("the object is gone", lambda: gone(api.get_namespaced_custom_object, *place, "a"))
    eventually("its child, too", lambda: gone(core.read_namespaced_config_map, "tune-a", namespace))
    api.delete_namespaced_custom_object(*place, "loud")
    eventually("nothing is left", lambda: not api.list_namespaced_custom_object(*place)["items"])


def asked(api, place, tune):
    """Whether the validating webhook refuses what it should."""
    try:
        api.create_namespaced_custom_object(*place, tune("noise", "noise"), dry_run="All")
    except ApiException as e:
        equal(e.status, 422, e.body)
        contains(e.body.decode() if isinstance(e.body, bytes) else e.body, "noise is no tune", "the webhook's word")
        contains(str(e.body), "denied the request", "the server's word")
        return True
    return False


def main():
    if sys.argv[1:] == ["list"]:
        print("\n".join(SCENARIOS))
        return
    _, verb, name, namespace = sys.argv
    assert verb == "run", __doc__
    config.load_kube_config()
    SCENARIOS[name](namespace)


if __name__ == "__main__":
    main()
