//! What every new pod gets: an identity, a priority, patience with broken nodes.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Admission;
use crate::error::ApiError;
use crate::view::View;

/// Where containers find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of the token in seconds: an hour, and seven seconds that mark it as made here (as upstream does).
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod that is created right after its namespace waits for the default service account.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);
/// Seconds a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;

fn is_new_pod(admission: &Admission<'_>) -> bool {
    admission.is("", "pods") && admission.old.is_none() && admission.view == View::Object
}

fn account_of(object: &Value) -> &str {
    match object["spec"]["serviceAccountName"].as_str() {
        Some(name) if !name.is_empty() => name,
        _ => "default",
    }
}

/// Gives the controller that makes service accounts a moment.
pub(super) async fn await_service_account(admission: &Admission<'_>, object: &Value) {
    if !is_new_pod(admission) || super::node::is_mirror(object) {
        return;
    }
    let key = format!("/serviceaccounts/{}/{}", admission.namespace, account_of(object));
    let accounts = admission.server.cache.resource("serviceaccounts");
    let mut changed = accounts.subscribe();
    let found = async { while accounts.get(&key).is_none() && changed.changed().await.is_ok() {} };
    // Running out of patience is answered by the plug-in below.
    let _ = tokio::time::timeout(ACCOUNT_PATIENCE, found).await;
}

/// ServiceAccount: names the account and mounts its token.
pub(super) fn service_account(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    // The picture of a pod that a node has from elsewhere runs as nobody.
    if !is_new_pod(admission) || super::node::is_mirror(object) {
        return Ok(());
    }
    let name = account_of(object).to_owned();
    let key = format!("/serviceaccounts/{}/{name}", admission.namespace);
    let Some(account) = admission.server.cache.resource("serviceaccounts").get(&key) else {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
            admission.namespace
        );
        return Err(admission.forbidden(object, why));
    };
    let account: Value = serde_json::from_slice(&account.bytes).unwrap_or_default();
    let spec = &mut object["spec"];
    spec["serviceAccountName"] = name.clone().into();
    spec["serviceAccount"] = name.into();
    if spec["imagePullSecrets"].is_null() && !account["imagePullSecrets"].is_null() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let mount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mount {
        mount_token(spec);
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"].as_array().into_iter().flatten();
    let present = existing
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let volume = present
        .clone()
        .unwrap_or_else(|| format!("kube-api-access-{}", &uuid::Uuid::new_v4().simple().to_string()[..5]));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        // Not by index: that would leave a null where there is no such list.
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts =
                container.as_object_mut().map(|c| c.entry("volumeMounts").or_insert_with(|| json!([])));
            let Some(mounts) = mounts.and_then(Value::as_array_mut) else { continue };
            if mounts.iter().all(|mount| mount["mountPath"] != TOKEN_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                used = true;
            }
        }
    }
    if !used || present.is_some() {
        return;
    }
    let projected = json!({
        "name": volume,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    });
    if let Some(volumes) = spec.as_object_mut().map(|s| s.entry("volumes").or_insert_with(|| json!([]))) {
        volumes.as_array_mut().into_iter().for_each(|list| list.push(projected.clone()));
    }
}

/// Classes every cluster has.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Priority: turns a class name into a number.
pub(super) fn priority(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if !is_new_pod(admission) {
        return Ok(());
    }
    let classes = admission.server.cache.resource("priorityclasses.scheduling.k8s.io");
    let class_name = object["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let prefix = "/priorityclasses.scheduling.k8s.io/";
    let class: Option<Value> = if class_name.is_empty() {
        let all = classes.list(prefix);
        let default = all.iter().find(|item| item.field("/globalDefault") == "true");
        default.and_then(|item| serde_json::from_slice(&item.bytes).ok())
    } else if let Some((name, value)) = SYSTEM_CLASSES.iter().find(|(name, _)| *name == class_name) {
        Some(json!({"metadata": {"name": name}, "value": value}))
    } else {
        match classes.get(&format!("{prefix}{class_name}")) {
            Some(item) => serde_json::from_slice(&item.bytes).ok(),
            None => {
                return Err(
                    admission.forbidden(object, format!("no PriorityClass with name {class_name} was found"))
                );
            }
        }
    };
    let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class
        .as_ref()
        .and_then(|c| c["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority")
        .to_owned();
    if object["spec"]["priority"].as_i64().is_some_and(|given| given != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            object["spec"]["priority"]
        );
        return Err(admission.forbidden(object, why));
    }
    if object["spec"]["preemptionPolicy"].as_str().is_some_and(|given| given != policy) {
        let why = format!(
            "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name",
            object["spec"]["preemptionPolicy"].as_str().unwrap_or_default()
        );
        return Err(admission.forbidden(object, why));
    }
    if let Some(class) = &class {
        object["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    object["spec"]["priority"] = value.into();
    object["spec"]["preemptionPolicy"] = policy.into();
    Ok(())
}

/// DefaultTolerationSeconds.
pub(super) fn default_tolerations(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if !is_new_pod(admission) {
        return Ok(());
    }
    let Some(spec) = object["spec"].as_object_mut() else { return Ok(()) };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerations = spec.get("tolerations").and_then(Value::as_array);
        let tolerated = tolerations.into_iter().flatten().any(|t| tolerates(t.as_object(), key));
        if !tolerated {
            let toleration = json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            });
            let list = spec.entry("tolerations").or_insert_with(|| json!([]));
            list.as_array_mut().into_iter().for_each(|list| list.push(toleration.clone()));
        }
    }
    Ok(())
}

fn tolerates(toleration: Option<&Map<String, Value>>, key: &str) -> bool {
    let text =
        |field: &str| toleration.and_then(|t| t.get(field)).and_then(Value::as_str).unwrap_or_default();
    (text("key") == key || text("key").is_empty())
        && (text("effect") == "NoExecute" || text("effect").is_empty())
}
