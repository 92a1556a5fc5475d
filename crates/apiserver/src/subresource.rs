//! Subresources that are actions: binding, eviction, tokens, and what a node answers.

use std::sync::Arc;

use http::{Request, StatusCode};
use sampan_api::decode::Strictness;
use sampan_api::field::{Errors, Path};
use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use crate::admission::{Operation, act, copy_topology_labels, node_of};
use crate::auth::User;
use crate::auth::tokens::{Claims, MAX_SECONDS, MIN_SECONDS};
use crate::books::seconds;
use crate::connect::{self, Connect};
use crate::delete::DeleteOptions;
use crate::error::ApiError;
use crate::request::{Query, RequestInfo, ResourcePath};
use crate::respond::{self, ApiBody, ApiResponse};
use crate::server::{ApiServer, content_type, read_body, read_document};
use crate::view::View;
use crate::write::{Replaced, WriteCall, parse};

/// How often a binding is tried again after the pod's status changed meanwhile.
const MAX_CONFLICTS: usize = 16;

/// Stands for the types of options, which are in no published document.
const OPTIONS_TYPE: &str = "io.k8s.api.core.v1.PodOptions";

/// Type of the document an action takes.
fn body_type(subresource: Subresource) -> &'static str {
    match subresource {
        Subresource::Eviction => "io.k8s.api.policy.v1.Eviction",
        Subresource::Token => "io.k8s.api.authentication.v1.TokenRequest",
        _ => "io.k8s.api.core.v1.Binding",
    }
}

