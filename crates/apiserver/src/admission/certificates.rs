//! Certificate signing requests: who approves or signs must be allowed to for that signer (upstream's plug-ins
//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction). What a decision and a status may say is the
//! business of the kind's row.

use serde_json::Value;

use super::Admission;
use crate::auth::MASTERS;
use crate::auth::rbac::Attributes;
use crate::certificates::request::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, Request};
use crate::certificates::{GROUP, REQUESTS};
use crate::error::ApiError;
use crate::view::View;

/// Refuses what the user may not do with the request's signer.
pub(super) fn signer(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    if !admission.is(GROUP, REQUESTS) {
        return Ok(());
    }
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    match (admission.view, admission.old) {
        (View::Object, None) => subject(admission, object, signer),
        (View::Approval, Some(_)) => may(admission, object, "approve", signer),
        (View::Status, Some(old)) => {
            let signs = old["status"]["certificate"] != object["status"]["certificate"]
                || old["status"]["conditions"] != object["status"]["conditions"];
            if signs { may(admission, object, "sign", signer) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// Nobody becomes a member of `system:masters` by a request, and a node asks for itself only.
fn subject(admission: &Admission<'_>, object: &Value, signer: &str) -> Result<(), ApiError> {
    let node = super::node_of(admission.user);
    let asks_as_node = node.is_some() && [KUBELET_CLIENT, KUBELET_SERVING].contains(&signer);
    if signer != CLIENT && !asks_as_node {
        return Ok(());
    }
    // What cannot be read is the business of the kind's own rules.
    let Ok(request) = Request::parse(&object["spec"]["request"]) else { return Ok(()) };
    if signer == CLIENT && request.organizations.iter().any(|group| group == MASTERS) {
        let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
        return Err(admission.forbidden(object, why));
    }
    if asks_as_node && request.common_name != admission.user.name {
        let name = &admission.user.name;
        return Err(admission.forbidden(object, format!("can only create a node CSR with CN={name}")));
    }
    Ok(())
}

fn may(admission: &Admission<'_>, object: &Value, verb: &str, signer: &str) -> Result<(), ApiError> {
    let whole_domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*")).unwrap_or_default();
    let allowed = [signer, whole_domain.as_str()].iter().any(|name| {
        let question = Attributes { verb, group: GROUP, resource: "signers", name, ..Attributes::default() };
        admission.server.decide(admission.user, &question).allowed
    });
    if allowed {
        return Ok(());
    }
    Err(admission
        .forbidden(object, format!("user not permitted to {verb} requests with signerName \"{signer}\"")))
}
