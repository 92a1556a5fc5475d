//! What every namespace has from the start: the ServiceAccount `default`, and the certificate of the
//! cluster's authority for pods that talk to the API.
//!
//! Both come back when somebody deletes them; only the ServiceAccount may be changed by its users.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use sampan_client::{Informer, ObjectKey, Queue, Requeue};

use crate::common::error::{ControllerError, gone_is_fine, is_already_exists, is_namespace_terminating};
use crate::common::wiring::{Parts, synced};

/// The ServiceAccount of pods that name none.
const SERVICE_ACCOUNT: &str = "default";
/// The ConfigMap that is mounted into pods beside their token.
const ROOT_CA: &str = "kube-root-ca.crt";
/// The key of the certificate in it.
const ROOT_CA_KEY: &str = "ca.crt";
/// How many namespaces are looked at at once.
const WORKERS: usize = 2;

/// Starts the controller; `ca_pem` is the certificate of the cluster's authority.
pub(crate) fn start(parts: &mut Parts, ca_pem: String) {
    let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let namespaces = parts.informers.of::<Namespace>();
    let accounts = parts.informers.of_with::<ServiceAccount>(named(SERVICE_ACCOUNT));
    let certificates = parts.informers.of_with::<ConfigMap>(named(ROOT_CA));
    let queue: Queue<ObjectKey> = Queue::new();
    parts.on_own_change(&namespaces, &queue);
    let wake =
        |queue: &Queue<ObjectKey>, key: &ObjectKey| queue.add(ObjectKey::new("", key.namespace.clone()));
    parts.on_change(accounts.subscribe(), {
        let queue = queue.clone();
        move |change| wake(&queue, &change.key)
    });
    parts.on_change(certificates.subscribe(), {
        let queue = queue.clone();
        move |change| wake(&queue, &change.key)
    });
    let ready = vec![synced(&namespaces), synced(&accounts), synced(&certificates)];
    let controller = Arc::new(NamespaceDefaults {
        of_accounts: parts.client_as("service-account-controller"),
        of_certificates: parts.client_as("root-ca-cert-publisher"),
        namespaces,
        accounts,
        certificates,
        ca_pem,
    });
    parts.run("namespace-defaults", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    CreateAccount(ServiceAccount),
    CreateCertificate(ConfigMap),
    UpdateCertificate(ConfigMap),
}

/// What a namespace lacks. A namespace that is being deleted gets nothing more.
fn plan(
    namespace: &Namespace,
    account: Option<&ServiceAccount>,
    certificate: Option<&ConfigMap>,
    ca_pem: &str,
) -> Vec<Action> {
    let Some(name) = namespace.metadata.name.as_deref() else { return Vec::new() };
    if namespace.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let mut actions = Vec::new();
    if account.is_none() {
        let metadata = meta(name, SERVICE_ACCOUNT);
        actions.push(Action::CreateAccount(ServiceAccount { metadata, ..ServiceAccount::default() }));
    }
    let data = Some(BTreeMap::from([(ROOT_CA_KEY.to_string(), ca_pem.to_string())]));
    match certificate {
        None => {
            let metadata = meta(name, ROOT_CA);
            actions.push(Action::CreateCertificate(ConfigMap { metadata, data, ..ConfigMap::default() }));
        }
        Some(present) if present.data != data || present.binary_data.is_some() => {
            let metadata = present.metadata.clone();
            actions.push(Action::UpdateCertificate(ConfigMap { metadata, data, ..ConfigMap::default() }));
        }
        Some(_) => {}
    }
    actions
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..ObjectMeta::default() }
}

struct NamespaceDefaults {
    of_accounts: kube::Client,
    of_certificates: kube::Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    certificates: Informer<ConfigMap>,
    ca_pem: String,
}

impl NamespaceDefaults {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let Some(namespace) = self.namespaces.by_key(&key) else { return Ok(Requeue::No) };
        let account = self.accounts.get(&key.name, SERVICE_ACCOUNT);
        let certificate = self.certificates.get(&key.name, ROOT_CA);
        for action in plan(&namespace, account.as_deref(), certificate.as_deref(), &self.ca_pem) {
            self.execute(&key.name, action).await?;
        }
        Ok(Requeue::No)
    }

    async fn execute(&self, namespace: &str, action: Action) -> Result<(), ControllerError> {
        let params = PostParams::default();
        let certificates: Api<ConfigMap> = Api::namespaced(self.of_certificates.clone(), namespace);
        match action {
            Action::CreateAccount(account) => {
                let api: Api<ServiceAccount> = Api::namespaced(self.of_accounts.clone(), namespace);
                created(api.create(&params, &account).await)
                    .map_err(ControllerError::api("create the default ServiceAccount of", namespace))
            }
            Action::CreateCertificate(certificate) => {
                created(certificates.create(&params, &certificate).await)
                    .map_err(ControllerError::api("create the certificate ConfigMap of", namespace))
            }
            Action::UpdateCertificate(certificate) => {
                gone_is_fine(certificates.replace(ROOT_CA, &params, &certificate).await)
                    .map(drop)
                    .map_err(ControllerError::api("update the certificate ConfigMap of", namespace))
            }
        }
    }
}

/// Somebody else may have been faster, or the namespace may be on its way out: both are fine.
fn created<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{self, time};

    fn certificate(pem: &str) -> ConfigMap {
        ConfigMap {
            metadata: testing::meta(ROOT_CA, "cm"),
            data: Some(testing::labels(&[("ca.crt", pem)])),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn what_a_namespace_lacks() {
        let here = Namespace { metadata: testing::meta("ns", "1"), ..Namespace::default() };
        let mut leaving = here.clone();
        leaving.metadata.deletion_timestamp = Some(time(1));
        let account = ServiceAccount::default();
        let (right, wrong) = (certificate("PEM"), certificate("OLD"));
        type Row<'a> =
            (&'a str, &'a Namespace, Option<&'a ServiceAccount>, Option<&'a ConfigMap>, Vec<&'a str>);
        let rows: Vec<Row> = vec![
            ("new", &here, None, None, vec!["create account", "create certificate"]),
            ("complete", &here, Some(&account), Some(&right), vec![]),
            ("account deleted", &here, None, Some(&right), vec!["create account"]),
            ("certificate deleted", &here, Some(&account), None, vec!["create certificate"]),
            ("certificate changed", &here, Some(&account), Some(&wrong), vec!["update certificate"]),
            ("leaving", &leaving, None, None, vec![]),
        ];
        for (name, namespace, account, certificate, expected) in rows {
            let words: Vec<_> = plan(namespace, account, certificate, "PEM")
                .iter()
                .map(|action| match action {
                    Action::CreateAccount(_) => "create account",
                    Action::CreateCertificate(_) => "create certificate",
                    Action::UpdateCertificate(_) => "update certificate",
                })
                .collect();
            assert_eq!(words, expected, "{name}");
        }
    }
}
