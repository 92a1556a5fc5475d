//! Collects the words the API crate looks for, so that generated documents say them: a fuzzer does not find
//! `ClusterFirstWithHostNet` by chance.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

const SOURCE: &str = "../crates/api/src";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let mut words = BTreeSet::new();
    collect(Path::new(SOURCE), &mut words);
    let lines: Vec<String> = words.into_iter().collect();
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a directory")).join("words.txt");
    fs::write(target, lines.join("\n")).expect("the build directory is writable");
}

fn collect(directory: &Path, words: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("the API crate is beside this one").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, words);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are text");
            words.extend(text.split('"').skip(1).filter(|word| is_word(word)).map(str::to_owned));
        }
    }
}

/// Every second piece between quotes is a literal; the others are code and do not look like a word.
fn is_word(text: &str) -> bool {
    (1..=48).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:%*=$".contains(&b))
}
