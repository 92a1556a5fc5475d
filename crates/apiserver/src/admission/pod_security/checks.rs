//! The Pod Security Standards as a table of checks.
//!
//! A check is a function of a pod and of the minor version of the standards. The order of the table is upstream's: the
//! checks of the baseline, then those of the restricted level, each by name.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::labels::{Level, Standard};

/// A pod or the template of one.
pub(super) struct Subject<'a> {
    annotations: &'a Value,
    spec: &'a Value,
}

/// What is wrong: `reason (detail)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    reason: &'static str,
    detail: String,
}

/// Everything that is wrong with a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Violations(Vec<Violation>);

impl Violations {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The reasons without details: what pods have in common.
    pub(super) fn reasons(&self) -> String {
        let reasons: Vec<&str> = self.0.iter().map(|violation| violation.reason).collect();
        reasons.join(", ")
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} ({})", violation.reason, violation.detail)?;
        }
        Ok(())
    }
}

struct Check {
    level: Level,
    /// First minor version with the check.
    since: u32,
    /// The restricted level has a stricter check of its own from this minor version on.
    replaced: Option<u32>,
    run: fn(&Subject<'_>, u32) -> Option<Violation>,
}

const fn baseline(since: u32, run: fn(&Subject<'_>, u32) -> Option<Violation>) -> Check {
    Check { level: Level::Baseline, since, replaced: None, run }
}

const fn restricted(since: u32, run: fn(&Subject<'_>, u32) -> Option<Violation>) -> Check {
    Check { level: Level::Restricted, since, replaced: None, run }
}

const CHECKS: &[Check] = &[
    baseline(0, app_armor_profile),
    Check { replaced: Some(22), ..baseline(0, capabilities_baseline) },
    baseline(0, host_namespaces),
    Check { replaced: Some(0), ..baseline(0, host_path_volumes) },
    baseline(0, host_ports),
    baseline(34, host_probes),
    baseline(0, privileged),
    Check { replaced: Some(35), ..baseline(0, proc_mount_baseline) },
    baseline(0, se_linux_options),
    Check { replaced: Some(19), ..baseline(0, seccomp_baseline) },
    baseline(0, sysctls),
    baseline(0, windows_host_process),
    restricted(8, allow_privilege_escalation),
    restricted(22, capabilities_restricted),
    restricted(35, proc_mount),
    restricted(0, restricted_volumes),
    restricted(0, run_as_non_root),
    restricted(23, run_as_user),
    restricted(19, seccomp_restricted),
];

/// What a pod does that a standard does not allow.
pub(super) fn violations(standard: Standard, subject: &Subject<'_>) -> Violations {
    let minor = standard.version.minor();
    let holds = |check: &&Check| {
        let replaced =
            check.replaced.is_some_and(|from| standard.level == Level::Restricted && minor >= from);
        check.level <= standard.level && check.since <= minor && !replaced
    };
    if standard.level == Level::Privileged {
        return Violations::default();
    }
    Violations(CHECKS.iter().filter(holds).filter_map(|check| (check.run)(subject, minor)).collect())
}

impl<'a> Subject<'a> {
    /// The parts of a pod or template that are looked at.
    pub(super) fn of(pod: &'a Value) -> Self {
        Self { annotations: &pod["metadata"]["annotations"], spec: &pod["spec"] }
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |field| spec[field].as_array().into_iter().flatten())
    }

    /// Containers for which something holds, by name.
    fn named(&self, bad: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).map(|c| text(&c["name"])).collect()
    }

    fn context(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Root inside is nobody outside.
    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `"a", "b"`.
fn quoted<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    names.join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn container_list(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: who set something. `None` when nobody did.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names) {
        (false, []) => None,
        (true, []) => Some("pod".to_owned()),
        (false, names) => Some(container_list(names)),
        (true, names) => Some(format!("pod and {}", container_list(names))),
    }
}

fn violation(reason: &'static str, detail: String) -> Option<Violation> {
    Some(Violation { reason, detail })
}

// The baseline.

fn app_armor_profile(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let profile = |context: &Value| text(&context["appArmorProfile"]["type"]).to_owned();
    let bad = |kind: &str| !matches!(kind, "" | "RuntimeDefault" | "Localhost");
    let mut values: BTreeSet<String> = BTreeSet::new();
    let of_pod = profile(pod.context());
    if bad(&of_pod) {
        values.insert(of_pod.clone());
    }
    let names = pod.named(|c| bad(&profile(&c["securityContext"])));
    values.extend(pod.containers().map(|c| profile(&c["securityContext"])).filter(|kind| bad(kind)));
    let mut details = Vec::new();
    if let Some(setters) = setters(bad(&of_pod), &names) {
        details.push(format!("{setters} must not set AppArmor profile type to {}", quoted(&values)));
    }
    let mut count = values.len();
    for (key, value) in pod.annotations.as_object().into_iter().flatten() {
        let value = text(value);
        let allowed = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        if key.starts_with(ANNOTATION) && !allowed {
            details.push(format!("annotation {key}=\"{value}\""));
            count += 1;
        }
    }
    if details.is_empty() {
        return None;
    }
    violation(plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count), details.join(", "))
}

const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn added(container: &Value) -> impl Iterator<Item = &str> {
    items(&container["securityContext"]["capabilities"]["add"]).filter_map(Value::as_str)
}

/// Who adds which capabilities that are not allowed.
fn too_capable(pod: &Subject<'_>, allowed: &[&str]) -> Option<String> {
    let names = pod.named(|c| added(c).any(|capability| !allowed.contains(&capability)));
    let added: BTreeSet<&str> =
        pod.containers().flat_map(added).filter(|capability| !allowed.contains(capability)).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            container_list(&names),
            quoted(added)
        )
    })
}

