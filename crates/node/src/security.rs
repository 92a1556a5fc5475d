//! What `securityContext` of pod and container come to together; the container's word counts more.

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext as ContainerContext};
use sampan_runtime::{SeccompProfile, SecurityContext};

/// The effective security settings of a container.
///
/// # Errors
/// A sentence for the user (`CreateContainerConfigError`) when the pod demands what the image does not give.
pub(crate) fn context(pod: &Pod, container: &Container, image_user: &str) -> Result<SecurityContext, String> {
    let no_pod = PodSecurityContext::default();
    let no_container = ContainerContext::default();
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).unwrap_or(&no_pod);
    let own = container.security_context.as_ref().unwrap_or(&no_container);

    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(pod, container, run_as_user, image_user)?;
    }
    let capabilities = |list: Option<&Vec<String>>| -> Vec<String> {
        list.into_iter()
            .flatten()
            .map(|name| name.to_uppercase().trim_start_matches("CAP_").to_string())
            .collect()
    };
    let privileged = own.privileged == Some(true);
    Ok(SecurityContext {
        privileged,
        run_as_user: run_as_user.map(id).transpose()?,
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(id).transpose()?,
        supplemental_groups: groups(of_pod)?,
        image_user: image_user.to_string(),
        add_capabilities: capabilities(own.capabilities.as_ref().and_then(|list| list.add.as_ref())),
        drop_capabilities: capabilities(own.capabilities.as_ref().and_then(|list| list.drop.as_ref())),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        seccomp: seccomp(own, of_pod)?,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn id(number: i64) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| format!("{number} is not a user or group id"))
}

fn groups(of_pod: &PodSecurityContext) -> Result<Vec<u32>, String> {
    of_pod.supplemental_groups.iter().flatten().chain(&of_pod.fs_group).map(|group| id(*group)).collect()
}

/// Upstream's rule (`verifyRunAsNonRoot`): a number is needed to be sure, and it must not be zero.
fn verify_non_root(
    pod: &Pod,
    container: &Container,
    run_as_user: Option<i64>,
    image_user: &str,
) -> Result<(), String> {
    let whose = || {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        format!("(pod: \"{name}_{namespace}({uid})\", container: {})", container.name)
    };
    if let Some(user) = run_as_user {
        return match user {
            0 => Err(format!("container's runAsUser breaks non-root policy {}", whose())),
            _ => Ok(()),
        };
    }
    let user = image_user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        _ if user.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {}", whose()))
        }
        Ok(0) => Err(format!("container has runAsNonRoot and image will run as root {}", whose())),
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {}",
            whose()
        )),
    }
}

/// Without a profile a container runs unconfined upstream; the default profile costs nothing here and every image the
/// world publishes runs under it in Docker, so that it is ours.
fn seccomp(own: &ContainerContext, of_pod: &PodSecurityContext) -> Result<SeccompProfile, String> {
    if own.privileged == Some(true) {
        return Ok(SeccompProfile::Unconfined);
    }
    let Some(profile) = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()) else {
        return Ok(SeccompProfile::RuntimeDefault);
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(SeccompProfile::RuntimeDefault),
        "Unconfined" => Ok(SeccompProfile::Unconfined),
        "Localhost" => match profile.localhost_profile.as_deref() {
            Some(path) => Ok(SeccompProfile::Localhost(path.into())),
            None => Err("localhostProfile must be set if seccompProfile type is Localhost.".to_string()),
        },
        other => Err(format!("unknown seccompProfile type {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Capabilities, PodSpec};

    fn resolve(
        of_pod: PodSecurityContext,
        own: ContainerContext,
        user: &str,
    ) -> Result<SecurityContext, String> {
        let pod = Pod {
            spec: Some(PodSpec { security_context: Some(of_pod), ..PodSpec::default() }),
            ..Pod::default()
        };
        let container = Container { name: "c".into(), security_context: Some(own), ..Container::default() };
        context(&pod, &container, user)
    }

    #[test]
    fn the_container_wins() {
        let of_pod = PodSecurityContext {
            run_as_user: Some(1),
            run_as_group: Some(2),
            fs_group: Some(3),
            supplemental_groups: Some(vec![4]),
            ..PodSecurityContext::default()
        };
        let own = ContainerContext {
            run_as_user: Some(9),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".into(), "cap_sys_time".into()]),
                drop: None,
            }),
            ..ContainerContext::default()
        };
        let context = resolve(of_pod, own, "").unwrap_or_default();
        assert_eq!((context.run_as_user, context.run_as_group), (Some(9), Some(2)));
        assert_eq!(context.supplemental_groups, [4, 3]);
        assert!(context.no_new_privs);
        assert!(context.add_capabilities.contains(&"SYS_TIME".to_string()));
    }

    #[test]
    fn non_root() {
        let must = || PodSecurityContext { run_as_non_root: Some(true), ..PodSecurityContext::default() };
        let as_user = |user| ContainerContext { run_as_user: user, ..ContainerContext::default() };
        let rows = [
            (None, "", false),
            (None, "0", false),
            (None, "root", false),
            (None, "nobody", false),
            (None, "65534:0", true),
            (Some(0), "1000", false),
            (Some(5), "", true),
        ];
        for (user, image_user, fine) in rows {
            assert_eq!(resolve(must(), as_user(user), image_user).is_ok(), fine, "{user:?} {image_user}");
        }
    }
}
