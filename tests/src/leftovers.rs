//! What a cluster may not leave on a machine: processes, mounts, links, tables, cgroups, directories.

use std::path::{Path, PathBuf};

use crate::command::{command, run};

/// By what the things of a cluster are recognised.
#[derive(Debug)]
pub(crate) struct Identity {
    data_dir: PathBuf,
    run_dir: PathBuf,
    /// The name in links, tables and cgroups; empty when the cluster never came so far.
    name: String,
}

impl Identity {
    pub(crate) fn of(data_dir: &Path, run_dir: &Path) -> Self {
        let text = std::fs::read(data_dir.join("cluster.json")).unwrap_or_default();
        let cluster: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let name = cluster["name"].as_str().unwrap_or_default().to_owned();
        Self { data_dir: data_dir.to_owned(), run_dir: run_dir.to_owned(), name }
    }

    /// Everything found, one line each.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let directories = [&self.data_dir, &self.run_dir];
        let mut left: Vec<String> = directories
            .iter()
            .filter(|directory| directory.exists())
            .map(|directory| format!("directory {}", directory.display()))
            .collect();
        left.extend(self.mounts());
        left.extend(self.processes());
        if !self.name.is_empty() {
            left.extend(self.links());
            left.extend(self.tables());
            self.cgroups(Path::new("/sys/fs/cgroup"), 3, &mut left);
        }
        left
    }

    fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = |line: &&str| self.mentions(line);
        table.lines().filter(ours).map(|line| format!("mount {line}")).collect()
    }

    fn mentions(&self, text: &str) -> bool {
        [&self.data_dir, &self.run_dir].iter().any(|d| text.contains(&*d.to_string_lossy()))
    }

    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = entry.path();
            // Threads and processes that end while we look have nothing to read.
            let words = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let cgroup = std::fs::read_to_string(path.join("cgroup")).unwrap_or_default();
            let in_cgroup = !self.name.is_empty() && cgroup.contains(&format!("sampan-{}", self.name));
            let number = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
            if number && (in_cgroup || (self.mentions(&words) && words.contains("sampan"))) {
                found.push(format!("process {} {words}", path.display()));
            }
        }
        found
    }

    fn links(&self) -> Vec<String> {
        let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains(&self.name)).map(|name| format!("link {name}")).collect()
    }

    fn tables(&self) -> Vec<String> {
        let tables = run(command("nft", &["list", "tables"]), "").ok();
        tables.lines().filter(|line| line.contains(&self.name)).map(|line| format!("nft {line}")).collect()
    }

    fn cgroups(&self, directory: &Path, depth: usize, left: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(&self.name) {
                left.push(format!("cgroup {}", path.display()));
            } else if depth > 1 && entry.file_type().is_ok_and(|t| t.is_dir()) {
                self.cgroups(&path, depth - 1, left);
            }
        }
    }
}
