//! Custom resources beside a built-in kind, and what admission adds to a write.
//!
//! The same loads go to ConfigMaps and to a custom resource with the schema of `data/crd.json`: nested
//! objects, lists and maps, defaults at every level, patterns, and rules in CEL. Both are sent and read
//! as dynamic objects of about the same size, so that this program spends the same on both. Writes are
//! measured again with a validating admission policy in place, and with a webhook if asked for.

use std::sync::{Arc, OnceLock};

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::error::{BenchError, Context, Result};
use crate::load::{Object, PAYLOAD, Phase, name, run};
use crate::report::Measure;
use crate::target::{Target, Workspace, await_effect};
use crate::webhook::Webhook;

/// The definition of the custom resource. Its names are given when it is made.
const DEFINITION: &str = include_str!("../data/crd.json");
/// The name no admission lets pass, by which it is seen that it acts.
const REFUSED: &str = "refused";
/// Lists are this much rarer than requests for single objects: each one carries hundreds.
const OPERATIONS_PER_LIST: usize = 20;

/// How much to do.
#[derive(Clone, Debug)]
pub(crate) struct CustomLoad {
    /// Numbers of clients to measure with, one after the other.
    pub(crate) clients: Vec<usize>,
    /// Requests per kind of operation, shared by the clients; as many objects are in the list.
    pub(crate) operations: usize,
}

/// What is measured. A server that cannot do one of them still has the numbers of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Reads and writes as they are.
    Plain,
    /// Writes with a validating admission policy.
    Policy,
    /// Writes with a webhook in this program.
    Webhook,
}

impl Part {
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Plain => "custom resources",
            Self::Policy => "custom resources with a policy",
            Self::Webhook => "custom resources with a webhook",
        }
    }
}

/// One of the two kinds that are compared.
struct Kind {
    label: &'static str,
    resource: ApiResource,
    object: fn(&str, &ApiResource, usize) -> DynamicObject,
}

/// Measures one target. What was made is deleted again, also after a failure.
pub(crate) async fn measure(target: &Target, load: &CustomLoad, part: Part) -> Result<Vec<Measure>> {
    let admin = target.connect().await?;
    Workspace::within(&admin, async |namespace| {
        let group = format!("{namespace}.bench.example.com");
        let definition = definition(&group)?;
        with(&Api::all(admin.clone()), &definition, async || {
            let kinds = kinds(&group);
            for kind in &kinds {
                await_effect("a definition", async || {
                    let api: Api<DynamicObject> =
                        Api::namespaced_with(admin.clone(), namespace, &kind.resource);
                    Ok(api.list(&ListParams::default()).await.is_ok())
                })
                .await?;
            }
            let rounds = rounds(target, load, &kinds, namespace).await?;
            let admission = Admission { admin: &admin, rounds: &rounds, kinds: &kinds, namespace };
            match part {
                Part::Plain => measure_rounds(&rounds, "", true).await,
                Part::Policy => admission.policy().await,
                Part::Webhook => admission.webhook().await,
            }
        })
        .await
    })
    .await
}

async fn rounds<'a>(
    target: &Target,
    load: &'a CustomLoad,
    kinds: &'a [Kind; 2],
    namespace: &'a str,
) -> Result<Vec<Round<'a>>> {
    let mut rounds = Vec::new();
    for &count in &load.clients {
        rounds.push(Round { clients: target.connect_many(count).await?, load, kinds, namespace });
    }
    Ok(rounds)
}

async fn measure_rounds(rounds: &[Round<'_>], suffix: &str, reads: bool) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    for round in rounds {
        measures.extend(round.measure(suffix, reads).await?);
    }
    Ok(measures)
}

/// One number of clients.
struct Round<'a> {
    clients: Vec<Client>,
    load: &'a CustomLoad,
    kinds: &'a [Kind; 2],
    namespace: &'a str,
}

