//! The table of Kubernetes' conformance tests and of what holds their promises here, `docs/conformance.tsv`.
//!
//! A row is the name of a conformance test and either one of our tests (`FILE::FUNCTION`) or `waiting: REASON`. The check
//! is that every test named exists in the sources; whether it passes is the business of the test runs. Tests that
//! `docs/api.md` names are checked along.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TABLE: &str = "docs/conformance.tsv";
const DOCUMENT: &str = "docs/api.md";
const WAITING: &str = "waiting: ";

/// What stands behind one conformance test.
#[derive(Debug, PartialEq)]
enum Held<'a> {
    By { file: &'a str, function: &'a str },
    Waiting(&'a str),
}

/// Prints how many rows of each area are held and how many wait.
pub(crate) fn print() -> Result<(), String> {
    let text = read(&root().join(TABLE))?;
    let mut areas = BTreeMap::<&str, [usize; 2]>::new();
    for (name, held) in rows(&text)? {
        let counts = areas.entry(area(name)).or_default();
        counts[usize::from(matches!(held, Held::Waiting(_)))] += 1;
    }
    for (area, [held, waiting]) in areas {
        println!("{area:20} {held:4} held {waiting:4} waiting");
    }
    Ok(())
}

/// Fails when a row names a test that is not there.
pub(crate) fn check() -> Result<(), String> {
    let root = root();
    let text = read(&root.join(TABLE))?;
    let mut problems = Vec::new();
    let mut sources = BTreeMap::<&str, String>::new();
    let document = read(&root.join(DOCUMENT))?;
    let named = mentions(&document).map(|(file, function)| (DOCUMENT, Held::By { file, function }));
    for (name, held) in rows(&text)?.into_iter().chain(named) {
        let Held::By { file, function } = held else { continue };
        if !sources.contains_key(file) {
            sources.insert(file, read(&root.join(file)).unwrap_or_default());
        }
        if !has_test(&sources[file], function) {
            problems.push(format!("  {name}: no test {function} in {file}"));
        }
    }
    if problems.is_empty() {
        return print();
    }
    Err(format!("tests are named that are not there:\n{}", problems.join("\n")))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn rows(text: &str) -> Result<Vec<(&str, Held<'_>)>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    lines.map(|(i, line)| row(line).ok_or_else(|| format!("{TABLE}:{}: no row: {line}", i + 1))).collect()
}

fn row(line: &str) -> Option<(&str, Held<'_>)> {
    let (name, held) = line.split_once('\t')?;
    if let Some(reason) = held.strip_prefix(WAITING) {
        return (!reason.is_empty()).then_some((name, Held::Waiting(reason)));
    }
    let (file, function) = held.split_once("::")?;
    Some((name, Held::By { file, function }))
}

/// File and function of every `FILE.rs::FUNCTION` between backticks.
fn mentions(document: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = document.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once("::").filter(|(file, _)| file.ends_with(".rs")))
}

/// `sig-auth` of `[sig-auth] ...`.
fn area(name: &str) -> &str {
    name.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or("", |(area, _)| area)
}

/// Whether a function of this name stands below a test attribute.
fn has_test(source: &str, function: &str) -> bool {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else {
            let named =
                line.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&format!("{function}(")));
            if is_test && named {
                return true;
            }
            is_test = false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_tests_that_exist() {
        check().expect("every row holds");
    }

    #[test]
    fn rows_are_held_or_wait() {
        let held = Held::By { file: "a.rs", function: "b" };
        assert_eq!(row("[sig-x] n\ta.rs::b"), Some(("[sig-x] n", held)));
        assert_eq!(row("n\twaiting: for it"), Some(("n", Held::Waiting("for it"))));
        assert_eq!((row("n\twaiting: "), row("n a.rs::b"), row("n\ta.rs")), (None, None, None));
        assert_eq!(area("[sig-auth] Certificates"), "sig-auth");
    }

    #[test]
    fn documents_name_tests_in_backticks() {
        let found: Vec<_> = mentions("| a | `x/a.rs::b`, `c` | d.rs::e `f::g`").collect();
        assert_eq!(found, [("x/a.rs", "b")]);
    }

    #[test]
    fn only_tests_count() {
        let source = "#[test]\nfn one() {}\nfn two() {}\n#[tokio::test]\n#[ignore]\nasync fn three() {}\n";
        let found = ["one", "two", "three", "on"].map(|name| has_test(source, name));
        assert_eq!(found, [true, false, true, false]);
    }
}