fn capabilities_baseline(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    violation("non-default capabilities", too_capable(pod, BASELINE_CAPABILITIES)?)
}

fn host_namespaces(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod.spec[*field] == true);
    let set: Vec<String> = set.map(|field| format!("{field}=true")).collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn host_path_volumes(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    let volumes = items(&pod.spec["volumes"]).filter(|volume| !volume["hostPath"].is_null());
    let names: Vec<&str> = volumes.map(|volume| text(&volume["name"])).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names)))
}

fn host_ports(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    let taken = |container: &Value| -> Vec<String> {
        let ports = items(&container["ports"]).filter_map(|port| port["hostPort"].as_i64());
        ports.filter(|port| *port != 0).map(|port| port.to_string()).collect()
    };
    let names = pod.named(|c| !taken(c).is_empty());
    let ports: BTreeSet<String> = pod.containers().flat_map(taken).collect();
    if names.is_empty() {
        return None;
    }
    let ports: Vec<String> = ports.into_iter().collect();
    violation(
        "hostPort",
        format!(
            "{} {} {} {}",
            container_list(&names),
            plural("uses", "use", names.len()),
            plural("hostPort", "hostPorts", ports.len()),
            ports.join(", ")
        ),
    )
}

fn host_probes(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    const HANDLERS: &[&str] =
        &["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let hosts = |container: &Value| -> Vec<String> {
        let handlers = HANDLERS.iter().filter_map(|pointer| container.pointer(pointer));
        let hosts = handlers.flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]]);
        hosts.map(text).filter(|host| !host.is_empty()).map(str::to_owned).collect()
    };
    let names: BTreeSet<&str> = pod.named(|c| !hosts(c).is_empty()).into_iter().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let hosts: BTreeSet<String> = pod.containers().flat_map(hosts).collect();
    if names.is_empty() {
        return None;
    }
    violation(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            container_list(&names),
            plural("uses", "use", names.len()),
            plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
            quoted(hosts)
        ),
    )
}

fn privileged(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    let names = pod.named(|c| c["securityContext"]["privileged"] == true);
    let setters = setters(false, &names)?;
    violation("privileged", format!("{setters} must not set securityContext.privileged=true"))
}

fn proc_mount_baseline(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    // In a user namespace of its own, an unmasked /proc shows nothing of the host (KEP-127).
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    proc_mount(pod, minor)
}

fn proc_mount(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    let mount = |c: &Value| text(&c["securityContext"]["procMount"]).to_owned();
    let bad = |mount: &str| !matches!(mount, "" | "Default");
    let names = pod.named(|c| bad(&mount(c)));
    let values: BTreeSet<String> = pod.containers().map(mount).filter(|mount| bad(mount)).collect();
    let setters = setters(false, &names)?;
    violation("procMount", format!("{setters} must not set securityContext.procMount to {}", quoted(values)))
}

