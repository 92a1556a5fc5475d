//! Certificates: who may approve and sign requests for a signer, and what nobody may ask for.
//!
//! Upstream: CertificateApproval, CertificateSigning, CertificateSubjectRestriction.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

use super::{Admission, Operation};
use crate::auth::MASTERS;
use crate::auth::rbac::Attributes;
use crate::error::ApiError;
use crate::view::View;

const GROUP: &str = "certificates.k8s.io";
/// The signer whose certificates name users of this server.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    if !admission.is(GROUP, "certificatesigningrequests") {
        return Ok(());
    }
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    match (admission.operation, admission.view.subresource()) {
        (Operation::Create, _) if admission.view == View::Object => subject(admission, object, signer),
        (Operation::Update, "approval") => may(admission, object, "approve", signer),
        (Operation::Update, "status") if signs(admission.old, object) => {
            may(admission, object, "sign", signer)
        }
        _ => Ok(()),
    }
}

/// Whether an update of the status brings a certificate or says that there will be none.
fn signs(old: Option<&Value>, new: &Value) -> bool {
    let certificate = |object: &Value| object["status"]["certificate"].clone();
    let failed = |object: &Value| {
        let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Failed")
    };
    old.is_none_or(|old| certificate(old) != certificate(new) || failed(old) != failed(new))
}

/// The verb on `signers`, by the signer's whole name or by its domain with `/*`.
fn may(admission: &Admission<'_>, object: &Value, verb: &str, signer: &str) -> Result<(), ApiError> {
    let names = names_of(signer);
    let allowed = names.iter().any(|name| {
        let question = Attributes { verb, group: GROUP, resource: "signers", name, ..Attributes::default() };
        admission.server.rbac.allows(admission.user, &question)
    });
    if allowed {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName \"{signer}\"");
    Err(admission.forbidden(object, why))
}

fn names_of(signer: &str) -> Vec<String> {
    let domain = signer.split('/').next().unwrap_or_default();
    vec![signer.to_owned(), format!("{domain}/*")]
}

/// Nobody becomes an administrator by a certificate.
fn subject(admission: &Admission<'_>, object: &Value, signer: &str) -> Result<(), ApiError> {
    if signer != CLIENT_SIGNER {
        return Ok(());
    }
    let asked = object["spec"]["request"].as_str().unwrap_or_default();
    let Some(organizations) = organizations(asked) else {
        return Err(admission.forbidden(object, "unable to parse csr"));
    };
    if organizations.iter().any(|organization| organization == MASTERS) {
        let why = format!("use of {signer} signer with {MASTERS} group is not allowed");
        return Err(admission.forbidden(object, why));
    }
    Ok(())
}

/// Organizations of the subject of a request (base64 of PEM, as in `spec.request`), which become groups of the user.
fn organizations(request: &str) -> Option<Vec<String>> {
    let pem = STANDARD.decode(request).ok()?;
    let (_, pem) = parse_x509_pem(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    Some(subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use serde_json::json;

    use super::*;

    fn request(organization: &str) -> String {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let request = params.serialize_request(&key).expect("a request");
        STANDARD.encode(request.pem().expect("PEM"))
    }

    #[test]
    fn organizations_are_read() {
        assert_eq!(organizations(&request("system:masters")), Some(vec!["system:masters".to_owned()]));
        assert_eq!(organizations(&request("dev")), Some(vec!["dev".to_owned()]));
        for junk in ["", "!", &STANDARD.encode("no PEM")] {
            assert_eq!(organizations(junk), None, "{junk}");
        }
    }

    #[test]
    fn signers_are_named_whole_or_by_domain() {
        assert_eq!(names_of("example.com/a"), ["example.com/a", "example.com/*"]);
    }

    #[test]
    fn what_needs_the_right_to_sign() {
        let status = |status: Value| json!({"status": status});
        let approved = status(json!({"conditions": [{"type": "Approved"}]}));
        let rows = [
            (approved.clone(), approved.clone(), false),
            (approved.clone(), status(json!({"certificate": "x"})), true),
            (approved.clone(), status(json!({"conditions": [{"type": "Failed"}]})), true),
            (status(json!({})), approved, false),
        ];
        for (old, new, expected) in rows {
            assert_eq!(signs(Some(&old), &new), expected, "{old} {new}");
        }
    }
}
