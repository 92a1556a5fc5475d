//! Reads the doc comments of a generated type of `k8s-openapi`.
//!
//! Not a parser of Rust: the files come from one generator and all look alike. A file begins with the name of the
//! definition it was made from; the type's comment stands at the beginning of a line, the comments of its fields stand
//! four columns in; JSON names stand in the match of the deserializer, `"envFrom" => Field::Key_env_from`.

use std::collections::HashMap;
use std::fmt::Write as _;

/// What the comments of one file say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Described {
    /// `io.k8s.api.core.v1.Pod`.
    pub(crate) name: String,
    /// What the type is; may be empty.
    pub(crate) text: String,
    /// JSON names of fields and what they are, in the order of the file. Fields without a comment are missing.
    pub(crate) fields: Vec<(String, String)>,
}

/// Reads one file; `None` when it was not made from a definition.
pub(crate) fn read(source: &str) -> Option<Described> {
    let mut lines = source.lines();
    let name = lines.next()?.strip_prefix("// Generated from definition ")?.trim();
    let json_names = json_names(source);
    let mut described = Described { name: name.to_owned(), ..Described::default() };
    let mut comment = Comment::default();
    let mut inside = false;
    for line in lines {
        if !inside {
            if comment.add(line) || line.starts_with("#[") {
                continue;
            }
            if line.starts_with("pub struct ") || line.starts_with("pub enum ") {
                described.text = comment.take();
                inside = line.starts_with("pub struct ") && line.ends_with('{');
                if !inside {
                    break;
                }
            }
            comment.take();
        } else if line == "}" {
            break;
        } else if let Some(field) = line.strip_prefix("    ") {
            if comment.add(field) || field.starts_with("#[") {
                continue;
            }
            let text = comment.take();
            let rust_name = field.strip_prefix("pub ").and_then(|rest| rest.split_once(':')).map(|(n, _)| n);
            let json_name = rust_name.and_then(|n| json_names.get(n.trim_start_matches("r#")));
            if let Some(json_name) = json_name.filter(|_| !text.is_empty()) {
                described.fields.push(((*json_name).to_owned(), text));
            }
        }
    }
    Some(described)
}

/// One line per type, `=NAME<tab>TEXT`, followed by one per field, `NAME<tab>TEXT`; line ends and backslashes in texts
/// are escaped.
pub(crate) fn table(types: &[Described]) -> String {
    let mut out = String::new();
    for type_ in types {
        let _ = writeln!(out, "={}\t{}", type_.name, escape(&type_.text));
        for (name, text) in &type_.fields {
            let _ = writeln!(out, "{name}\t{}", escape(text));
        }
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

fn json_names(source: &str) -> HashMap<&str, &str> {
    let arm = |line: &'_ str| -> Option<(usize, usize, usize)> {
        let quote = line.find('"')?;
        let end = quote + 1 + line[quote + 1..].find("\" => Field::Key_")?;
        Some((quote + 1, end, end + "\" => Field::Key_".len()))
    };
    source
        .lines()
        .filter_map(|line| {
            let (from, to, key) = arm(line)?;
            Some((line[key..].trim_end_matches(','), &line[from..to]))
        })
        .collect()
}

/// The comment lines above an item.
#[derive(Default)]
struct Comment {
    lines: Vec<String>,
}

impl Comment {
    fn add(&mut self, line: &str) -> bool {
        let Some(text) = line.strip_prefix("///") else { return false };
        self.lines.push(plain(text.strip_prefix(' ').unwrap_or(text)));
        true
    }

    fn take(&mut self) -> String {
        std::mem::take(&mut self.lines).join("\n").trim().to_owned()
    }
}

/// Takes back what the generator escaped for rustdoc.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let escaped = c == '\\' && matches!(characters.peek(), Some('[' | ']' | '<' | '>' | '\\'));
        if let Some(next) = escaped.then(|| characters.next()).flatten() {
            out.push(next);
        } else {
            out.push(c);
        }
    }
    out
}
