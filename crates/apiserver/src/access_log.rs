//! A line in the log about a request that was answered: of failures of the server always, of the others when level `debug`
//! is asked for. Who must know everything that was asked for keeps an audit log instead.

use std::time::Duration;

use http::StatusCode;

use crate::audit::AUDIT_ID;
use crate::auth::User;
use crate::error::ApiError;
use crate::request::{RequestInfo, ResourcePath};
use crate::respond::ApiResponse;

/// The code a result becomes.
pub(crate) fn code(result: &Result<ApiResponse, ApiError>) -> StatusCode {
    match result {
        Ok(response) => response.status(),
        Err(error) => error.code,
    }
}

/// Writes the line.
pub(crate) fn tell(
    info: &RequestInfo,
    user: Option<&User>,
    result: &Result<ApiResponse, ApiError>,
    took: Duration,
) {
    let code = code(result);
    // Checks of health fail on purpose, and say so themselves.
    let failed = code.is_server_error() && info.resource.is_some();
    if !failed && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let none = ResourcePath::default();
    let path = info.resource.as_ref().unwrap_or(&none);
    let present = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let audit_id = result.as_ref().ok().and_then(|response| response.headers().get(AUDIT_ID)?.to_str().ok());
    let error = result.as_ref().err().map(|error| error.message.as_str());
    // The level of an event stands where the event does, hence twice the same.
    macro_rules! line {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                verb = info.verb,
                path = info.path,
                group = present(&path.group),
                resource = present(&path.resource),
                subresource = present(&path.subresource),
                namespace = present(&path.namespace),
                name = present(&path.name),
                user = user.map(|user| user.name.as_str()),
                code = code.as_u16(),
                duration_ms = took.as_secs_f64() * 1000.0,
                audit_id,
                error,
                $text
            )
        };
    }
    if failed {
        line!(warn, "the request failed");
    } else {
        line!(debug, "request");
    }
}