impl Round<'_> {
    /// Both kinds, side by side.
    async fn measure(&self, suffix: &str, reads: bool) -> Result<Vec<Measure>> {
        let [builtin, custom] = self.kinds;
        let mut measures = Vec::new();
        let phases = (self.phases(builtin, reads).await?, self.phases(custom, reads).await?);
        for ((what, first), (_, second)) in phases.0.iter().zip(&phases.1) {
            let clients = self.clients.len();
            measures.extend(first.measures(&format!("{what}{suffix}, {}", builtin.label), clients));
            measures.extend(second.measures(&format!("{what}{suffix}, {}", custom.label), clients));
            let name = format!("{what}{suffix}, rate of {} to {}", custom.label, builtin.label);
            let ratio = second.rate() / first.rate();
            measures.push(Measure::higher(format!("{name}, {clients} clients"), "x", ratio));
        }
        Ok(measures)
    }

    /// The operations on one kind: the writes, and the reads between them if asked for.
    async fn phases(&self, kind: &Kind, reads: bool) -> Result<Vec<(String, Phase)>> {
        let count = self.load.operations;
        let api = |client: &Client| Api::namespaced_with(client.clone(), self.namespace, &kind.resource);
        let apis: Vec<Api<DynamicObject>> = self.clients.iter().map(api).collect();
        // Connections are opened before, so that their handshakes are not measured.
        run(&apis, apis.len(), |api, _| async move { api.get_opt("none").await.map(drop) }).await?;

        let versions: Arc<Versions> = Arc::new((0..count).map(|_| OnceLock::new()).collect());
        let mut phases = vec![("create".to_string(), create(&apis, kind, count, &versions).await?)];
        if reads {
            let get = run(&apis, count, |api, index| async move { api.get(&name(index)).await.map(drop) });
            phases.push(("get".to_string(), get.await?));
            let lists = (count / OPERATIONS_PER_LIST).max(apis.len());
            let list =
                run(&apis, lists, |api, _| async move { api.list(&ListParams::default()).await.map(drop) });
            phases.push((format!("list {count} x 1 KB"), list.await?));
        }
        phases.push(("update".to_string(), update(&apis, kind, count, &versions).await?));
        let delete = run(&apis, count, |api, index| async move {
            api.delete(&name(index), &DeleteParams::default()).await.map(drop)
        });
        delete.await?;
        Ok(phases)
    }
}

/// The versions of the objects as they were created. Custom resources are not replaced without one.
type Versions = Vec<OnceLock<String>>;

async fn create(
    apis: &[Api<DynamicObject>],
    kind: &Kind,
    count: usize,
    versions: &Arc<Versions>,
) -> Result<Phase> {
    let (make, resource, versions) = (kind.object, kind.resource.clone(), Arc::clone(versions));
    let create = move |api: Api<DynamicObject>, index| {
        let (object, versions) = (make(&name(index), &resource, 0), Arc::clone(&versions));
        async move {
            let made = api.create(&PostParams::default(), &object).await?;
            // Set once: every object is created once.
            let _ = versions[index].set(made.metadata.resource_version.unwrap_or_default());
            Ok(())
        }
    };
    run(apis, count, create).await
}

async fn update(
    apis: &[Api<DynamicObject>],
    kind: &Kind,
    count: usize,
    versions: &Arc<Versions>,
) -> Result<Phase> {
    let (make, resource, versions) = (kind.object, kind.resource.clone(), Arc::clone(versions));
    let update = move |api: Api<DynamicObject>, index| {
        let mut object = make(&name(index), &resource, index + 1);
        object.metadata.resource_version = versions.get(index).and_then(OnceLock::get).cloned();
        async move { api.replace(&name(index), &PostParams::default(), &object).await.map(drop) }
    };
    run(apis, count, update).await
}

/// What is put in the way of writes to both kinds in the namespace, and only there.
struct Admission<'a> {
    admin: &'a Client,
    rounds: &'a [Round<'a>],
    kinds: &'a [Kind; 2],
    namespace: &'a str,
}

impl Admission<'_> {
    async fn policy(&self) -> Result<Vec<Measure>> {
        let metadata = json!({"name": self.namespace});
        let expression = format!("object.metadata.name != '{REFUSED}' && size(object.metadata.name) < 100");
        let policy: ValidatingAdmissionPolicy = decode(json!({"metadata": metadata, "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [self.rule()], "namespaceSelector": self.selector()},
            "validations": [{"expression": expression}],
        }}))?;
        let binding: ValidatingAdmissionPolicyBinding = decode(json!({"metadata": metadata, "spec": {
            "policyName": self.namespace,
            "validationActions": ["Deny"],
        }}))?;
        with(&Api::all(self.admin.clone()), &policy, async || {
            with(&Api::all(self.admin.clone()), &binding, async || {
                self.await_refusals("a validating admission policy").await?;
                measure_rounds(self.rounds, " with a policy", false).await
            })
            .await
        })
        .await
    }

    async fn webhook(&self) -> Result<Vec<Measure>> {
        let webhook = Webhook::serve(REFUSED).await?;
        let mut configuration: ValidatingWebhookConfiguration = decode(json!({
            "metadata": {"name": self.namespace},
            "webhooks": [{
                "name": "writes.bench.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "clientConfig": {"url": webhook.url},
                "rules": [self.rule()],
                "namespaceSelector": self.selector(),
            }],
        }))?;
        for hook in configuration.webhooks.iter_mut().flatten() {
            hook.client_config.ca_bundle = Some(ByteString(webhook.authority.clone().into_bytes()));
        }
        with(&Api::all(self.admin.clone()), &configuration, async || {
            self.await_refusals("a validating webhook").await?;
            let before = webhook.calls();
            let measures = measure_rounds(self.rounds, " with a webhook", false).await?;
            let writes: usize = self.rounds.iter().map(|round| 4 * round.load.operations).sum();
            let calls = webhook.calls() - before;
            if calls < writes {
                return Err(BenchError::new(format!(
                    "the webhook was asked {calls} times for {writes} writes"
                )));
            }
            Ok(measures)
        })
        .await
    }

    fn rule(&self) -> Value {
        let groups: Vec<&str> = self.kinds.iter().map(|kind| kind.resource.group.as_str()).collect();
        let resources: Vec<&str> = self.kinds.iter().map(|kind| kind.resource.plural.as_str()).collect();
        json!({
            "apiGroups": groups,
            "apiVersions": ["v1"],
            "resources": resources,
            "operations": ["CREATE", "UPDATE"],
        })
    }

    fn selector(&self) -> Value {
        json!({"matchLabels": {"kubernetes.io/metadata.name": self.namespace}})
    }

    /// Waits until an object that must be refused is, for both kinds.
    async fn await_refusals(&self, what: &str) -> Result<()> {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        for kind in self.kinds {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.admin.clone(), self.namespace, &kind.resource);
            let object = (kind.object)(REFUSED, &kind.resource, 0);
            await_effect(what, async || match api.create(&params, &object).await {
                Ok(_) => Ok(false),
                // Until a server knows enough, it may also refuse for reasons of its own.
                Err(kube::Error::Api(status)) => Ok(matches!(status.code, 400 | 403 | 422)),
                Err(error) => Err(error).context(|| format!("could not try {what}")),
            })
            .await?;
        }
        Ok(())
    }
}

