//! Certificates on request: approval, signing and tidying of `CertificateSigningRequest` objects.
//!
//! Upstream does this in its controller manager, which is given the authority's key. Here it is a part of the API server's
//! crate, because the key is: whoever holds it is everybody, so it is kept in [`crate::pki`] and leaves it neither for
//! another crate nor for another process. The part decides by the watch cache and writes through the pipeline as the
//! service account `certificate-controller`, with that account's rights, so that it could do nothing a loop outside could
//! not do, but sign.
//!
//! [`request`] understands what is asked for, [`plan`] decides, [`issue`] makes the certificate.

pub(crate) mod issue;
pub(crate) mod plan;
pub(crate) mod request;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sampan_api::decode::Strictness;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use crate::auth::User;
use crate::auth::rbac::Attributes;
use crate::books::seconds;
use crate::delete::DeleteOptions;
use crate::error::ApiError;
use crate::pki::Pki;
use crate::server::ApiServer;
use crate::view::View;
use crate::write::{Change, WriteCall};
use plan::{Action, Todo};

/// API group of requests.
pub(crate) const GROUP: &str = "certificates.k8s.io";
/// Plural of the kind.
pub(crate) const REQUESTS: &str = "certificatesigningrequests";
/// Longest sleep; a clock that jumps is noticed by then.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// A request that could not be dealt with is looked at again after this.
const PAUSE: Duration = Duration::from_secs(10);

