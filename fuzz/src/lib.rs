//! What the fuzz targets share: documents and texts made from the bytes of the fuzzer.
//!
//! A parser of texts gets the bytes as they are. What works on documents gets them in one of two forms: an input that
//! begins like JSON is JSON documents, one a line, so that seeds and crashes can be read and written by hand; any other
//! input is a sequence of decisions of [`Source`], along a type or free, which gets deep where random JSON never does.

#![forbid(unsafe_code)]

mod expression;
mod schema;
mod source;

use sampan_api::decode::{Strictness, parse_json};
use sampan_api::kind::Row;
use sampan_api::kinds::ROWS;
use sampan_api::schema::Schema;
use serde_json::Value;

pub use source::Source;

/// An input, taken apart.
pub enum Input<'a> {
    /// Documents as text; the first byte of decisions was taken from the front of the first line.
    Text(std::str::Split<'a, char>),
    /// Decisions.
    Decisions(Source<'a>),
}

impl<'a> Input<'a> {
    /// Looks at the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        match (data.first(), std::str::from_utf8(data)) {
            (Some(b'{' | b'[' | b'"'), Ok(text)) => Self::Text(text.split('\n')),
            _ => Self::Decisions(Source::new(data)),
        }
    }

    /// The next document of any form.
    pub fn document(&mut self) -> Option<Value> {
        match self {
            Self::Text(lines) => parse_line(lines),
            Self::Decisions(source) => Some(source.value(0)),
        }
    }

    /// The next document of a type; decided ones are of the type with an error here and there.
    pub fn document_of(&mut self, type_name: &'static str) -> Option<Value> {
        match self {
            Self::Text(lines) => parse_line(lines),
            Self::Decisions(source) => Some(source.of_type(type_name)),
        }
    }

    /// The next structural schema.
    pub fn schema(&mut self) -> Option<Value> {
        match self {
            Self::Text(lines) => parse_line(lines),
            Self::Decisions(source) => Some(schema::schema(source, 0)),
        }
    }

    /// A built-in row: of the kind that the first document names, or decided.
    pub fn row(&mut self) -> Option<&'static Row> {
        let mut rows = ROWS.iter();
        match self {
            Self::Text(lines) => {
                let document: Value = serde_json::from_str(lines.clone().next()?).ok()?;
                rows.find(|row| document["kind"] == row.kind).copied()
            }
            Self::Decisions(source) => {
                let count = rows.clone().count();
                rows.nth(source.below(count)).copied()
            }
        }
    }
}

fn parse_line(lines: &mut std::str::Split<'_, char>) -> Option<Value> {
    parse_json(lines.next()?.as_bytes(), &mut Strictness::default()).ok()
}

/// A CEL expression: the input as it is, or decided when it begins with a control character.
pub fn expression(data: &[u8]) -> Option<String> {
    match data.split_first() {
        Some((0..32, decisions)) => Some(expression::expression(&mut Source::new(decisions), 0)),
        _ => Some(std::str::from_utf8(data).ok()?.to_owned()),
    }
}

/// Fits a document to the type of a row, as the server does with everything that it reads.
pub fn conform(row: &'static Row, mut document: Value) -> Option<Value> {
    Schema::Table(row.schema).conform(&mut document, &mut Strictness::default()).ok()?;
    document.is_object().then_some(document)
}