/// Does some work while an object is there, which is deleted again, also after a failure.
async fn with<K, T>(api: &Api<K>, object: &K, work: impl AsyncFnOnce() -> Result<T>) -> Result<T>
where
    K: Object + kube::Resource<DynamicType = ()>,
{
    let what = |verb: &str| format!("could not {verb} {} {}", K::kind(&()), object.name_any());
    api.create(&PostParams::default(), object).await.context(|| what("create"))?;
    let result = work().await;
    let removed = api.delete(&object.name_any(), &DeleteParams::default()).await;
    let done = result?;
    removed.context(|| what("delete"))?;
    Ok(done)
}

fn decode<K: Object>(object: Value) -> Result<K> {
    serde_json::from_value(object).context(|| "could not make an object of the benchmark".to_string())
}

/// The definition of the custom resource in a group of its own.
fn definition(group: &str) -> Result<CustomResourceDefinition> {
    let what = || "could not read the definition of the custom resource".to_string();
    let mut definition: CustomResourceDefinition = serde_json::from_str(DEFINITION).context(what)?;
    definition.metadata.name = Some(format!("{}.{group}", definition.spec.names.plural));
    definition.spec.group = group.to_string();
    Ok(definition)
}

fn kinds(group: &str) -> [Kind; 2] {
    let resource = |group: &str, kind: &str, plural: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
    };
    [
        Kind { label: "ConfigMap", resource: resource("", "ConfigMap", "configmaps"), object: config_map },
        Kind {
            label: "custom resource",
            resource: resource(group, "Database", "databases"),
            object: database,
        },
    ]
}

fn config_map(name: &str, resource: &ApiResource, number: usize) -> DynamicObject {
    let data = json!({"data": {"payload": "a".repeat(PAYLOAD), "number": number.to_string()}});
    DynamicObject::new(name, resource).data(data)
}

/// An object that leaves to defaults what users leave to them.
fn database(name: &str, resource: &ApiResource, number: usize) -> DynamicObject {
    let user = |name: &str, databases: &[&str]| json!({"name": name, "passwordSecret": {"name": format!("password-{name}")}, "databases": databases});
    let spec = json!({
        "number": number,
        "description": "a".repeat(PAYLOAD / 2),
        "engine": {
            "name": "postgres",
            "version": "17.2",
            "parameters": {"max_connections": "200", "shared_buffers": "1GB", "wal_level": "logical"},
        },
        "storage": {"size": "10Gi"},
        "tls": {"secretName": "database-certificate"},
        "databases": ["application", "audit", "metrics"],
        "users": [
            user("application", &["application", "audit"]),
            user("auditor", &["audit"]),
            user("metrics", &["metrics"]),
        ],
        "maintenance": {"day": "Sunday"},
    });
    DynamicObject::new(name, resource).data(json!({"spec": spec}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_has_the_names_of_the_resource() {
        let definition = definition("a.bench.example.com").expect("the file is a definition");
        let [_, custom] = kinds("a.bench.example.com");
        assert_eq!(definition.spec.group, custom.resource.group);
        assert_eq!(definition.spec.names.plural, custom.resource.plural);
        assert_eq!(definition.spec.names.kind, custom.resource.kind);
        assert_eq!(definition.spec.versions[0].name, custom.resource.version);
        assert_eq!(definition.metadata.name.as_deref(), Some("databases.a.bench.example.com"));
    }

    #[test]
    fn both_kinds_are_of_about_one_size() {
        let size = |kind: &Kind| {
            serde_json::to_vec(&(kind.object)("a", &kind.resource, 1)).expect("objects are JSON").len()
        };
        let [builtin, custom] = kinds("a.bench.example.com");
        let ratio = size(&custom) as f64 / size(&builtin) as f64;
        assert!((0.9..1.2).contains(&ratio), "{ratio}");
    }
}
