//! Clients that are not ours, in languages that are not ours; `scripts/lib.sh` fetches them.

use std::path::PathBuf;
use std::process::Command;

use crate::command::{Done, command, run};
use crate::{Cluster, Namespace};

/// Environment variable that names the `helm` to use; without it the one of the PATH.
pub const HELM: &str = "SAMPAN_HELM";
/// Environment variable that names a directory with the Python client in it.
pub const PYTHON_CLIENT: &str = "SAMPAN_PYTHON_CLIENT";
/// Environment variable that names a directory in whose `node_modules` the JavaScript client is.
pub const NODE_CLIENT: &str = "SAMPAN_NODE_CLIENT";
/// Environment variable that names a directory with the unpacked packages of `tests/clients/manifests.txt`.
pub const MANIFESTS: &str = "SAMPAN_MANIFESTS";

/// A file or directory of the tests' sources.
#[must_use]
pub fn source(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file or directory of the packages whose manifests the tests apply.
#[must_use]
pub fn manifest(path: &str) -> PathBuf {
    PathBuf::from(variable(MANIFESTS)).join(path)
}

/// A variable that `./test` sets.
fn variable(name: &str) -> std::ffi::OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("set {name}; CONTRIBUTING.md says how the tests are run"))
}

/// A language with a client and a program of scenarios.
#[derive(Clone, Copy, Debug)]
pub enum Language {
    /// `tests/clients/python`.
    Python,
    /// `tests/clients/node`.
    JavaScript,
}

impl Language {
    /// The program of scenarios with these arguments.
    fn program(self, args: &[&str]) -> Command {
        let (interpreter, script, variable_of_client, variable_of_interpreter) = match self {
            Self::Python => ("python3", "clients/python/scenarios.py", PYTHON_CLIENT, "PYTHONPATH"),
            Self::JavaScript => ("node", "clients/node/scenarios.js", NODE_CLIENT, NODE_CLIENT),
        };
        let mut program = command(interpreter, &[]);
        program.arg(source(script)).args(args);
        program.env(variable_of_interpreter, variable(variable_of_client));
        // What Python compiles would lie beside its sources.
        program.env("PYTHONDONTWRITEBYTECODE", "1");
        program
    }

    /// The names of its scenarios.
    #[must_use]
    pub fn scenarios(self) -> Vec<String> {
        run(self.program(&["list"]), "").ok().lines().map(str::to_owned).collect()
    }

    /// Runs a scenario in a namespace of its own.
    ///
    /// # Panics
    ///
    /// When something did not hold.
    #[track_caller]
    pub fn run(self, scenario: &str) {
        let prefix = match self {
            Self::Python => "py",
            Self::JavaScript => "js",
        };
        let space = Namespace::new(&format!("{prefix}-{scenario}"));
        let mut program = self.program(&["run", scenario, space.name()]);
        space.cluster().be_administrator(&mut program);
        run(program, "").ok();
    }
}

impl Cluster {
    /// Runs `helm` as administrator.
    #[track_caller]
    pub fn helm(&self, args: &[&str]) -> Done {
        let program = std::env::var_os(HELM).unwrap_or_else(|| "helm".into());
        let mut helm = command(program, args);
        self.be_administrator(&mut helm);
        run(helm, "")
    }

    /// Lets a program find the cluster as its administrator, and keeps it away from the home of whoever runs the tests.
    pub fn be_administrator(&self, program: &mut Command) {
        program.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.scratch());
    }
}

impl Namespace {
    /// Runs `helm` in this namespace.
    #[track_caller]
    pub fn helm(&self, args: &[&str]) -> Done {
        self.cluster().helm(&[&["--namespace", self.name()][..], args].concat())
    }
}
