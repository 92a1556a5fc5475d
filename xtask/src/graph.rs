//! The crate graph: which crate of the workspace may see which other.
//!
//! The arrows are read from the manifests, which are the truth, and compared with the block drawn in ARCHITECTURE.md,
//! so that a new arrow is a change of that document and shows in review. Arrows of tests (`dev-dependencies`) do not
//! shape the product and are left out. Manifests are read line by line: cargo rejects what this could misread.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const DOCUMENT: &str = "ARCHITECTURE.md";
/// The line before the block; the block is what stands between the two fences after it.
const MARK: &str = "<!-- cargo xtask graph -->";
/// What the names of our crates begin with; the graph leaves it out.
const PREFIX: &str = "sampan-";

/// Crates and the crates they depend on.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Prints the graph.
pub(crate) fn print() -> Result<(), String> {
    print!("{}", render(&read()?));
    Ok(())
}

/// Fails when the graph is not the drawn one.
pub(crate) fn check() -> Result<(), String> {
    let path = Path::new(ROOT).join(DOCUMENT);
    let document = read_file(&path)?;
    let drawn = block(&document).ok_or_else(|| format!("{DOCUMENT} has no block after {MARK}"))?;
    let differences = compare(drawn, &render(&read()?));
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the crates are not as {DOCUMENT} draws them (an arrow is a decision: change the document with it, or take \
         it back):\n{}",
        differences.join("\n")
    ))
}

fn read() -> Result<Graph, String> {
    let mut graph = Graph::new();
    for manifest in manifests()? {
        let text = read_file(&manifest)?;
        let name =
            package_name(&text).ok_or_else(|| format!("{} has no package name", manifest.display()))?;
        graph.insert(short(name).to_owned(), dependencies(&text));
    }
    Ok(graph)
}

fn read_file(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// The manifests of the workspace's members; a member may end in `/*`.
fn manifests() -> Result<Vec<PathBuf>, String> {
    let root = Path::new(ROOT);
    let text = read_file(&root.join("Cargo.toml"))?;
    let mut manifests = Vec::new();
    for member in members(&text) {
        match member.strip_suffix("/*") {
            None => manifests.push(root.join(member).join("Cargo.toml")),
            Some(folder) => {
                let folder = root.join(folder);
                let entries = std::fs::read_dir(&folder);
                for entry in entries.map_err(|e| format!("cannot list {}: {e}", folder.display()))? {
                    let entry = entry.map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
                    manifests.push(entry.path().join("Cargo.toml"));
                }
            }
        }
    }
    manifests.retain(|manifest| manifest.exists());
    Ok(manifests)
}

fn members(workspace: &str) -> Vec<&str> {
    let list = workspace.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    list.map_or_else(Vec::new, |(list, _)| list.split('"').skip(1).step_by(2).collect())
}

fn package_name(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
}

/// Our crates in every section of dependencies but those of tests.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut counts = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            counts = section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
        } else if counts && line.starts_with(PREFIX) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            found.insert(short(name).to_owned());
        }
    }
    found
}

fn short(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// One line per crate, those with the longest way down first, so that every arrow points to a later line.
fn render(graph: &Graph) -> String {
    let mut names: Vec<&String> = graph.keys().collect();
    names.sort_by_key(|name| (std::cmp::Reverse(height(graph, name)), name.as_str()));
    let width = names.iter().map(|name| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for name in names {
        let arrows: Vec<&str> = graph[name].iter().map(String::as_str).collect();
        let line = format!("{name:width$} -> {}", arrows.join(" "));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Steps to the farthest crate below. Cargo refuses cycles, so this ends.
fn height(graph: &Graph, name: &str) -> usize {
    let below = graph.get(name).into_iter().flatten();
    below.map(|dependency| height(graph, dependency) + 1).max().unwrap_or(0)
}

fn block(document: &str) -> Option<&str> {
    let (_, rest) = document.split_once(MARK)?;
    let (_, rest) = rest.split_once("```text\n")?;
    rest.split_once("```").map(|(block, _)| block)
}

/// Lines that stand on one side only. The order is part of the drawing but not of the check.
fn compare(drawn: &str, real: &str) -> Vec<String> {
    let (drawn, real): (BTreeSet<&str>, BTreeSet<&str>) = (drawn.lines().collect(), real.lines().collect());
    let only_drawn = drawn.difference(&real).map(|line| format!("  drawn: {line}"));
    only_drawn.chain(real.difference(&drawn).map(|line| format!("  real:  {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_are_those_of_the_product() {
        let manifest = "[package]\nname = \"sampan-node\"\n[dependencies]\nsampan-api.workspace = true\nserde = \"1\"\n\
                        sampan-client = { workspace = true }\n[dev-dependencies]\nsampan-store.workspace = true\n\
                        [target.'cfg(unix)'.dependencies]\nsampan-kernel.workspace = true\n";
        assert_eq!(package_name(manifest), Some("sampan-node"));
        assert_eq!(dependencies(manifest), ["api", "client", "kernel"].map(str::to_owned).into());
    }

    #[test]
    fn members_may_be_folders_of_crates() {
        assert_eq!(members("[workspace]\nmembers = [\"crates/*\", \"bench\"]\n"), ["crates/*", "bench"]);
    }

    #[test]
    fn crates_stand_above_what_they_use() {
        let arrows = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let graph = Graph::from([
            ("api".to_owned(), arrows(&[])),
            ("sampan".to_owned(), arrows(&["api", "store"])),
            ("store".to_owned(), arrows(&["api"])),
        ]);
        assert_eq!(render(&graph), "sampan -> api store\nstore  -> api\napi    ->\n");
    }

    #[test]
    fn differences_name_their_side() {
        let document = format!("text\n{MARK}\n```text\na -> b\nb ->\n```\nmore");
        let drawn = block(&document).expect("a block");
        assert!(compare(drawn, "b ->\na -> b\n").is_empty());
        assert_eq!(compare(drawn, "a -> b c\nb ->\n"), ["  drawn: a -> b", "  real:  a -> b c"]);
    }
}