fn se_linux_options(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    let bad_type = |options: &Value| {
        let kind = text(&options["type"]);
        let known = matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || kind == "container_engine_t" && minor >= 31;
        !known
    };
    let bad = |options: &Value| {
        bad_type(options) || !text(&options["user"]).is_empty() || !text(&options["role"]).is_empty()
    };
    let of_pod = &pod.context()["seLinuxOptions"];
    let names = pod.named(|c| bad(&c["securityContext"]["seLinuxOptions"]));
    let setters = setters(bad(of_pod), &names)?;
    let all: Vec<&Value> =
        pod.containers().map(|c| &c["securityContext"]["seLinuxOptions"]).chain([of_pod]).collect();
    let types: BTreeSet<&str> =
        all.iter().filter(|options| bad_type(options)).map(|options| text(&options["type"])).collect();
    let mut faults = Vec::new();
    if !types.is_empty() {
        faults.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    for field in ["user", "role"] {
        if all.iter().any(|options| !text(&options[field]).is_empty()) {
            faults.push(format!("{field} may not be set"));
        }
    }
    violation(
        "seLinuxOptions",
        format!("{setters} set forbidden securityContext.seLinuxOptions: {}", faults.join("; ")),
    )
}

/// The profile that somebody set, if it is none of the allowed ones.
fn bad_seccomp(context: &Value) -> Option<&str> {
    let profile = &context["seccompProfile"];
    let kind = text(&profile["type"]);
    (!profile.is_null() && !matches!(kind, "RuntimeDefault" | "Localhost")).then_some(kind)
}

fn forbidden_seccomp(pod: &Subject<'_>) -> Option<Violation> {
    let of_pod = bad_seccomp(pod.context());
    let names = pod.named(|c| bad_seccomp(&c["securityContext"]).is_some());
    let setters = setters(of_pod.is_some(), &names)?;
    let values: BTreeSet<&str> =
        pod.containers().filter_map(|c| bad_seccomp(&c["securityContext"])).chain(of_pod).collect();
    violation(
        "seccompProfile",
        format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values)),
    )
}

fn seccomp_baseline(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    if minor >= 19 {
        return forbidden_seccomp(pod);
    }
    let keys = pod
        .containers()
        .map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", text(&c["name"])))
        .chain(["seccomp.security.alpha.kubernetes.io/pod".to_owned()]);
    let bad: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.annotations[&key].as_str()?;
            let allowed =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!allowed).then(|| format!("{key}=\"{value}\""))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<String> = bad.into_iter().collect();
    violation(
        "seccompProfile",
        format!("forbidden {} {}", plural("annotation", "annotations", bad.len()), bad.join(", ")),
    )
}

