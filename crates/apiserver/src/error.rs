//! What a request can come to besides success: one error type, one place where it becomes an HTTP answer.
//!
//! [`ApiError`] carries what a client needs to know (`Status` object: reason, message, details). Causes for the operator
//! are logged where they arise and not shown to clients.

use http::StatusCode;
use sampan_api::field::Errors;
use sampan_api::registry::Kind;
use sampan_store::StoreError;
use serde_json::{Map, Value, json};

/// A refused request, as a `metav1.Status` describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: StatusCode,
    /// `metav1.StatusReason`; empty when there is none.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// `metav1.StatusDetails`.
    pub details: Option<Value>,
    /// Where a list that cannot go on as it began can go on all the same: `metav1.ListMeta.continue`.
    pub continue_at: Option<Box<str>>,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// `metav1.StatusReason`s that others may give for a refusal in our name.
const REASONS: &[&str] = &[
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
];

/// The reason of this name; none when the API does not know it.
pub(crate) fn known_reason(name: &str) -> &'static str {
    REASONS.iter().copied().find(|reason| *reason == name).unwrap_or_default()
}

fn details(kind: &Kind, name: &str) -> Value {
    json!({"name": name, "group": kind.group, "kind": kind.plural})
}

impl ApiError {
    /// An error without details.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, continue_at: None }
    }

    /// The request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// No such object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let mut error =
            Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{} \"{name}\" not found", kind.resource()));
        error.details = Some(details(kind, name));
        error
    }

    /// No such path.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// The path does not take this method.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// The name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let mut error = Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", kind.resource()),
        );
        error.details = Some(details(kind, name));
        error
    }

    /// The object is not as the writer thought.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let mut error = Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource()),
        );
        error.details = Some(details(kind, name));
        error
    }

    /// Optimistic concurrency: somebody else was faster.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Rules of the kind or of metadata are broken.
    pub fn invalid(kind: &Kind, name: &str, errors: &Errors) -> Self {
        Self::invalid_of(&kind.group, &kind.kind, name, errors)
    }

    /// [`ApiError::invalid`] for documents that are no objects: options of a request, what a subresource takes.
    pub fn invalid_of(group: &str, kind: &str, name: &str, errors: &Errors) -> Self {
        let group_kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> = errors
            .0
            .iter()
            .map(|e| json!({"reason": e.kind.cause(), "message": e.message(), "field": e.field}))
            .collect();
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{group_kind} \"{name}\" is invalid: {errors}"),
        );
        error.details = Some(json!({"name": name, "group": group, "kind": kind, "causes": causes}));
        error
    }

    /// Known who, not allowed.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let full = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        let subject = if name.is_empty() { full } else { format!("{full} \"{name}\"") };
        let mut error =
            Self::new(StatusCode::FORBIDDEN, "Forbidden", format!("{subject} is forbidden: {why}"));
        error.details = Some(json!({"name": name, "group": group, "kind": resource}));
        error
    }

    /// Not known who.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// The revision asked for is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A list page's snapshot is gone; `way_on` is the token of a list that shows the present.
    pub fn continue_expired(way_on: String) -> Self {
        let mut error = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
        );
        error.continue_at = Some(way_on.into());
        error
    }

    /// The body is larger than the server takes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// Too much work at once.
    pub fn too_many_requests() -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "Too many requests, please try again later.",
        );
        error.details = Some(json!({"retryAfterSeconds": 1}));
        error
    }

    /// The server failed; the cause has been logged.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        tracing::error!(error = message, "internal error");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
    }

    /// A part the request needs does not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = Map::new();
        status.insert("kind".into(), "Status".into());
        status.insert("apiVersion".into(), "v1".into());
        let way_on = self.continue_at.as_ref();
        status.insert("metadata".into(), way_on.map_or(json!({}), |token| json!({"continue": token})));
        status.insert("status".into(), "Failure".into());
        status.insert("message".into(), self.message.clone().into());
        if !self.reason.is_empty() {
            status.insert("reason".into(), self.reason.into());
        }
        if let Some(details) = &self.details {
            status.insert("details".into(), details.clone());
        }
        status.insert("code".into(), self.code.as_u16().into());
        Value::Object(status)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { .. } => Self::expired(format!("The resourceVersion is too old: {error}")),
            StoreError::Future { requested, current } => {
                let mut out = Self::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "Timeout",
                    format!("Too large resource version: {}, current: {}", requested.0, current.0),
                );
                out.details = Some(json!({
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                    "retryAfterSeconds": 1,
                }));
                out
            }
            StoreError::TooLarge { limit, .. } => Self::too_large(limit),
            StoreError::Unavailable(why) => {
                tracing::error!(%why, "store unavailable");
                Self::unavailable(format!("the store does not take writes: {why}"))
            }
        }
    }
}
