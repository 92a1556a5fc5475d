//! Collects what the types of the API are described with, for `kubectl explain`.
//!
//! The sentences are Kubernetes' own and are not kept in this repository. They stand in the doc comments of
//! `k8s-openapi`, which the workspace depends on for its typed clients; so the source of exactly the locked version is
//! found, its comments are read, and one compressed table is left in `OUT_DIR` for `openapi/descriptions.rs`.

use std::env;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "build/doc_comments.rs"]
mod doc_comments;

use doc_comments::Described;

/// The first line of this file names the version of Kubernetes whose types are served.
const TYPES: &str = "../api/data/types.tsv";
/// A source with fewer types than this is not the one that is meant; version 1.36 has 684.
const MIN_TYPES: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["build.rs", "build/doc_comments.rs", TYPES, "../../Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let folder = source_of_k8s_openapi()?.join("src").join(version_folder()?);
    let mut types = Vec::new();
    collect(&folder, &mut types)?;
    if types.len() < MIN_TYPES {
        let found = types.len();
        return Err(format!("{} describes only {found} types of the API", folder.display()).into());
    }
    let file = fs::File::create(Path::new(&env::var("OUT_DIR")?).join("descriptions.gz"))?;
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    encoder.write_all(doc_comments::table(&types).as_bytes())?;
    encoder.finish()?;
    Ok(())
}

/// `v1_36` for a table whose first line is `#v1.36.2`.
fn version_folder() -> Result<String, Box<dyn Error>> {
    let table = fs::read_to_string(TYPES).map_err(|e| format!("cannot read {TYPES}: {e}"))?;
    let version = table.lines().next().and_then(|line| line.strip_prefix("#v")).unwrap_or_default();
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok(format!("v{major}_{minor}")),
        _ => Err(format!("{TYPES} does not begin with a version but with {version:?}").into()),
    }
}

/// The folder of the locked version, as cargo says.
fn source_of_k8s_openapi() -> Result<PathBuf, Box<dyn Error>> {
    // A build of this crate alone may be the first that needs the source of k8s-openapi; cargo fetches it then.
    let metadata = metadata(&["--offline"]).or_else(|_| metadata(&[]))?;
    let folder_of = |manifest: &str| -> Option<PathBuf> {
        let folder = Path::new(manifest).parent()?;
        let name = folder.file_name()?.to_str()?;
        // `k8s-openapi-0.29.0` in a registry, `k8s-openapi` in a vendored tree; not `k8s-openapi-derive`.
        let rest = name.strip_prefix("k8s-openapi")?;
        let version = rest.strip_prefix('-').unwrap_or("0");
        (rest.is_empty() || version.starts_with(|c: char| c.is_ascii_digit())).then(|| folder.to_owned())
    };
    let manifests = metadata.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    manifests.filter_map(folder_of).next().ok_or_else(|| {
        "k8s-openapi is no dependency of this workspace; its doc comments describe the API's types for kubectl explain"
            .into()
    })
}

fn metadata(options: &[&str]) -> Result<String, Box<dyn Error>> {
    let cargo = env::var("CARGO")?;
    let output = Command::new(&cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &env::var("TARGET")?])
        .args(options)
        .output()
        .map_err(|e| format!("cannot run {cargo} metadata: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("cargo metadata does not find the source of k8s-openapi: {said}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Reads every file below a folder, in order of names, so that a build can be repeated.
fn collect(folder: &Path, types: &mut Vec<Described>) -> Result<(), Box<dyn Error>> {
    let cannot =
        |e: std::io::Error| format!("cannot read the source of k8s-openapi at {}: {e}", folder.display());
    let entries = fs::read_dir(folder).map_err(cannot)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(cannot)?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, types)?;
        } else {
            types.extend(doc_comments::read(&fs::read_to_string(&path).map_err(cannot)?));
        }
    }
    Ok(())
}
