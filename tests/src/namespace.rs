//! The room of one test in the shared cluster.

use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::command::{Background, Done, run};
use crate::{Cluster, IMAGE, check, eventually};

/// A namespace and the cluster it is in.
#[derive(Debug)]
pub struct Namespace {
    cluster: Arc<Cluster>,
    name: String,
    /// What `kubectl` finds in its environment besides the usual.
    environment: &'static [(&'static str, &'static str)],
}

impl Namespace {
    /// A namespace in the shared cluster. Its name says which test it is of.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::in_cluster(Cluster::shared(), name)
    }

    /// A namespace in a cluster.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn in_cluster(cluster: Arc<Cluster>, name: &str) -> Self {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        cluster.kubectl_with(&["apply", "-f", "-"], &object.to_string()).ok();
        let space = Self { cluster, name: name.to_owned(), environment: &[] };
        // Pods are refused before their service account is there; no controller of a user would wait either.
        eventually("the default service account is there", || {
            let account =
                space.kubectl(&["get", "serviceaccount/default", "--ignore-not-found", "--output", "name"]);
            check(!account.ok().is_empty(), "there is none")
        });
        space
    }

    /// The same with more in the environment of `kubectl`.
    #[must_use]
    pub fn with_environment(mut self, environment: &'static [(&'static str, &'static str)]) -> Self {
        self.environment = environment;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is in.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--namespace", self.name.as_str()][..], args].concat()
    }

    /// The command that [`Self::kubectl`] runs, to be changed.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = self.cluster.kubectl_command(&self.args(args));
        command.envs(self.environment.iter().copied());
        command
    }

    /// Runs `kubectl` in this namespace.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> Done {
        self.kubectl_with(args, "")
    }

    /// Runs `kubectl` in this namespace with this text as its standard input.
    #[track_caller]
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> Done {
        run(self.kubectl_command(args), stdin)
    }

    /// Starts `kubectl` in this namespace beside the test.
    #[track_caller]
    pub fn kubectl_background(&self, args: &[&str]) -> Background {
        Background::start(self.kubectl_command(args))
    }

    /// Applies an object.
    #[track_caller]
    pub fn apply(&self, object: &Value) -> Done {
        self.kubectl_with(&["apply", "-f", "-"], &object.to_string())
    }

    /// One value of an object, empty when it is not set.
    #[track_caller]
    pub fn value(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "--output", &format!("jsonpath={{{path}}}")]).ok()
    }

    /// Waits, with `kubectl wait`, until a value of an object is as expected.
    ///
    /// # Panics
    ///
    /// When it does not become so; the message describes the object.
    #[track_caller]
    pub fn wait(&self, object: &str, path: &str, expected: &str) {
        let condition = format!("--for=jsonpath={{{path}}}={expected}");
        let done = self.kubectl(&["wait", object, &condition, "--timeout=50s"]);
        if done.code != Some(0) {
            let described = self.kubectl(&["describe", object]);
            panic!("{done}\n{described}");
        }
    }

    /// A pod with one container `c` that runs a shell script.
    #[track_caller]
    pub fn pod(&self, name: &str, script: &str) {
        self.pod_with(name, script, json!({}), json!({}));
    }

    /// A pod with one container `c` that runs a shell script, with more in the container and in the pod's spec.
    #[track_caller]
    pub fn pod_with(&self, name: &str, script: &str, container: Value, spec: Value) {
        self.apply(&Self::pod_object(name, script, container, spec)).ok();
    }

    /// The object that [`Self::pod_with`] applies.
    #[must_use]
    pub fn pod_object(name: &str, script: &str, container: Value, spec: Value) -> Value {
        let mut main = json!({"name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", script]});
        merge(&mut main, container);
        let mut whole = json!({"containers": [main], "terminationGracePeriodSeconds": 1});
        merge(&mut whole, spec);
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": whole})
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub fn wait_ready(&self, pod: &str) {
        self.wait(&format!("pod/{pod}"), ".status.conditions[?(@.type==\"Ready\")].status", "True");
    }

    /// Waits for the end of a pod that is not restarted and gives what it printed.
    #[track_caller]
    pub fn output_of(&self, pod: &str) -> String {
        self.wait(&format!("pod/{pod}"), ".status.phase", "Succeeded");
        self.kubectl(&["logs", pod]).ok()
    }

    /// Runs a script in a pod's container.
    #[track_caller]
    pub fn exec(&self, pod: &str, script: &str) -> Done {
        self.kubectl(&["exec", pod, "--", "/bin/sh", "-c", script])
    }

    /// A deployment of one container that runs a script, with more in its spec.
    #[track_caller]
    pub fn deployment(&self, name: &str, replicas: u32, script: &str, spec: Value) -> Value {
        let pod = Self::pod_object(name, script, json!({}), json!({}));
        let labels = json!({"app": name});
        let template = json!({"metadata": {"labels": labels}, "spec": pod["spec"]});
        let mut whole =
            json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": template});
        merge(&mut whole, spec);
        let metadata = json!({"name": name, "labels": labels});
        let object =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": whole});
        self.apply(&object).ok();
        object
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let pods = self.kubectl(&["get", "pods,events", "--output", "wide"]);
            eprintln!("{pods}");
        }
        drop(self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]));
    }
}

/// Lays one object over another: objects are merged, everything else is replaced.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
