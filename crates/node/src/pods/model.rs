//! A pod as the planner reads it: the object from the API with the questions about it answered once.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use crate::resources::{self, Qos};
use crate::time;

/// Which part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that always restarts: started in order, then kept running.
    Sidecar,
    /// Runs beside the others.
    Main,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// One container of the pod.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) role: Role,
    pub(crate) spec: Arc<Container>,
    pub(crate) restart: RestartPolicy,
}

impl Planned {
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Whether a container that ended with this code is started again.
    pub(crate) fn restarts_after(&self, exit_code: i32) -> bool {
        if self.restart_rule_matches(exit_code) {
            return true;
        }
        match self.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// `restartPolicyRules`: a rule for an exit code comes before the policy.
    fn restart_rule_matches(&self, exit_code: i32) -> bool {
        self.spec.restart_policy_rules.iter().flatten().any(|rule| {
            rule.action == "Restart"
                && rule.exit_codes.as_ref().is_some_and(|codes| {
                    let listed = codes.values.iter().flatten().any(|value| *value == exit_code);
                    if codes.operator == "NotIn" { !listed } else { listed }
                })
        })
    }

    /// `spec.containers{name}`, the field path of events.
    pub(crate) fn path(&self) -> String {
        let list = match self.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Main => "containers",
            Role::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name())
    }
}

/// A pod of this node.
#[derive(Clone, Debug)]
pub(crate) struct PodModel {
    pub(crate) pod: Arc<Pod>,
    /// Init containers in order, then containers, then ephemeral containers.
    pub(crate) containers: Vec<Planned>,
    pub(crate) qos: Qos,
}

impl PodModel {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        let mut containers = Vec::new();
        if let Some(spec) = &pod.spec {
            let of_pod =
                RestartPolicy::parse(spec.restart_policy.as_deref()).unwrap_or(RestartPolicy::Always);
            for container in spec.init_containers.iter().flatten() {
                containers.push(init(container, of_pod));
            }
            for container in &spec.containers {
                let own = RestartPolicy::parse(container.restart_policy.as_deref());
                let spec = Arc::new(container.clone());
                containers.push(Planned { role: Role::Main, spec, restart: own.unwrap_or(of_pod) });
            }
            for container in spec.ephemeral_containers.iter().flatten() {
                let spec = Arc::new(ephemeral(container));
                containers.push(Planned { role: Role::Ephemeral, spec, restart: RestartPolicy::Never });
            }
        }
        let qos = resources::pod_qos(&pod);
        Self { pod, containers, qos }
    }

    pub(crate) fn of_role(&self, role: Role) -> impl Iterator<Item = &Planned> {
        self.containers.iter().filter(move |container| container.role == role)
    }

    /// Init containers and sidecars in the order of the specification.
    pub(crate) fn inits(&self) -> impl Iterator<Item = &Planned> {
        self.containers.iter().filter(|container| matches!(container.role, Role::Init | Role::Sidecar))
    }

    pub(crate) fn container(&self, name: &str) -> Option<&Planned> {
        self.containers.iter().find(|container| container.name() == name)
    }

    pub(crate) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub(crate) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// `name_namespace(uid)`, as messages identify a pod.
    pub(crate) fn label(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    pub(crate) fn host_network(&self) -> bool {
        self.spec().is_some_and(|spec| spec.host_network == Some(true))
    }

    /// The pod's own grace period in seconds.
    pub(crate) fn grace(&self) -> i64 {
        self.spec().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30)
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Phase the API knows.
    pub(crate) fn phase(&self) -> &str {
        self.pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    /// Whether the API already calls the pod ended; that is never taken back.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// When the pod's time is up by `activeDeadlineSeconds`.
    pub(crate) fn deadline(&self) -> Option<i64> {
        let seconds = self.spec()?.active_deadline_seconds?;
        let start = self.pod.status.as_ref()?.start_time.as_ref()?;
        Some(time::nanos(start).saturating_add(time::seconds(seconds)))
    }
}

fn init(container: &Container, of_pod: RestartPolicy) -> Planned {
    let spec = Arc::new(container.clone());
    match RestartPolicy::parse(container.restart_policy.as_deref()) {
        Some(RestartPolicy::Always) => Planned { role: Role::Sidecar, spec, restart: RestartPolicy::Always },
        Some(own) => Planned { role: Role::Init, spec, restart: own },
        // An init container that succeeded is done, whatever the pod's policy says.
        None if of_pod == RestartPolicy::Always => {
            Planned { role: Role::Init, spec, restart: RestartPolicy::OnFailure }
        }
        None => Planned { role: Role::Init, spec, restart: of_pod },
    }
}

/// The same container in the shape of the others; the fields have the same names.
fn ephemeral(container: &EphemeralContainer) -> Container {
    Container {
        args: container.args.clone(),
        command: container.command.clone(),
        env: container.env.clone(),
        env_from: container.env_from.clone(),
        image: container.image.clone(),
        image_pull_policy: container.image_pull_policy.clone(),
        name: container.name.clone(),
        security_context: container.security_context.clone(),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: container.termination_message_path.clone(),
        termination_message_policy: container.termination_message_policy.clone(),
        tty: container.tty,
        volume_mounts: container.volume_mounts.clone(),
        working_dir: container.working_dir.clone(),
        ..Container::default()
    }
}
