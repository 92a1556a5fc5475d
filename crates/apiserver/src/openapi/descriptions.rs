//! What types and fields are described with.
//!
//! The build script leaves Kubernetes' own sentences as one compressed table. It is unpacked when a document is asked
//! for, costs about a megabyte while the document is made, and is forgotten with it. Lists of kinds and the two fields
//! every kind has are not in the table; they are described here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read as _;
use std::ops::Range;

const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));

const API_VERSION: &str =
    "The group and version whose schema this object is written in, for example apps/v1.";
const KIND: &str = "What this object is, in CamelCase. The address it is sent to must serve the same kind.";
const LIST_METADATA: &str =
    "What is true of the list itself: the state it shows, and where the next page begins.";

/// The unpacked table.
pub(super) struct Descriptions {
    text: String,
    /// Lines of a type by its name.
    types: HashMap<Box<str>, Range<usize>>,
}

impl Descriptions {
    /// Unpacks the table.
    pub(super) fn unpack() -> Self {
        let mut text = String::new();
        // The bytes are this program's own; if they were damaged, documents would only lack descriptions.
        if let Err(error) = flate2::read::GzDecoder::new(COMPRESSED).read_to_string(&mut text) {
            tracing::error!(%error, "cannot unpack the descriptions of the API");
        }
        let mut types = HashMap::with_capacity(800);
        let mut start = 0;
        while start < text.len() {
            let end = text[start..].find("\n=").map_or(text.len(), |at| start + at + 1);
            let name = text[start..end].trim_start_matches('=').split('\t').next().unwrap_or_default();
            types.insert(name.into(), start..end);
            start = end;
        }
        Self { text, types }
    }

    fn lines(&self, type_name: &str) -> Option<std::str::Lines<'_>> {
        self.types.get(type_name).map(|range| self.text[range.clone()].lines())
    }

    /// What a type is.
    pub(super) fn of_type(&self, type_name: &str) -> Option<String> {
        match self.lines(type_name) {
            Some(mut lines) => found(lines.next()?.split_once('\t')?.1).map(Cow::into_owned),
            None => {
                let (_, short) = type_name.rsplit_once('.')?;
                short.strip_suffix("List").map(|kind| format!("{kind}List is a list of {kind} objects."))
            }
        }
    }

    /// What a field is.
    pub(super) fn of_field(&self, type_name: &str, field: &str) -> Option<Cow<'_, str>> {
        let in_table = self.lines(type_name).and_then(|mut lines| {
            lines
                .find_map(|line| line.split_once('\t').filter(|(name, _)| *name == field))
                .and_then(|(_, t)| found(t))
        });
        in_table.or_else(|| match field {
            "apiVersion" => Some(API_VERSION.into()),
            "kind" => Some(KIND.into()),
            "metadata" => Some(LIST_METADATA.into()).filter(|_| type_name.ends_with("List")),
            "items" if type_name.ends_with("List") => Some("The objects.".into()),
            _ => None,
        })
    }
}

/// A text of the table; backslashes and line ends are escaped there.
fn found(text: &str) -> Option<Cow<'_, str>> {
    if text.is_empty() {
        return None;
    }
    if !text.contains('\\') {
        return Some(text.into());
    }
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    Some(out.into())
}

#[cfg(test)]
#[path = "../../build/doc_comments.rs"]
mod doc_comments;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sampan_api::registry::Registry;
    use sampan_api::schema::{FieldType, Types};

    use super::*;

    /// Types whose fields Kubernetes itself leaves without a word, or in part.
    const SILENT: &[&str] = &[
        "io.k8s.api.networking.v1.IngressRule",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ExternalDocumentation",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
    ];

    #[test]
    fn every_field_of_every_kind_is_described() {
        let descriptions = Descriptions::unpack();
        let mut waiting: Vec<String> = Vec::new();
        for kind in Registry::built_in().kinds() {
            waiting.extend([kind.schema_name().to_owned(), format!("{}List", kind.schema_name())]);
        }
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        while let Some(name) = waiting.pop() {
            let Some(type_) = Types::get().type_(&name).filter(|_| seen.insert(name.clone())) else {
                continue;
            };
            if descriptions.of_type(&name).is_none() {
                missing.push(name.clone());
            }
            for field in &type_.fields {
                if descriptions.of_field(&name, field.name).is_none() && !SILENT.contains(&&*name) {
                    missing.push(format!("{name}.{}", field.name));
                }
                let mut inner = &field.type_;
                while let FieldType::List(element) | FieldType::Map(element) = inner {
                    inner = element;
                }
                if let FieldType::Struct(target) = inner {
                    waiting.push((*target).to_owned());
                }
            }
        }
        assert!(seen.len() > 200, "only {} types", seen.len());
        assert!(missing.is_empty(), "without a description: {missing:#?}");
    }

    #[test]
    fn facts_of_the_table() {
        let descriptions = Descriptions::unpack();
        let field =
            |type_: &str, field: &str| descriptions.of_field(type_, field).unwrap_or_default().into_owned();
        let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
        assert!(containers.contains("at least one container"), "{containers}");
        assert!(field("io.k8s.api.core.v1.Container", "envFrom").contains("environment variables"));
        // Names that are words of Rust, and brackets that rustdoc needs escaped.
        assert!(!field("io.k8s.api.core.v1.ServiceSpec", "type").is_empty());
        let observed = field("io.k8s.apimachinery.pkg.apis.meta.v1.Condition", "observedGeneration");
        assert!(observed.contains(".status.conditions[x]"), "{observed}");
        assert!(field("io.k8s.api.core.v1.PodSpec", "dnsPolicy").len() > 50);
        assert_eq!(descriptions.of_field("io.k8s.api.core.v1.PodSpec", "nonsense"), None);
        assert_eq!(descriptions.of_type("no.such.Type"), None);
    }

    #[test]
    fn comments_are_read_from_generated_files() {
        let source = r#"// Generated from definition io.example.v1.Thing

/// A thing.
///
/// With \[two\] paragraphs.
#[derive(Clone)]
pub struct Thing {
    /// What kind it is.
    pub type_: String,

    pub silent: Option<i32>,

    /// From somewhere.
    #[allow(unused)]
    pub env_from: Option<std::vec::Vec<crate::EnvFrom>>,
}

impl Thing {
    /// Not a field.
    pub fn other() {}
}
                            "type" => Field::Key_type_,
                            "silent" => Field::Key_silent,
                            "envFrom" => Field::Key_env_from,
"#;
        let read = doc_comments::read(source).expect("a definition");
        let fields = [("type", "What kind it is."), ("envFrom", "From somewhere.")];
        let fields: Vec<(String, String)> = fields.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect();
        assert_eq!((&*read.text, &read.fields), ("A thing.\n\nWith [two] paragraphs.", &fields));
        let table = doc_comments::table(&[read]);
        assert!(
            table.starts_with("=io.example.v1.Thing\tA thing.\\n\\nWith [two] paragraphs.\ntype\tWhat"),
            "{table}"
        );
        assert_eq!(doc_comments::read("pub struct Other {}\n"), None);
    }
}
