//! Security contexts and host namespaces.

use serde_json::Value;

use super::super::json::{is_true, list, text};
use super::super::rules::{in_range, one_of, optional_one_of};
use crate::field::{Errors, Path};

/// User and group numbers the kernel takes.
const MAX_ID: i64 = i32::MAX as i64;

/// Checks the security context and the host namespaces of a pod's spec.
pub(super) fn validate_pod(errors: &mut Errors, path: &Path, spec: &Value) {
    if is_true(&spec["shareProcessNamespace"]) && is_true(&spec["hostPID"]) {
        errors.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if spec["hostUsers"] == Value::Bool(false) {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            if is_true(&spec[field]) {
                errors.forbidden(
                    &path.child(field),
                    format!("when `hostUsers` is false, `{field}` must not be true"),
                );
            }
        }
    }
    let path = path.child("securityContext");
    let context = &spec["securityContext"];
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        in_range(errors, &path.child(field), &context[field], 0, MAX_ID);
    }
    for (index, group) in list(&context["supplementalGroups"]).iter().enumerate() {
        in_range(errors, &path.child("supplementalGroups").index(index), group, 0, MAX_ID);
    }
    for (field, words) in [
        ("fsGroupChangePolicy", &["OnRootMismatch", "Always"]),
        ("supplementalGroupsPolicy", &["Merge", "Strict"]),
    ] {
        optional_one_of(errors, &path.child(field), &context[field], words);
    }
    validate_sysctls(errors, &path.child("sysctls"), &context["sysctls"]);
    validate_profiles(errors, &path, context);
}

/// Checks the security context of a container.
pub(super) fn validate_container(errors: &mut Errors, path: &Path, context: &Value) {
    for field in ["runAsUser", "runAsGroup"] {
        in_range(errors, &path.child(field), &context[field], 0, MAX_ID);
    }
    optional_one_of(errors, &path.child("procMount"), &context["procMount"], &["Default", "Unmasked"]);
    if context["allowPrivilegeEscalation"] == Value::Bool(false) {
        if is_true(&context["privileged"]) {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if list(&context["capabilities"]["add"])
            .iter()
            .any(|c| matches!(text(c), "SYS_ADMIN" | "CAP_SYS_ADMIN"))
        {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    validate_profiles(errors, path, context);
}

fn validate_profiles(errors: &mut Errors, path: &Path, context: &Value) {
    for field in ["seccompProfile", "appArmorProfile"] {
        let (path, profile) = (path.child(field), &context[field]);
        if profile.is_null() {
            continue;
        }
        one_of(errors, &path.child("type"), &profile["type"], &["Localhost", "RuntimeDefault", "Unconfined"]);
        let local = text(&profile["localhostProfile"]);
        let path = path.child("localhostProfile");
        match (text(&profile["type"]), local) {
            ("Localhost", "") => errors.required(&path, "must be set when seccomp type is Localhost"),
            ("Localhost", local) if field == "seccompProfile" => {
                super::super::rules::descending_path(errors, &path, local);
            }
            ("Localhost", _) | (_, "") => {}
            (_, local) => errors.invalid(&path, local, "can only be set when seccomp type is Localhost"),
        }
    }
}

fn validate_sysctls(errors: &mut Errors, path: &Path, sysctls: &Value) {
    let mut seen = Vec::new();
    for (index, sysctl) in list(sysctls).iter().enumerate() {
        let path = path.index(index).child("name");
        let name = text(&sysctl["name"]);
        let part = |p: &str| {
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let bytes = p.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        };
        if name.is_empty() {
            errors.required(&path, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(part) {
            errors.invalid(
                &path,
                name,
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if seen.contains(&name) {
            errors.duplicate(&path, name);
        }
        seen.push(name);
    }
}
