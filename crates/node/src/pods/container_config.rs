//! From a container of the API to the configuration the runtime needs: command, environment, mounts, limits, rights.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sampan_image::Image;
use sampan_runtime::{ContainerConfig, ContainerMetadata, Mount, MountPropagation};

use super::model::{Planned, PodModel};
use super::observed::BACKOFF_BASE;
use super::operations::StartOrder;
use super::termination_message;
use crate::context::Context;
use crate::env::{self, EnvInput};
use crate::error::NodeError;
use crate::sources;
use crate::{resources, security, volumes};

/// Puts a container's configuration together.
///
/// # Errors
/// What makes `CreateContainerConfigError`: something the pod names is missing or contradicts the image.
pub(crate) async fn build(
    context: &Context,
    model: &PodModel,
    planned: &Planned,
    image: &Image,
    order: &StartOrder,
) -> Result<ContainerConfig, NodeError> {
    let spec = &planned.spec;
    let empty = Default::default();
    let pod_spec = model.spec().unwrap_or(&empty);
    let env = environment(context, model, planned, image, order).await?;
    let security = security::context(&model.pod, spec, &image.config.user).map_err(NodeError::Unusable)?;
    let mut mounts = volumes::mounts(&context.config, &model.pod, spec, &env)?;
    mounts.extend(pod_files(context, model, planned, order).await?);
    mounts.push(termination_mount(context, model, planned, order).await?);
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: planned.name().to_string(), attempt: order.attempt },
        image: spec.image.clone().unwrap_or_default(),
        image_id: image.id.clone(),
        args: arguments(planned, image, &env)?,
        working_dir: working_dir(planned, image),
        env,
        mounts,
        log_path: PathBuf::from(planned.name()).join(format!("{}.log", order.attempt)),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        resources: resources::of_container(pod_spec, spec, context.machine.memory),
        security,
        stop_signal: stop_signal(planned, image),
        log_max_bytes: context.config.log_max_bytes,
        log_max_files: context.config.log_max_files,
        annotations: BTreeMap::from([(BACKOFF_BASE.to_string(), order.backoff_base.to_string())]),
    })
}

/// Image environment first, then what the pod says.
async fn environment(
    context: &Context,
    model: &PodModel,
    planned: &Planned,
    image: &Image,
    order: &StartOrder,
) -> Result<Vec<(String, String)>, NodeError> {
    let links = model.spec().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    context.services.synced().await;
    let services = env::service_variables(&context.services.list(), model.namespace(), links);
    let contents =
        sources::read_all(context, sources::of_container(model.namespace(), &planned.spec)).await?;
    let own = env::variables(&EnvInput {
        pod: &model.pod,
        container: &planned.spec,
        facts: &order.facts,
        contents: &contents,
        services: &services,
        allocatable: &context.machine.allocatable,
    })
    .map_err(NodeError::Unusable)?;
    let of_image = image.config.env.iter().map(|entry| match entry.split_once('=') {
        Some((name, value)) => (name.to_string(), value.to_string()),
        None => (entry.clone(), String::new()),
    });
    let overridden = |name: &str| own.iter().any(|(own, _)| own == name);
    let mut all: Vec<(String, String)> = of_image.filter(|(name, _)| !overridden(name)).collect();
    if !overridden("HOSTNAME") && !all.iter().any(|(name, _)| name == "HOSTNAME") {
        let names = crate::hosts::names(&model.pod, &context.config.name, &context.config.cluster_domain);
        all.push(("HOSTNAME".to_string(), names.map_err(NodeError::Unusable)?.hostname));
    }
    all.extend(own);
    Ok(all)
}

/// `command` replaces the image's entrypoint and with it the image's command; `args` replaces the command.
fn arguments(planned: &Planned, image: &Image, env: &[(String, String)]) -> Result<Vec<String>, NodeError> {
    let lookup =
        |name: &str| env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let expand =
        |list: &[String]| -> Vec<String> { list.iter().map(|text| env::expand(text, &lookup)).collect() };
    let command = planned.spec.command.as_deref().unwrap_or_default();
    let args = planned.spec.args.as_deref().unwrap_or_default();
    let mut all = if command.is_empty() { image.config.entrypoint.clone() } else { expand(command) };
    if !args.is_empty() {
        all.extend(expand(args));
    } else if command.is_empty() {
        all.extend(image.config.cmd.iter().cloned());
    }
    match all.is_empty() {
        true => Err(NodeError::Unusable("no command specified".to_string())),
        false => Ok(all),
    }
}

fn working_dir(planned: &Planned, image: &Image) -> String {
    match planned.spec.working_dir.as_deref() {
        Some(path) if !path.is_empty() => path.to_string(),
        _ => image.config.working_dir.clone(),
    }
}

fn stop_signal(planned: &Planned, image: &Image) -> String {
    let own = planned.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone());
    own.or_else(|| image.config.stop_signal.clone()).unwrap_or_default()
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, unless the container mounts something there itself.
async fn pod_files(
    context: &Context,
    model: &PodModel,
    planned: &Planned,
    order: &StartOrder,
) -> Result<Vec<Mount>, NodeError> {
    let files = volumes::pod_files(context, &model.pod, &order.facts).await?;
    let is_taken = |path: &str| {
        planned
            .spec
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.mount_path.trim_end_matches('/') == path)
    };
    let read_only =
        planned.spec.security_context.as_ref().is_some_and(|own| own.read_only_root_filesystem == Some(true));
    Ok(files
        .into_iter()
        .filter(|(path, _)| !is_taken(path))
        .map(|(path, file)| Mount {
            container_path: path.to_string(),
            host_path: file,
            readonly: read_only,
            propagation: MountPropagation::Private,
        })
        .collect())
}

async fn termination_mount(
    context: &Context,
    model: &PodModel,
    planned: &Planned,
    order: &StartOrder,
) -> Result<Mount, NodeError> {
    let file =
        termination_message::prepare(&context.config, model.uid(), planned.name(), order.attempt).await?;
    Ok(Mount {
        container_path: termination_message::container_path(planned).to_string(),
        host_path: file,
        readonly: false,
        propagation: MountPropagation::Private,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::model::{RestartPolicy, Role};
    use k8s_openapi::api::core::v1::Container;
    use sampan_image::ImageConfig;
    use std::sync::Arc;

    fn merged(command: &[&str], args: &[&str]) -> Option<String> {
        let strings = |list: &[&str]| -> Option<Vec<String>> {
            Some(list.iter().map(|text| text.to_string()).collect())
        };
        let spec = Container { command: strings(command), args: strings(args), ..Container::default() };
        let planned = Planned { role: Role::Main, spec: Arc::new(spec), restart: RestartPolicy::Always };
        let image = Image {
            id: String::new(),
            references: Vec::new(),
            repo_digests: Vec::new(),
            size: 0,
            created: String::new(),
            config: ImageConfig {
                entrypoint: vec!["entry".into()],
                cmd: vec!["cmd".into()],
                ..ImageConfig::default()
            },
        };
        arguments(&planned, &image, &[("A".into(), "1".into())]).ok().map(|all| all.join(" "))
    }

    #[test]
    fn commands_merge_as_documented() {
        for (command, args, expected) in [
            (&[][..], &[][..], "entry cmd"),
            (&["c"], &[], "c"),
            (&[], &["a$(A)"], "entry a1"),
            (&["c"], &["a"], "c a"),
        ] {
            assert_eq!(merged(command, args).as_deref(), Some(expected));
        }
    }
}
