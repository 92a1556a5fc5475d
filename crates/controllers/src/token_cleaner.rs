//! Bootstrap tokens go when their time is over: the secrets of `kube-system` with which new machines prove themselves.
//!
//! Who comes with an expired token is refused anyway; this keeps secrets of no use from piling up. Upstream's token
//! cleaner (Kubernetes documentation, "Authenticating with Bootstrap Tokens").

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::runtime::watcher;
use sampan_client::{Informer, ObjectKey, Queue, Requeue};

use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::wiring::{Parts, synced};

const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The entry that says when the token ends, as RFC 3339 has it. A token without one is for ever.
const EXPIRATION: &str = "expiration";
const WORKERS: usize = 1;

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let tokens =
        parts.informers.of_with::<Secret>(watcher::Config::default().fields(&format!("type={SECRET_TYPE}")));
    let queue: Queue<ObjectKey> = Queue::new();
    parts.on_own_change(&tokens, &queue);
    let ready = vec![synced(&tokens)];
    let controller = Arc::new(TokenCleaner { client: parts.client_as("token-cleaner"), tokens });
    parts.run("token-cleaner", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

/// What is to be done with a token.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    Keep,
    LookAgain(Duration),
    Delete,
}

/// A time that nobody can read is over, as upstream has it: such a token opens no door.
fn plan(token: &Secret, now: Timestamp) -> Plan {
    let ours = token.metadata.namespace.as_deref() == Some(NAMESPACE)
        && token.type_.as_deref() == Some(SECRET_TYPE)
        && token.metadata.deletion_timestamp.is_none();
    let Some(text) = token.data.as_ref().and_then(|data| data.get(EXPIRATION)).filter(|_| ours) else {
        return Plan::Keep;
    };
    let end = std::str::from_utf8(&text.0).ok().and_then(|text| text.parse::<Timestamp>().ok());
    match end.filter(|end| *end > now) {
        None => Plan::Delete,
        Some(end) => Plan::LookAgain(end.duration_since(now).unsigned_abs()),
    }
}

struct TokenCleaner {
    client: kube::Client,
    tokens: Informer<Secret>,
}

impl TokenCleaner {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let Some(token) = self.tokens.by_key(&key) else { return Ok(Requeue::No) };
        match plan(&token, Timestamp::now()) {
            Plan::Keep => Ok(Requeue::No),
            Plan::LookAgain(after) => Ok(Requeue::After(after)),
            Plan::Delete => {
                // Only what was looked at: somebody may just have given it more time.
                let same = Preconditions { uid: token.uid(), resource_version: token.resource_version() };
                let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
                let deleted = api.delete(&key.name, &DeleteParams::default().preconditions(same)).await;
                let deleted = gone_is_fine(deleted).map(drop);
                deleted.map_err(ControllerError::api("delete the expired token", &key.name))?;
                Ok(Requeue::No)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;
    use crate::common::testing;

    #[test]
    fn what_becomes_of_a_token() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let token = |namespace: &str, type_: &str, expiration: Option<&str>| {
            let mut metadata = testing::meta("bootstrap-token-abcdef", "1");
            metadata.namespace = Some(namespace.to_owned());
            let data: BTreeMap<String, ByteString> = expiration
                .map(|text| (EXPIRATION.to_owned(), ByteString(text.as_bytes().to_vec())))
                .into_iter()
                .collect();
            Secret { metadata, type_: Some(type_.to_owned()), data: Some(data), ..Secret::default() }
        };
        let rows = [
            ("over", NAMESPACE, SECRET_TYPE, Some("2025-12-31T23:59:59Z"), Plan::Delete),
            ("over this moment", NAMESPACE, SECRET_TYPE, Some("2026-01-01T00:00:00Z"), Plan::Delete),
            ("over, elsewhere", NAMESPACE, SECRET_TYPE, Some("2026-01-01T01:00:00+02:00"), Plan::Delete),
            (
                "lives",
                NAMESPACE,
                SECRET_TYPE,
                Some("2026-01-01T00:01:00Z"),
                Plan::LookAgain(Duration::from_secs(60)),
            ),
            ("for ever", NAMESPACE, SECRET_TYPE, None, Plan::Keep),
            ("no time", NAMESPACE, SECRET_TYPE, Some("soon"), Plan::Delete),
            ("of another namespace", "default", SECRET_TYPE, Some("2025-01-01T00:00:00Z"), Plan::Keep),
            ("of another type", NAMESPACE, "Opaque", Some("2025-01-01T00:00:00Z"), Plan::Keep),
        ];
        for (what, namespace, type_, expiration, expected) in rows {
            assert_eq!(plan(&token(namespace, type_, expiration), now), expected, "{what}");
        }
        let mut leaving = token(NAMESPACE, SECRET_TYPE, Some("2025-01-01T00:00:00Z"));
        leaving.metadata.deletion_timestamp = Some(testing::time(1));
        assert_eq!(plan(&leaving, now), Plan::Keep);
    }
}
