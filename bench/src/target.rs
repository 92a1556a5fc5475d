//! The clusters to measure, each reached through a kubeconfig, and the namespace a run works in.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config};
use tokio::time::{sleep, timeout};

use crate::error::{BenchError, Context, Result};

/// How long making a namespace ready or emptying it may take.
const NAMESPACE_LIMIT: Duration = Duration::from_secs(120);

/// How long a change of rights, policies or kinds may take to have its effect.
const EFFECT_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked for. There is no event for it.
const EFFECT_PAUSE: Duration = Duration::from_millis(50);

/// `name=path`: a name for the table and the kubeconfig of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kubeconfig: PathBuf,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_string(), kubeconfig: PathBuf::from(path) })
            }
            _ => Err(format!("expected name=path of a kubeconfig, not {text:?}")),
        }
    }
}

impl Target {
    /// How to reach the cluster, as the user of the kubeconfig.
    pub(crate) async fn config(&self) -> Result<Config> {
        let what = || format!("could not use the kubeconfig {}", self.kubeconfig.display());
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).context(what)?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.context(what)?;
        // A retried request would count as one slow request, and hide an overloaded server.
        config.default_retry = false;
        Ok(config)
    }

    /// How to reach the cluster as another user, by impersonation, which the user of the kubeconfig must
    /// be allowed.
    pub(crate) async fn config_as(&self, user: &str, groups: &[&str]) -> Result<Config> {
        let mut config = self.config().await?;
        config.auth_info.impersonate = Some(user.to_string());
        config.auth_info.impersonate_groups = Some(groups.iter().map(ToString::to_string).collect());
        Ok(config)
    }

    /// A client with a connection of its own, as another program would have.
    pub(crate) async fn connect(&self) -> Result<Client> {
        self.client(self.config().await?)
    }

    /// A client of another user.
    pub(crate) async fn connect_as(&self, user: &str, groups: &[&str]) -> Result<Client> {
        self.client(self.config_as(user, groups).await?)
    }

    fn client(&self, config: Config) -> Result<Client> {
        Client::try_from(config).context(|| format!("could not make a client of {}", self.name))
    }

    pub(crate) async fn connect_many(&self, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(self.connect().await?);
        }
        Ok(clients)
    }
}

/// A namespace made for one run.
pub(crate) struct Workspace {
    client: Client,
    pub(crate) name: String,
}

impl Workspace {
    /// Does some work in a namespace made for it, which is deleted again, also after a failure.
    pub(crate) async fn within<T>(client: &Client, work: impl AsyncFnOnce(&str) -> Result<T>) -> Result<T> {
        let workspace = Self::create(client).await?;
        let result = work(&workspace.name).await;
        let removed = workspace.remove().await;
        let done = result?;
        removed?;
        Ok(done)
    }

    /// Makes a namespace with a name of its own and waits for its service account, without which no
    /// pod is accepted.
    pub(crate) async fn create(client: &Client) -> Result<Self> {
        let namespace = Namespace {
            metadata: ObjectMeta { generate_name: Some("bench-".to_string()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        let made = Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .context(|| "could not create a namespace".to_string())?;
        let workspace = Self { client: client.clone(), name: made.metadata.name.unwrap_or_default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &workspace.name);
        let exists = |account: Option<&ServiceAccount>| account.is_some();
        let what = || format!("waited for the service account of {}", workspace.name);
        let ready = timeout(NAMESPACE_LIMIT, await_condition(accounts, "default", exists)).await;
        ready.context(what)?.context(what)?;
        Ok(workspace)
    }

    /// Deletes the namespace and waits until it is gone, so that its removal does not disturb what is
    /// measured next.
    pub(crate) async fn remove(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client);
        let what = || format!("could not delete the namespace {}", self.name);
        namespaces.delete(&self.name, &DeleteParams::default()).await.context(what)?;
        let is_gone = |namespace: Option<&Namespace>| namespace.is_none();
        await_condition(namespaces, &self.name, is_gone).await.context(what)?;
        Ok(())
    }
}

/// Waits until a change that a server accepted is also obeyed: servers learn of rights, policies and
/// kinds with a delay.
pub(crate) async fn await_effect(what: &str, is_there: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_there().await? {
        if begun.elapsed() > EFFECT_LIMIT {
            return Err(BenchError::new(format!("{what} had no effect after {} s", EFFECT_LIMIT.as_secs())));
        }
        sleep(EFFECT_PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_name_and_a_path() {
        let expected = Target { name: "k3s".to_string(), kubeconfig: PathBuf::from("/etc/a=b.yaml") };
        assert_eq!("k3s=/etc/a=b.yaml".parse::<Target>(), Ok(expected));
        for wrong in ["", "k3s", "=path", "name="] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
