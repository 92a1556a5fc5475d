//! Writes that several controllers make in the same way.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::condition::TRUE;
use super::error::{ControllerError, gone_is_fine};
use super::owner::owners_patch;

/// Replaces the owners of the object that `object` describes, if it still is as described. An object
/// that is gone needs no owners.
pub(crate) async fn replace_owners<K>(
    api: &Api<K>,
    object: &ObjectMeta,
    owners: &[OwnerReference],
) -> Result<(), ControllerError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let name = object.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(owners_patch(object, owners));
    let patched = api.patch_metadata(name, &PatchParams::default(), &patch).await;
    let what = format!("{} {name}", K::kind(&()));
    gone_is_fine(patched).map(drop).map_err(ControllerError::api("change the owners of", what))
}

/// Makes sure that the owner a copy shows is still the one on the server and stays: an owner that is
/// being deleted must not adopt anything.
pub(crate) async fn check_owner_stays<K>(api: &Api<K>, owner: &K) -> Result<(), ControllerError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let name = owner.meta().name.as_deref().unwrap_or_default();
    let what = format!("{} {name}", K::kind(&()));
    let fresh = api.get_metadata(name).await.map_err(ControllerError::api("look at", &what))?;
    if fresh.metadata.uid != owner.meta().uid || fresh.metadata.deletion_timestamp.is_some() {
        return Err(ControllerError::Overtaken { object: what });
    }
    Ok(())
}

/// The server's own words about a failure, without the client's wrapping.
pub(crate) fn words_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The condition by which a pod says that it ends because of something outside of it.
pub(crate) fn disruption_target(reason: &str, message: &str, now: Timestamp) -> Value {
    json!({
        "type": "DisruptionTarget",
        "status": TRUE,
        "reason": reason,
        "message": message,
        "lastTransitionTime": Time(now),
    })
}
