//! What a request for a certificate asks for, and what each signer gives.
//!
//! Source of the signers' rules: the Kubernetes documentation on certificate signing requests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer as _;

/// Client certificates, for whoever an approver lets have one.
pub(crate) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Client certificates of nodes.
pub(crate) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Server certificates of nodes.
pub(crate) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Anything an approver approves; nobody should rely on what such certificates are good for.
pub(crate) const LEGACY: &str = "kubernetes.io/legacy-unknown";

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Longest request in bytes of PEM; real ones have about one kilobyte.
const MAX_REQUEST: usize = 64 * 1024;

/// A request whose signature has been verified: who asks has the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
    pub(crate) names: AlternativeNames,
    /// The subject, DER.
    pub(crate) subject: Vec<u8>,
    /// The public key with its algorithm, DER.
    pub(crate) public_key: Vec<u8>,
    /// The content of the extension with the alternative names, DER; empty: there is none.
    pub(crate) alternative_names: Vec<u8>,
}

/// How many alternative names of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AlternativeNames {
    pub(crate) dns: usize,
    pub(crate) addresses: usize,
    pub(crate) others: usize,
}

impl Request {
    /// Reads `spec.request`: PEM in base64.
    pub(crate) fn parse(field: &Value) -> Result<Self, String> {
        let text = field.as_str().unwrap_or_default();
        if text.len() > MAX_REQUEST / 3 * 4 {
            return Err("the request is too long".to_owned());
        }
        let pem = STANDARD.decode(text).map_err(|_| "the request is not in base64".to_owned())?;
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(&pem).map_err(|_| "the request is not PEM".to_owned())?;
        if pem.label != "CERTIFICATE REQUEST" && pem.label != "NEW CERTIFICATE REQUEST" {
            return Err(format!("the PEM block is a {}, not a CERTIFICATE REQUEST", pem.label));
        }
        let parsed = X509CertificationRequest::from_der(&pem.contents);
        let (_, request) = parsed.map_err(|_| "the request cannot be read".to_owned())?;
        request.verify_signature().map_err(|_| "the request is not signed by its key".to_owned())?;
        let info = &request.certification_request_info;
        let texts = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value
                .as_str()
                .map(str::to_owned)
                .map_err(|_| "the subject holds something that is no text".to_owned())
        };
        let common_names: Result<Vec<_>, _> = info.subject.iter_common_name().map(texts).collect();
        let organizations: Result<Vec<_>, _> = info.subject.iter_organization().map(texts).collect();
        let mut out = Self {
            common_name: common_names?.into_iter().next().unwrap_or_default(),
            organizations: organizations?,
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            if let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() {
                asked.extensions.iter().try_for_each(|extension| out.add(extension))?;
            }
        }
        Ok(out)
    }

    /// Only alternative names are taken from the extensions that are asked for; what a certificate is good for is said by
    /// `spec.usages`.
    fn add(&mut self, extension: &X509Extension<'_>) -> Result<(), String> {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                if !self.alternative_names.is_empty() {
                    return Err("the request asks for alternative names twice".to_owned());
                }
                self.alternative_names = extension.value.to_vec();
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(_) => self.names.dns += 1,
                        GeneralName::IPAddress(_) => self.names.addresses += 1,
                        _ => self.names.others += 1,
                    }
                }
                Ok(())
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                Err("the request asks for the certificate of an authority".to_owned())
            }
            ParsedExtension::ParseError { .. } => {
                Err("an extension of the request cannot be read".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether a signer gives this, with these usages. The error is what upstream's signer says.
    pub(crate) fn fits(&self, signer: &str, usages: &[&str]) -> Result<(), String> {
        match signer {
            CLIENT => check_usages(usages, &["client auth"], &["digital signature", "key encipherment"]),
            KUBELET_CLIENT => {
                self.is_of_node()?;
                if self.names != AlternativeNames::default() {
                    return Err("subjectAltNames are not allowed for node client certificates".to_owned());
                }
                check_usages(usages, &["client auth", "digital signature"], &["key encipherment"])
            }
            KUBELET_SERVING => {
                self.is_of_node()?;
                if self.names.dns + self.names.addresses == 0 {
                    return Err("at least one DNS or IP subjectAltName is required".to_owned());
                }
                if self.names.others > 0 {
                    return Err("only DNS and IP subjectAltNames are allowed".to_owned());
                }
                check_usages(usages, &["server auth", "digital signature"], &["key encipherment"])
            }
            LEGACY => Ok(()),
            other => Err(format!("there is no signer {other}")),
        }
    }

    fn is_of_node(&self) -> Result<(), String> {
        if self.organizations != [NODES] {
            return Err(format!("subject organization is not {NODES}"));
        }
        if self.common_name.strip_prefix(NODE_PREFIX).is_none_or(str::is_empty) {
            return Err(format!("subject common name does not begin with {NODE_PREFIX}"));
        }
        Ok(())
    }
}

fn check_usages(usages: &[&str], required: &[&str], allowed: &[&str]) -> Result<(), String> {
    if let Some(missing) = required.iter().find(|usage| !usages.contains(usage)) {
        return Err(format!("usages did not include {missing:?}"));
    }
    match usages.iter().find(|usage| !required.contains(usage) && !allowed.contains(usage)) {
        Some(strange) => Err(format!("usages included {strange:?}, which the signer does not give")),
        None => Ok(()),
    }
}

/// Texts of a list.
pub(crate) fn usages(spec: &Value) -> Vec<&str> {
    spec["usages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
pub(crate) mod testing {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    use serde_json::{Value, json};

    /// `spec.request` with this subject and these names.
    pub(crate) fn asked(common_name: &str, organization: &str, names: &[&str]) -> Value {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        if !organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        let request = params.serialize_request(&KeyPair::generate().expect("a key")).expect("a request");
        json!(STANDARD.encode(request.pem().expect("PEM")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::asked;
    use super::*;

    #[test]
    fn requests_are_read() {
        let request = Request::parse(&asked("system:node:n", NODES, &["n.example.com", "10.0.0.1"]));
        let request = request.expect("readable");
        assert_eq!(
            (request.common_name.as_str(), &*request.organizations),
            ("system:node:n", &[NODES.to_owned()][..])
        );
        assert_eq!(request.names, AlternativeNames { dns: 1, addresses: 1, others: 0 });
        let mut forged = STANDARD.decode(asked("a", "", &[]).as_str().expect("text")).expect("base64");
        let middle = forged.len() / 2;
        forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
        for bad in [json!(null), json!("%"), json!(STANDARD.encode("x")), json!(STANDARD.encode(forged))] {
            assert!(Request::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signers() {
        let node = |names: &[&str]| Request::parse(&asked("system:node:n", NODES, names)).expect("readable");
        let ann = Request::parse(&asked("ann", "dev", &[])).expect("readable");
        let (client, server) = (["digital signature", "client auth"], ["digital signature", "server auth"]);
        let rows = [
            ("person", CLIENT, ann.clone(), &client[..], true),
            ("person as server", CLIENT, ann.clone(), &server[..], false),
            ("person, usage only", CLIENT, ann.clone(), &["client auth"][..], true),
            ("node", KUBELET_CLIENT, node(&[]), &client[..], true),
            ("node without signature", KUBELET_CLIENT, node(&[]), &["client auth"][..], false),
            ("node with names", KUBELET_CLIENT, node(&["n"]), &client[..], false),
            ("person as node", KUBELET_CLIENT, ann.clone(), &client[..], false),
            ("serving", KUBELET_SERVING, node(&["n"]), &server[..], true),
            ("serving nothing", KUBELET_SERVING, node(&[]), &server[..], false),
            ("serving as client", KUBELET_SERVING, node(&["n"]), &client[..], false),
            ("anything", LEGACY, ann.clone(), &server[..], true),
            ("elsewhere", "example.com/signer", ann, &client[..], false),
        ];
        for (what, signer, request, usages, expected) in rows {
            assert_eq!(request.fits(signer, usages).is_ok(), expected, "{what}");
        }
    }
}