/// Deals with requests for certificates until the task is dropped. Ends at once when the server does not serve the kind.
pub async fn serve_certificates(server: Arc<ApiServer>, pki: Arc<Pki>) {
    let Some(kind) = server.registry().find_resource(GROUP, REQUESTS).cloned() else { return };
    let worker = Worker { server, pki, kind, user: account() };
    let requests = worker.server.cache.resource(worker.kind.resource());
    let mut changes = requests.subscribe();
    loop {
        changes.borrow_and_update();
        let mut sleep = LONGEST_SLEEP;
        for item in requests.list(worker.kind.store_prefix()) {
            let object: Value = serde_json::from_slice(&item.bytes).unwrap_or_default();
            sleep = sleep.min(worker.deal_with(&object).await);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // Requests end by their age, which is no event.
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Whom the part acts as.
fn account() -> User {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    User::known("system:serviceaccount:kube-system:certificate-controller", &groups)
}

struct Worker {
    server: Arc<ApiServer>,
    pki: Arc<Pki>,
    kind: Arc<Kind>,
    user: User,
}

impl Worker {
    /// One step for one request; gives when to look at it again.
    async fn deal_with(&self, object: &Value) -> Duration {
        let now = Timestamp::now();
        let todo = plan::plan(object, now, |subresource| self.requester_may(object, subresource));
        let Todo { action, again } = todo;
        match self.execute(object, action, now).await {
            // Somebody else was faster: their change wakes us.
            Ok(()) => again,
            Err(error) if error.reason == "Conflict" || error.reason == "NotFound" => again,
            Err(error) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                tracing::warn!(%error, name, "a request for a certificate could not be dealt with");
                PAUSE
            }
        }
    }

    /// Whether who made the request may have it approved without anybody looking.
    fn requester_may(&self, object: &Value, subresource: &str) -> bool {
        let spec = &object["spec"];
        let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let requester = User {
            name: spec["username"].as_str().unwrap_or_default().to_owned(),
            uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
            groups: groups.map(str::to_owned).collect(),
            extra: Vec::new(),
        };
        let question = Attributes {
            verb: "create",
            group: GROUP,
            resource: REQUESTS,
            subresource,
            ..Attributes::default()
        };
        self.server.decide(&requester, &question).allowed
    }

    async fn execute(&self, object: &Value, action: Action, now: Timestamp) -> Result<(), ApiError> {
        match action {
            Action::Nothing => Ok(()),
            Action::Delete => {
                let call = self.call(object, View::Object);
                self.server.delete(&call, &DeleteOptions::default()).await.map(drop)
            }
            Action::Approve(message) => {
                let approved = condition("Approved", "AutoApproved", &message, now);
                self.change(object, View::Approval, with_condition(object, approved)).await
            }
            Action::Sign(wanted) => match issue::issue(&self.pki, &wanted, now) {
                Ok(pem) => {
                    let status = json!({"certificate": STANDARD.encode(pem)});
                    self.change(object, View::Status, status).await
                }
                Err(why) => self.fail(object, "SigningError", &why, now).await,
            },
            Action::Fail(why) => self.fail(object, "SignerValidationFailure", &why, now).await,
        }
    }

    async fn fail(&self, object: &Value, reason: &str, why: &str, now: Timestamp) -> Result<(), ApiError> {
        let failed = condition("Failed", reason, why, now);
        self.change(object, View::Status, with_condition(object, failed)).await
    }

    /// Changes the status of exactly the object that was decided about.
    async fn change(&self, object: &Value, view: View, status: Value) -> Result<(), ApiError> {
        let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        let patch = Change::Merge(json!({"metadata": metadata, "status": status}));
        self.server.change(&self.call(object, view), &patch, &Strictness::default()).await.map(drop)
    }

    fn call<'a>(&'a self, object: &'a Value, view: View) -> WriteCall<'a> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        WriteCall::internal(&self.kind, "", name, view, &self.user)
    }
}

fn condition(type_: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let now = seconds(now);
    json!({
        "type": type_, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": now,
    })
}

/// A status with one condition more.
fn with_condition(object: &Value, condition: Value) -> Value {
    let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.push(condition);
    json!({ "conditions": conditions })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Method, Request};
    use http_body_util::BodyExt as _;
    use sampan_store::{EmbeddedOptions, EmbeddedStore};

    use super::request::testing::asked;
    use super::*;
    use crate::respond;
    use crate::server::ServerConfig;

    struct World {
        server: Arc<ApiServer>,
        pki: Arc<Pki>,
        _directory: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let store = EmbeddedStore::open(&directory.path().join("store"), EmbeddedOptions::default());
            let pki = Arc::new(Pki::open(&directory.path().join("pki")).expect("keys"));
            let config = ServerConfig {
                service_cidr: "10.43.0.0/24".to_owned(),
                advertise: ([10, 42, 0, 1].into(), 6443),
                cluster_domain: "cluster.local".to_owned(),
                build: "test".to_owned(),
            };
            let server = ApiServer::start(store.expect("a store"), config, &pki).await.expect("starts");
            Self { server, pki, _directory: directory }
        }

        async fn send(&self, user: &User, method: Method, path: &str, object: &Value) -> (u16, Value) {
            let content_type = match method {
                Method::PATCH => "application/merge-patch+json",
                _ => "application/json",
            };
            let request = Request::builder()
                .method(method)
                .uri(format!("/apis/certificates.k8s.io/v1/{REQUESTS}{path}"))
                .header("content-type", content_type)
                .body(respond::full(object.to_string()))
                .expect("a request");
            let response = self.server.clone().handle(request, Some(user.clone())).await;
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            (code, serde_json::from_slice(&body).unwrap_or_default())
        }

        /// Waits until the object is as wanted.
        async fn when(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
            let requests = self.server.cache.resource(&format!("{REQUESTS}.{GROUP}"));
            let mut changes = requests.subscribe();
            let waiting = async {
                loop {
                    let item = requests.get(&format!("/{REQUESTS}.{GROUP}/{name}"));
                    let object: Value =
                        item.and_then(|item| serde_json::from_slice(&item.bytes).ok()).unwrap_or_default();
                    if wanted(&object) {
                        return object;
                    }
                    changes.changed().await.expect("the cache lives");
                }
            };
            tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time")
        }
    }

    fn csr(name: &str, signer: &str, common_name: &str, organization: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "spec": {
                "signerName": signer, "request": asked(common_name, organization, &[]),
                "usages": ["digital signature", "client auth"], "username": "somebody else",
            },
        })
    }

    #[tokio::test]
    async fn a_machine_becomes_a_node() {
        let world = World::new().await;
        let serving = tokio::spawn(serve_certificates(world.server.clone(), world.pki.clone()));
        let groups = ["system:bootstrappers", "system:bootstrappers:sampan:default-node-token"];
        let machine = User::known("system:bootstrap:abcdef", &groups);
        let asked = csr("n", request::KUBELET_CLIENT, "system:node:n", "system:nodes");
        let (code, made) = world.send(&machine, Method::POST, "", &asked).await;
        assert_eq!((code, &made["spec"]["username"]), (201, &json!("system:bootstrap:abcdef")), "{made}");
        let done = world.when("n", |object| object["status"]["certificate"].is_string()).await;
        assert_eq!(done["status"]["conditions"][0]["reason"], "AutoApproved", "{done}");
        let pem = STANDARD.decode(done["status"]["certificate"].as_str().expect("text")).expect("base64");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
        let node = User::from_certificate(&pem.contents).expect("a user");
        assert_eq!(crate::admission::node_of(&node), Some("n"));
        // The node renews for itself, and for nobody else.
        let (code, _) = world
            .send(
                &node,
                Method::POST,
                "",
                &csr("again", request::KUBELET_CLIENT, "system:node:n", "system:nodes"),
            )
            .await;
        assert_eq!(code, 201);
        world.when("again", |object| object["status"]["certificate"].is_string()).await;
        let (code, refused) = world
            .send(
                &node,
                Method::POST,
                "",
                &csr("m", request::KUBELET_CLIENT, "system:node:m", "system:nodes"),
            )
            .await;
        assert_eq!(code, 403, "{refused}");
        serving.abort();
    }

    #[tokio::test]
    async fn people_are_approved_by_who_may() {
        let world = World::new().await;
        let serving = tokio::spawn(serve_certificates(world.server.clone(), world.pki.clone()));
        let admin = User::known("admin", &["system:masters"]);
        let (code, refused) =
            world.send(&admin, Method::POST, "", &csr("m", request::CLIENT, "eve", "system:masters")).await;
        assert_eq!(code, 403, "{refused}");
        let (code, _) =
            world.send(&admin, Method::POST, "", &csr("ann", request::CLIENT, "ann", "dev")).await;
        assert_eq!(code, 201);
        let approval =
            json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}});
        // Not by an account that may approve for another signer only.
        let (code, refused) = world.send(&account(), Method::PATCH, "/ann/approval", &approval).await;
        assert_eq!(code, 403, "{refused}");
        let (code, approved) = world.send(&admin, Method::PATCH, "/ann/approval", &approval).await;
        assert_eq!(code, 200, "{approved}");
        world.when("ann", |object| object["status"]["certificate"].is_string()).await;
        // What a signer does not give fails, and says why.
        let (code, _) =
            world.send(&admin, Method::POST, "", &csr("odd", request::KUBELET_SERVING, "ann", "dev")).await;
        assert_eq!(code, 201);
        let (code, _) = world.send(&admin, Method::PATCH, "/odd/approval", &approval).await;
        assert_eq!(code, 200);
        let failed = |object: &Value| object["status"]["conditions"][1]["type"] == "Failed";
        let failed = world.when("odd", failed).await;
        assert_eq!(failed["status"]["conditions"][1]["reason"], "SignerValidationFailure");
        serving.abort();
    }
}
