//! Errors of single fields, in the words Kubernetes' users know.
//!
//! A rule collects [`FieldError`]s in [`Errors`]; the API server turns them into one `Status` of reason `Invalid` with
//! one cause each.

use std::fmt;

use serde_json::Value;

/// Where a field stands: `spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path of one field.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }
    /// A field below.
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() { Self::new(field) } else { Self(format!("{}.{field}", self.0)) }
    }
    /// An element of a list.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
    /// A value of a map.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field; the names of the causes are Kubernetes' (`metav1.CauseType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Must be given.
    Required,
    /// Has a value that is not allowed.
    Invalid,
    /// Stands twice.
    Duplicate,
    /// Is not one of a list of values.
    NotSupported,
    /// May not be given here.
    Forbidden,
    /// Names something that does not exist.
    NotFound,
    /// Is longer than allowed.
    TooLong,
    /// Has more elements than allowed.
    TooMany,
    /// Has the wrong type.
    TypeInvalid,
}

impl ErrorKind {
    /// `reason` of the cause in a `Status`.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::TypeInvalid => "Invalid value",
        }
    }
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: ErrorKind,
    /// Where.
    pub field: String,
    /// The value that stands there, where it helps.
    pub value: Option<Value>,
    /// A sentence for people.
    pub detail: String,
}

impl FieldError {
    /// Message without the field: what a cause carries.
    pub fn message(&self) -> String {
        let mut out = self.kind.title().to_owned();
        if let Some(value) = &self.value {
            out.push_str(": ");
            out.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message())
    }
}

/// More problems of one object are not told: a body of some megabytes can hold hundreds of thousands.
const MAX_ERRORS: usize = 100;

/// All wrong fields of an object, in the order they were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }
    /// Whether the object is fine.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Takes over what another rule found.
    pub fn extend(&mut self, other: Errors) {
        self.0.extend(other.0);
    }
    fn push(&mut self, kind: ErrorKind, field: &Path, value: Option<Value>, detail: String) {
        if self.0.len() >= MAX_ERRORS {
            return;
        }
        self.0.push(FieldError { kind, field: field.to_string(), value, detail });
    }
    /// The field must be given.
    pub fn required(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Required, field, None, detail.into());
    }
    /// The value is not allowed.
    pub fn invalid(&mut self, field: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(ErrorKind::Invalid, field, Some(value.into()), detail.into());
    }
    /// The value stands twice.
    pub fn duplicate(&mut self, field: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::Duplicate, field, Some(value.into()), String::new());
    }
    /// The value is not one of `supported`.
    pub fn not_supported(&mut self, field: &Path, value: impl Into<Value>, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        self.push(
            ErrorKind::NotSupported,
            field,
            Some(value.into()),
            format!("supported values: {}", list.join(", ")),
        );
    }
    /// The field may not be given or changed.
    pub fn forbidden(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Forbidden, field, None, detail.into());
    }
    /// The value names nothing.
    pub fn not_found(&mut self, field: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::NotFound, field, Some(value.into()), String::new());
    }
    /// The value is longer than `max` bytes.
    pub fn too_long(&mut self, field: &Path, max: usize) {
        self.push(ErrorKind::TooLong, field, None, format!("may not be more than {max} bytes"));
    }
    /// The list or map has more than `max` elements.
    pub fn too_many(&mut self, field: &Path, count: usize, max: usize) {
        self.push(ErrorKind::TooMany, field, Some(count.into()), format!("must have at most {max} items"));
    }
}

impl fmt::Display for Errors {
    /// One error stands alone, several in brackets, as Kubernetes aggregates them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            many => {
                let all: Vec<String> = many.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", all.join(", "))
            }
        }
    }
}
