//! The table of kinds in `docs/api.md` is that of the registry.
//!
//! What acts on a kind is written by hand, the rest of a row is computed. `SAMPAN_REFRESH=1` writes the computed part anew.

use std::collections::BTreeMap;

use sampan_api::registry::{Kind, Registry};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
const BEGIN: &str = "<!-- kinds -->\n";
const END: &str = "<!-- end of kinds -->\n";
const HEAD: &str = "| kind | version | short | scope | verbs | subresources | acts on it |\n| --- | --- | --- | --- | --- | --- | --- |\n";

/// The computed columns of a kind.
fn columns(kind: &Kind) -> String {
    let verbs = if kind.stored() { "all".to_owned() } else { kind.verbs().join(", ") };
    let subresources: Vec<&str> = kind.subresources.iter().map(|subresource| subresource.as_str()).collect();
    let scope = if kind.namespaced() { "namespace" } else { "cluster" };
    let cells = [
        &kind.kind,
        kind.api_version(),
        &kind.short_names.join(", "),
        scope,
        &verbs,
        &subresources.join(", "),
    ];
    cells.map(|cell| format!("| {cell} ")).concat()
}

/// What a row says about who acts, by its computed columns up to the version.
fn actors(table: &str) -> BTreeMap<(String, String), String> {
    let rows = table.lines().skip(2).filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [kind, version, .., actor] = cells.as_slice() else { return None };
        Some(((kind.to_string(), version.to_string()), actor.to_string()))
    });
    rows.collect()
}

#[test]
fn the_document_lists_every_kind() {
    let document = std::fs::read_to_string(DOCUMENT).expect("the document is there");
    let (before, rest) = document.split_once(BEGIN).expect("a table begins");
    let (table, after) = rest.split_once(END).expect("and ends");
    let actors = actors(table);
    let registry = Registry::built_in();
    let mut wanted = HEAD.to_owned();
    for kind in registry.kinds() {
        let key = (kind.kind.to_string(), kind.api_version().to_owned());
        let actor = actors.get(&key).map_or("", String::as_str);
        wanted.push_str(&format!("{}| {actor} |\n", columns(kind)));
    }
    if std::env::var_os("SAMPAN_REFRESH").is_some() {
        std::fs::write(DOCUMENT, format!("{before}{BEGIN}{wanted}{END}{after}")).expect("written");
    } else {
        assert_eq!(table, wanted, "run this test with SAMPAN_REFRESH=1");
    }
    let silent: Vec<&str> = wanted.lines().filter(|line| line.ends_with("|  |")).collect();
    assert!(silent.is_empty(), "nobody says what acts on these:\n{}", silent.join("\n"));
}
