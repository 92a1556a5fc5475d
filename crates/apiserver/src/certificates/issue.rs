//! Makes a certificate: X.509 in DER, written here.
//!
//! Subject, public key and alternative names are copied from the request byte for byte, as upstream's signer does. The
//! library that makes our other certificates cannot do that: it holds one value per attribute of a subject, so that a
//! user in two groups would lose one, and rebuilds the key from the signature's algorithm, which is wrong for a key of
//! another curve. What is left to write is a short list of fixed parts. Source: RFC 5280.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::plan::Wanted;
use crate::pki::Pki;

/// A clock that is somewhat behind must not make a fresh certificate invalid; upstream's value.
const BACKDATE: i64 = 300;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const BOOLEAN_TRUE: [u8; 3] = [0x01, 0x01, 0xff];

/// The last byte of object identifiers below 2.5.29.
const KEY_USAGE: u8 = 15;
const ALTERNATIVE_NAMES: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;

/// `ecdsa-with-SHA256`: the authority's key is a P-256 key.
const ECDSA_SHA256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// A usage's bit in the first byte of the key usage extension.
const KEY_USAGES: &[(&str, u8)] = &[
    ("signing", 0x80),
    ("digital signature", 0x80),
    ("content commitment", 0x40),
    ("key encipherment", 0x20),
    ("data encipherment", 0x10),
    ("key agreement", 0x08),
];

/// A usage's last byte of an object identifier below 1.3.6.1.5.5.7.3.
const EXTENDED_USAGES: &[(&str, u8)] = &[
    ("server auth", 1),
    ("client auth", 2),
    ("code signing", 3),
    ("email protection", 4),
    ("s/mime", 4),
    ("timestamping", 8),
    ("ocsp signing", 9),
];

/// Signs what is wanted; gives PEM. The error is for the requester.
pub(crate) fn issue(pki: &Pki, wanted: &Wanted, now: Timestamp) -> Result<String, String> {
    let authority = pki.authority()?;
    let not_before = now.as_second() - BACKDATE;
    // No certificate outlives its authority.
    let not_after = (not_before + wanted.life).min(authority.not_after);
    let algorithm = tlv(SEQUENCE, &[&tlv(OBJECT, &[&ECDSA_SHA256])]);
    let request = &wanted.request;
    let body = tlv(
        SEQUENCE,
        &[
            // Version 3.
            &tlv(0xa0, &[&tlv(INTEGER, &[&[2]])]),
            &serial_number()?,
            &algorithm,
            &authority.subject,
            &tlv(SEQUENCE, &[&time(not_before)?, &time(not_after)?]),
            &request.subject,
            &request.public_key,
            &tlv(0xa3, &[&extensions(wanted, &authority.key_id)?]),
        ],
    );
    let signature = pki.sign(&body)?;
    let certificate = tlv(SEQUENCE, &[&body, &algorithm, &tlv(BIT_STRING, &[&[0], &signature])]);
    Ok(pem(&certificate))
}

fn extensions(wanted: &Wanted, authority_key: &[u8]) -> Result<Vec<u8>, String> {
    let (mut bits, mut purposes) = (0, Vec::new());
    for usage in &wanted.usages {
        let bit = KEY_USAGES.iter().find(|(name, _)| name == usage).map(|(_, bit)| *bit);
        let purpose = EXTENDED_USAGES.iter().find(|(name, _)| name == usage).map(|(_, purpose)| *purpose);
        match (bit, purpose) {
            (Some(bit), _) => bits |= bit,
            (_, Some(purpose)) => {
                purposes.push(tlv(OBJECT, &[&[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, purpose]]));
            }
            // `cert sign` and `crl sign` among them: nobody becomes an authority here.
            (None, None) => return Err(format!("usage {usage:?} is not given")),
        }
    }
    let mut all = Vec::new();
    if bits != 0 {
        let unused = u8::try_from(bits.trailing_zeros()).unwrap_or(0);
        all.push(extension(KEY_USAGE, true, &tlv(BIT_STRING, &[&[unused, bits]])));
    }
    if !purposes.is_empty() {
        let purposes: Vec<&[u8]> = purposes.iter().map(Vec::as_slice).collect();
        all.push(extension(EXTENDED_KEY_USAGE, false, &tlv(SEQUENCE, &purposes)));
    }
    all.push(extension(BASIC_CONSTRAINTS, true, &tlv(SEQUENCE, &[])));
    if !authority_key.is_empty() {
        all.push(extension(AUTHORITY_KEY, false, &tlv(SEQUENCE, &[&tlv(0x80, &[authority_key])])));
    }
    if !wanted.request.alternative_names.is_empty() {
        all.push(extension(ALTERNATIVE_NAMES, false, &wanted.request.alternative_names));
    }
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    Ok(tlv(SEQUENCE, &all))
}