impl ApiServer {
    #[allow(clippy::too_many_arguments)] // One call site; bundling them would only rename the list.
    pub(crate) async fn subresource(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        path: &ResourcePath,
        kind: &Arc<Kind>,
        subresource: Subresource,
        user: &User,
    ) -> Result<ApiResponse, ApiError> {
        if matches!(
            subresource,
            Subresource::Log
                | Subresource::Exec
                | Subresource::Attach
                | Subresource::PortForward
                | Subresource::Proxy
        ) {
            let mut connect = Connect::of_request(request.uri().query(), &info.query, &path.rest);
            if subresource != Subresource::Log {
                connect = self.connect(connect, info, path, kind, subresource, user).await?;
            }
            return self.proxy(request, info, path, kind, subresource, &connect).await;
        }
        if info.verb != "create" {
            return Err(ApiError::method_not_allowed());
        }
        let (parts, body) = request.into_parts();
        let body = read_body(body).await?;
        let mut strictness = Strictness::default();
        let mut document = read_document(
            &content_type(&parts.headers),
            Some(body_type(subresource)),
            &body,
            &mut strictness,
        )?;
        let mut call =
            WriteCall::new(kind, &path.namespace, &path.name, View::Object, user, &info.query, "")?;
        let schema = body_type(subresource).into();
        call.conform(&schema, &mut document, &mut strictness)?;
        let document = act(self, &call, Operation::Create, subresource, &schema, document).await?;
        // Webhooks have had their word about the action; what follows from it is the server's own doing.
        call.intercepted = false;
        match subresource {
            Subresource::Binding => self.bind(&call, &document).await,
            Subresource::Eviction => self.evict(&call, &document).await,
            Subresource::Token => self.token(&call, document).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// Asks admission about a stream; how it is to be opened.
    async fn connect(
        &self,
        connect: Connect,
        info: &RequestInfo,
        path: &ResourcePath,
        kind: &Arc<Kind>,
        subresource: Subresource,
        user: &User,
    ) -> Result<Connect, ApiError> {
        let mut call = WriteCall::internal(kind, &path.namespace, &path.name, View::Object, user);
        call.intercepted = true;
        let asked = connect::options(&info.query, &path.rest, kind, subresource);
        // No type of the table: what fits is seen when the options are read.
        let schema = OPTIONS_TYPE.into();
        let wanted = act(self, &call, Operation::Connect, subresource, &schema, asked.clone()).await?;
        if wanted == asked {
            return Ok(connect);
        }
        let what = asked["kind"].as_str().unwrap_or_default();
        connect.changed(subresource, &wanted).map_err(|why| {
            ApiError::internal(format!("a webhook has made something of the object that is no {what}: {why}"))
        })
    }

    /// The older address of a binding: the pod is named in the document.
    pub(crate) async fn bind_named(
        &self,
        call: &WriteCall<'_>,
        binding: &Value,
    ) -> Result<ApiResponse, ApiError> {
        let pods = self.registry().find("", "v1", "pods").cloned().ok_or_else(ApiError::no_such_path)?;
        let name = binding["metadata"]["name"].as_str().unwrap_or_default();
        let mut bind = WriteCall::internal(&pods, call.namespace, name, View::Object, call.user);
        bind.dry_run = call.dry_run;
        self.bind(&bind, binding).await
    }

    /// A pod gets its node, once.
    async fn bind(&self, call: &WriteCall<'_>, binding: &Value) -> Result<ApiResponse, ApiError> {
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request("target.name of a binding is required"));
        }
        if binding["target"]["kind"].as_str().is_some_and(|kind| !kind.is_empty() && kind != "Node") {
            return Err(ApiError::bad_request("target.kind of a binding must be Node"));
        }
        for _ in 0..MAX_CONFLICTS {
            let current = self.current(call).await?;
            let old = parse(&current)?;
            let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
            if !uid.is_empty() && old["metadata"]["uid"] != uid {
                return Err(ApiError::conflict(
                    call.kind,
                    call.name,
                    "the pod is another one of the same name",
                ));
            }
            if let Some(bound) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                let why = format!("pod {} is already assigned to node \"{bound}\"", call.name);
                return Err(ApiError::conflict(call.kind, call.name, &why));
            }
            if !old["metadata"]["deletionTimestamp"].is_null() {
                return Err(ApiError::conflict(
                    call.kind,
                    call.name,
                    &format!("pod {} is being deleted, cannot be assigned to a host", call.name),
                ));
            }
            let mut new = old.clone();
            new["spec"]["nodeName"] = node.into();
            set_scheduled(&mut new, &seconds(call.now));
            for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
                new["metadata"]["annotations"][key] = value.clone();
            }
            copy_topology_labels(self, node, &mut new);
            let write = WriteCall::internal(call.kind, call.namespace, call.name, View::Binding, call.user);
            let stored = call.dry_run
                || matches!(self.replace(&write, &current, old, new, None).await?, Replaced::Stored(_));
            if stored {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                return Ok(respond::json_value(StatusCode::CREATED, &status));
            }
        }
        Err(ApiError::modified(call.kind, call.name))
    }

    /// A polite delete. Disruption budgets join here.
    async fn evict(&self, call: &WriteCall<'_>, eviction: &Value) -> Result<ApiResponse, ApiError> {
        let options = DeleteOptions::parse(&eviction["deleteOptions"], &Query::default())?;
        self.delete(call, &options).await?;
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json_value(StatusCode::CREATED, &status))
    }

    /// `authentication.k8s.io/v1.TokenRequest` for a service account.
    async fn token(&self, call: &WriteCall<'_>, mut request: Value) -> Result<ApiResponse, ApiError> {
        let account = parse(&self.current(call).await?)?;
        if request["spec"].is_null() {
            request["spec"] = json!({});
        }
        let lifetime = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        if lifetime < MIN_SECONDS {
            let mut errors = Errors::new();
            let field = Path::new("spec").child("expirationSeconds");
            errors.invalid(&field, lifetime, "may not specify a duration less than 10 minutes");
            return Err(ApiError::invalid_of("authentication.k8s.io", "TokenRequest", "", &errors));
        }
        let lifetime = lifetime.min(MAX_SECONDS);
        let mut audiences: Vec<String> = request["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if audiences.is_empty() {
            audiences.push(self.tokens.audience().to_owned());
        }
        let bound = &request["spec"]["boundObjectRef"];
        let bound_to = match (bound["kind"].as_str(), bound["name"].as_str()) {
            (Some(kind), Some(name)) => {
                Some((kind.to_owned(), name.to_owned(), self.bound_uid(call, bound, &account).await?))
            }
            _ => None,
        };
        if let Some(node) = node_of(call.user)
            && bound_to.as_ref().is_none_or(|(kind, _, _)| kind != "Pod")
        {
            let why = format!("node \"{node}\" can only request tokens bound to its own pods");
            return Err(ApiError::forbidden("", "serviceaccounts", call.name, why));
        }
        let now = call.now.as_second();
        let claims = Claims {
            namespace: call.namespace,
            service_account: call.name,
            service_account_uid: account["metadata"]["uid"].as_str().unwrap_or_default(),
            bound_to: bound_to.as_ref().map(|(kind, name, uid)| (kind.as_str(), name.as_str(), uid.as_str())),
            audiences: &audiences,
            issued_at: now,
            expires_at: now + lifetime,
        };
        let token = self.tokens.sign(&claims).map_err(ApiError::internal)?;
        let expires = jiff::Timestamp::from_second(now + lifetime).unwrap_or(call.now);
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"] = json!({"name": call.name, "namespace": call.namespace});
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = lifetime.into();
        request["status"] = json!({"token": token, "expirationTimestamp": seconds(expires)});
        Ok(respond::json_value(StatusCode::CREATED, &request))
    }

    /// The uid of the object a token is to die with; only pods of the account (and, for a node, on it) will do.
    async fn bound_uid(
        &self,
        call: &WriteCall<'_>,
        bound: &Value,
        account: &Value,
    ) -> Result<String, ApiError> {
        let (kind, name) =
            (bound["kind"].as_str().unwrap_or_default(), bound["name"].as_str().unwrap_or_default());
        let resource = match kind {
            "Pod" => "pods",
            "Secret" => "secrets",
            other => {
                return Err(ApiError::bad_request(format!("cannot bind a token to objects of kind {other}")));
            }
        };
        let target = self.registry().find("", "v1", resource).ok_or_else(ApiError::no_such_path)?.clone();
        let kv = self.store.get(&target.store_key(call.namespace, name)).await?;
        let object = parse(&kv.ok_or_else(|| ApiError::not_found(&target, name))?)?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if bound["uid"].as_str().is_some_and(|wanted| !wanted.is_empty() && wanted != uid) {
            return Err(ApiError::conflict(
                &target,
                name,
                "the UID in the bound object reference does not match",
            ));
        }
        if kind == "Pod" {
            if object["spec"]["serviceAccountName"] != account["metadata"]["name"] {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    call.name
                )));
            }
            if let Some(node) = node_of(call.user).filter(|node| object["spec"]["nodeName"] != *node) {
                let why = format!("pod {name} does not run on node \"{node}\"");
                return Err(ApiError::forbidden("", "serviceaccounts", call.name, why));
            }
        }
        Ok(uid)
    }
}

/// Sets the condition `PodScheduled`.
fn set_scheduled(pod: &mut Value, now: &str) {
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(condition);
    }
}