/// Safe sysctls and the version since which they are known to be.
const SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    let safe = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && *since <= minor);
    let names = items(&pod.context()["sysctls"]).map(|sysctl| text(&sysctl["name"]));
    let bad: Vec<&str> = names.filter(|name| !safe(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    let set = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let names = pod.named(|c| set(&c["securityContext"]));
    let setters = setters(set(pod.context()), &names)?;
    violation(
        "hostProcess",
        format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

// The restricted level.

fn allow_privilege_escalation(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    let names = pod.named(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    let setters = setters(false, &names)?;
    violation(
        "allowPrivilegeEscalation != false",
        format!("{setters} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn capabilities_restricted(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    let keeps = |c: &Value| !items(&c["securityContext"]["capabilities"]["drop"]).any(|d| *d == "ALL");
    let names = pod.named(keeps);
    let keeping = setters(false, &names)
        .map(|setters| format!("{setters} must set securityContext.capabilities.drop=[\"ALL\"]"));
    let details: Vec<String> = keeping.into_iter().chain(too_capable(pod, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn restricted_volumes(pod: &Subject<'_>, _: u32) -> Option<Violation> {
    const ALLOWED: &[&str] = &[
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind = |volume: &Value| -> Option<String> {
        let mut fields = volume.as_object().into_iter().flatten();
        let kind = fields.find(|(field, value)| field.as_str() != "name" && !value.is_null());
        let kind = kind.map_or("unknown", |(field, _)| field.as_str());
        (!ALLOWED.contains(&kind)).then(|| kind.to_owned())
    };
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in items(&pod.spec["volumes"]) {
        if let Some(kind) = kind(volume) {
            names.push(text(&volume["name"]));
            kinds.insert(kind);
        }
    }
    if names.is_empty() {
        return None;
    }
    violation(
        "restricted volume types",
        format!(
            "{} {} {} restricted volume {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural("type", "types", kinds.len()),
            quoted(kinds)
        ),
    )
}

fn run_as_non_root(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    let of_pod = &pod.context()["runAsNonRoot"];
    let of = |c: &Value| c["securityContext"]["runAsNonRoot"].as_bool();
    let explicit = pod.named(|c| of(c) == Some(false));
    if let Some(setters) = setters(*of_pod == false, &explicit) {
        return violation(REASON, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    let implicit = pod.named(|c| of(c).is_none() && *of_pod != true);
    let names = setters(false, &implicit)?;
    violation(REASON, format!("pod or {names} must set securityContext.runAsNonRoot=true"))
}

fn run_as_user(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    let names = pod.named(|c| c["securityContext"]["runAsUser"] == 0);
    let setters = setters(pod.context()["runAsUser"] == 0, &names)?;
    violation("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

fn seccomp_restricted(pod: &Subject<'_>, minor: u32) -> Option<Violation> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    if let Some(forbidden) = forbidden_seccomp(pod) {
        return Some(forbidden);
    }
    let of_pod = !pod.context()["seccompProfile"].is_null();
    let silent = pod.named(|c| !of_pod && c["securityContext"]["seccompProfile"].is_null());
    let names = setters(false, &silent)?;
    violation(
        "seccompProfile",
        format!(
            "pod or {names} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::labels::Version;
    use super::*;

    fn check(level: Level, minor: Option<u32>, pod: &Value) -> String {
        let version = minor.map_or(Version::Latest, Version::Minor);
        violations(Standard { level, version }, &Subject::of(pod)).to_string()
    }

    fn container(context: Value) -> Value {
        json!({"spec": {"containers": [{"name": "a", "securityContext": context}]}})
    }

    #[test]
    fn a_plain_pod() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(check(Level::Privileged, None, &pod), "");
        assert_eq!(check(Level::Baseline, None, &pod), "");
        assert_eq!(
            check(Level::Restricted, None, &pod),
            "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set \
             securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"a\", \"b\" must \
             set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or containers \"a\", \"b\" \
             must set securityContext.runAsNonRoot=true), seccompProfile (pod or containers \"a\", \"b\" must set \
             securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let good = json!({"spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            }}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }});
        assert_eq!(check(Level::Restricted, None, &good), "");
    }

    #[test]
    fn the_baseline() {
        let spec = |spec: Value| json!({"spec": spec});
        let rows = [
            (
                spec(json!({"hostNetwork": true, "hostIPC": true})),
                "host namespaces (hostNetwork=true, hostIPC=true)",
            ),
            (
                container(json!({"privileged": true})),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                container(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "NET_ADMIN"]}})),
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\", \"SYS_ADMIN\" in \
                 securityContext.capabilities.add)",
            ),
            (
                spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
                "hostPath volumes (volume \"v\")",
            ),
            (
                spec(
                    json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}, {}]}]}),
                ),
                "hostPort (container \"a\" uses hostPorts 443, 80)",
            ),
            (
                spec(
                    json!({"initContainers": [{"name": "i", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]}),
                ),
                "probe or lifecycle host (container \"i\" uses probe or lifecycle host \"10.0.0.1\")",
            ),
            (
                container(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                spec(json!({
                    "securityContext": {"seLinuxOptions": {"type": "x_t", "user": "u"}}, "containers": [{"name": "a"}],
                })),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x_t\"; user may not be set)",
            ),
            (
                container(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                spec(
                    json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
                ),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                container(json!({"windowsOptions": {"hostProcess": true}})),
                "hostProcess (container \"a\" must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                container(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
            ),
        ];
        for (pod, expected) in rows {
            assert_eq!(check(Level::Baseline, None, &pod), expected);
        }
    }

    #[test]
    fn versions_differ() {
        let good = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true});
        let hidden = {
            let mut pod = container(json!({"procMount": "Unmasked"}));
            pod["spec"]["hostUsers"] = false.into();
            pod
        };
        let tcp =
            json!({"spec": {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_keepalive_time"}]}}});
        let probe =
            json!({"spec": {"containers": [{"name": "a", "startupProbe": {"tcpSocket": {"host": "h"}}}]}});
        let old_seccomp = json!({
            "metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}},
            "spec": {"containers": []},
        });
        let rows = [
            (Level::Restricted, 18, container(good.clone()), true),
            (Level::Restricted, 19, container(good), false),
            (Level::Baseline, 34, hidden.clone(), false),
            (Level::Baseline, 35, hidden, true),
            (Level::Baseline, 28, tcp.clone(), false),
            (Level::Baseline, 29, tcp, true),
            (Level::Baseline, 33, probe.clone(), true),
            (Level::Baseline, 34, probe, false),
            (Level::Baseline, 18, old_seccomp.clone(), false),
            (Level::Baseline, 19, old_seccomp, true),
        ];
        for (level, minor, pod, allowed) in rows {
            let found = check(level, Some(minor), &pod);
            assert_eq!(found.is_empty(), allowed, "v1.{minor} {level:?}: {found}");
        }
    }

    #[test]
    fn the_restricted_level_replaces_checks() {
        let mut pod = container(json!({
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "seccompProfile": {"type": "Localhost"},
        }));
        pod["spec"]["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "n", "nfs": {}}]);
        assert_eq!(
            check(Level::Restricted, None, &pod),
            "unrestricted capabilities (container \"a\" must not include \"SYS_ADMIN\" in \
             securityContext.capabilities.add), restricted volume types (volumes \"v\", \"n\" use restricted volume \
             types \"hostPath\", \"nfs\"), runAsUser=0 (container \"a\" must not set runAsUser=0)"
        );
    }
}