fn extension(number: u8, critical: bool, content: &[u8]) -> Vec<u8> {
    let mark: &[u8] = if critical { &BOOLEAN_TRUE } else { &[] };
    tlv(SEQUENCE, &[&tlv(OBJECT, &[&[0x55, 0x1d, number]]), mark, &tlv(OCTET_STRING, &[content])])
}

/// 126 random bits, positive and of one length.
fn serial_number() -> Result<Vec<u8>, String> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| "the kernel gives no random bytes".to_owned())?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(tlv(INTEGER, &[&serial]))
}

/// Two digits of the year until 2049, four from then on.
fn time(second: i64) -> Result<Vec<u8>, String> {
    let time = Timestamp::from_second(second).map_err(|e| e.to_string())?;
    let year = time.to_zoned(jiff::tz::TimeZone::UTC).year();
    let (tag, format) = if year < 2050 { (0x17, "%y%m%d%H%M%SZ") } else { (0x18, "%Y%m%d%H%M%SZ") };
    Ok(tlv(tag, &[time.strftime(format).to_string().as_bytes()]))
}

/// Tag, length, value.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
        out.push(0x80 | bytes.len() as u8);
        out.extend_from_slice(bytes);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, UnixTime};

    use super::super::request::Request;
    use super::super::request::testing::asked;
    use super::*;
    use crate::auth::User;

    fn wanted(usages: &[&str]) -> Wanted {
        let request = Request::parse(&asked("ann", "dev", &["ann.example.com"])).expect("readable");
        Wanted { request, usages: usages.iter().map(|usage| (*usage).to_owned()).collect(), life: 3600 }
    }

    #[test]
    fn what_is_issued_is_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let pki = Pki::open(directory.path()).expect("keys");
        let now = Timestamp::now();
        let issued = issue(&pki, &wanted(&["digital signature", "client auth"]), now).expect("issued");
        let der = CertificateDer::from_pem_slice(issued.as_bytes()).expect("PEM");
        let verifier = crate::pki::client_verifier(&[pki.ca_pem()]).expect("a verifier");
        verifier.verify_client_cert(&der, &[], UnixTime::now()).expect("accepted");
        let user = User::from_certificate(&der).expect("a user");
        assert_eq!((user.name.as_str(), user.groups[0].as_str()), ("ann", "dev"));
        let (rest, certificate) = x509_parser::parse_x509_certificate(&der).expect("X.509");
        assert!(rest.is_empty());
        let validity = certificate.validity();
        let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        assert_eq!((begin, end), (now.as_second() - BACKDATE, now.as_second() - BACKDATE + 3600));
        let usage = certificate.key_usage().expect("readable").expect("there").value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let names = certificate.subject_alternative_name().expect("readable").expect("there");
        assert_eq!(names.value.general_names.len(), 1);
        assert!(!certificate.is_ca());
        // The verifier asks for the right to be a client, which a server's certificate does not have.
        let server = issue(&pki, &wanted(&["digital signature", "server auth"]), now).expect("issued");
        let server = CertificateDer::from_pem_slice(server.as_bytes()).expect("PEM");
        assert!(verifier.verify_client_cert(&server, &[], UnixTime::now()).is_err());
        assert!(issue(&pki, &wanted(&["cert sign"]), now).is_err());
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let directory = tempfile::tempdir().expect("a directory");
        let pki = Pki::open(directory.path()).expect("keys");
        let mut wanted = wanted(&["client auth"]);
        wanted.life = 100 * 365 * 86_400;
        let issued = issue(&pki, &wanted, Timestamp::now()).expect("issued");
        let der = CertificateDer::from_pem_slice(issued.as_bytes()).expect("PEM");
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).expect("X.509");
        assert_eq!(certificate.validity().not_after.timestamp(), pki.authority().expect("read").not_after);
    }

    #[test]
    fn lengths_and_times() {
        assert_eq!(tlv(4, &[&[0; 0x7f]])[..2], [4, 0x7f]);
        assert_eq!(tlv(4, &[&[0; 0x80]])[..3], [4, 0x81, 0x80]);
        assert_eq!(tlv(4, &[&[0; 300]])[..4], [4, 0x82, 1, 44]);
        assert_eq!(time(0).expect("a time"), [[0x17, 13].as_slice(), b"700101000000Z"].concat());
        assert_eq!(
            time(2_524_608_000).expect("a time"),
            [[0x18, 15].as_slice(), b"20500101000000Z"].concat()
        );
    }
}
