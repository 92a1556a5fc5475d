//! Claims, volumes and attribute classes stay while somebody uses them.
//!
//! Each carries a finalizer for that, put on at admission. This loop takes it off an object that is being deleted and that
//! nobody uses any more, and puts it on an object that came past admission. `plan` knows who uses whom.
//!
//! A copy that lags behind may not know the latest user. So it may say that an object is in use, but before a finalizer goes
//! the server is asked; and the write holds only for the version of the object that was looked at. Upstream's three
//! protection controllers, in one.

mod plan;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Api, ListParams, Patch, PatchParams};
use sampan_client::{Change, Informer, ObjectKey, Queue, Requeue};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::wiring::{Parts, synced};
use plan::{Action, Object, Users, claim_of_volume, claims_of_pod, class_of_volume, classes_of_claim, plan};

/// How many objects are looked at at once.
const WORKERS: usize = 2;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Claim,
    Volume,
    Class,
}

/// Names an object to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key(Kind, ObjectKey);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.0, self.1)
    }
}

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let copies = Copies {
        pods: parts.informers.of::<Pod>(),
        claims: parts.informers.of::<PersistentVolumeClaim>(),
        volumes: parts.informers.of::<PersistentVolume>(),
        classes: parts.informers.of::<VolumeAttributesClass>(),
    };
    let queue: Queue<Key> = Queue::new();
    let waker = Waker { copies: copies.clone(), queue: queue.clone() };
    on_change(parts, &copies.pods, &waker, Waker::pod);
    on_change(parts, &copies.claims, &waker, Waker::claim);
    on_change(parts, &copies.volumes, &waker, Waker::volume);
    on_change(parts, &copies.classes, &waker, |waker, change| waker.add(Kind::Class, &change.key));
    let ready =
        vec![synced(&copies.pods), synced(&copies.claims), synced(&copies.volumes), synced(&copies.classes)];
    let client = |of: &str| parts.client_as(&format!("{of}-protection-controller"));
    let controller = Arc::new(StorageProtection {
        of_claims: client("pvc"),
        of_volumes: client("pv"),
        of_classes: client("volumeattributesclass"),
        copies,
    });
    parts.run("storage-protection", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

fn on_change<K: Send + Sync + 'static>(
    parts: &mut Parts,
    informer: &Informer<K>,
    waker: &Waker,
    wake: fn(&Waker, &Change<K>),
) {
    let waker = waker.clone();
    parts.on_change(informer.subscribe(), move |change| wake(&waker, change));
}

#[derive(Clone)]
struct Copies {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<VolumeAttributesClass>,
}

impl Copies {
    fn object(&self, Key(kind, key): &Key) -> Option<Object> {
        match kind {
            Kind::Claim => self.claims.by_key(key).map(Object::Claim),
            Kind::Volume => self.volumes.by_key(key).map(Object::Volume),
            Kind::Class => self.classes.by_key(key).map(Object::Class),
        }
    }

    fn users(&self, object: &Object) -> Users {
        match object {
            Object::Claim(claim) => {
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                Users { pods: self.pods.list_in(namespace), ..Users::default() }
            }
            Object::Volume(volume) => {
                let claim = claim_of_volume(volume).and_then(|key| self.claims.by_key(&key));
                Users { claims: claim.into_iter().collect(), ..Users::default() }
            }
            Object::Class(_) => {
                Users { claims: self.claims.list(), volumes: self.volumes.list(), ..Users::default() }
            }
        }
    }
}

/// Turns changes of users into looks at what they used. Only an object that is being deleted waits for its users; if the
/// copy does not show that yet, the change that does wakes the object itself.
#[derive(Clone)]
struct Waker {
    copies: Copies,
    queue: Queue<Key>,
}

impl Waker {
    fn add(&self, kind: Kind, key: &ObjectKey) {
        self.queue.add(Key(kind, key.clone()));
    }

    fn add_leaving(&self, kind: Kind, key: ObjectKey) {
        let key = Key(kind, key);
        let object = self.copies.object(&key);
        if object.is_some_and(|object| object.meta().deletion_timestamp.is_some()) {
            self.queue.add(key);
        }
    }

    fn pod(&self, change: &Change<Pod>) {
        for key in change.versions().flat_map(|pod| claims_of_pod(pod)) {
            self.add_leaving(Kind::Claim, key);
        }
    }

    fn claim(&self, change: &Change<PersistentVolumeClaim>) {
        self.add(Kind::Claim, &change.key);
        for claim in change.versions() {
            for class in classes_of_claim(claim) {
                self.add_leaving(Kind::Class, ObjectKey::new("", class));
            }
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            if let Some(volume) = volume {
                self.add_leaving(Kind::Volume, ObjectKey::new("", volume));
            }
        }
    }

    fn volume(&self, change: &Change<PersistentVolume>) {
        self.add(Kind::Volume, &change.key);
        for class in change.versions().filter_map(|volume| class_of_volume(volume)) {
            self.add_leaving(Kind::Class, ObjectKey::new("", class));
        }
    }
}

/// Upstream has a controller, and so an account, for each.
struct StorageProtection {
    of_claims: kube::Client,
    of_volumes: kube::Client,
    of_classes: kube::Client,
    copies: Copies,
}

impl StorageProtection {
    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Requeue, ControllerError> {
        let Some(object) = self.copies.object(&key) else { return Ok(Requeue::No) };
        let mut action = plan(&object, &self.copies.users(&object));
        if matches!(action, Some(Action::Release(_))) {
            action = plan(&object, &self.users(&object).await?);
        }
        if let Some(Action::Protect(finalizers) | Action::Release(finalizers)) = action {
            self.write(&object, &finalizers).await?;
        }
        Ok(Requeue::No)
    }

    fn client_for(&self, object: &Object) -> kube::Client {
        match object {
            Object::Claim(_) => self.of_claims.clone(),
            Object::Volume(_) => self.of_volumes.clone(),
            Object::Class(_) => self.of_classes.clone(),
        }
    }

    /// The users of an object as the server knows them.
    async fn users(&self, object: &Object) -> Result<Users, ControllerError> {
        let client = self.client_for(object);
        match object {
            Object::Claim(claim) => {
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                let pods = list(Api::namespaced(client, namespace)).await?;
                Ok(Users { pods, ..Users::default() })
            }
            Object::Volume(volume) => {
                let Some(key) = claim_of_volume(volume) else { return Ok(Users::default()) };
                let api: Api<PersistentVolumeClaim> = Api::namespaced(client, &key.namespace);
                let claim = api.get_opt(&key.name).await;
                let claim = claim.map_err(ControllerError::api("look for PersistentVolumeClaim", &key))?;
                Ok(Users { claims: claim.into_iter().map(Arc::new).collect(), ..Users::default() })
            }
            Object::Class(_) => Ok(Users {
                claims: list(Api::all(client.clone())).await?,
                volumes: list(Api::all(client)).await?,
                ..Users::default()
            }),
        }
    }

    async fn write(&self, object: &Object, finalizers: &[String]) -> Result<(), ControllerError> {
        let (client, meta) = (self.client_for(object), object.meta());
        match object {
            Object::Claim(_) => {
                let namespace = meta.namespace.as_deref().unwrap_or_default();
                let api: Api<PersistentVolumeClaim> = Api::namespaced(client, namespace);
                set_finalizers(&api, meta, finalizers).await
            }
            Object::Volume(_) => {
                set_finalizers(&Api::<PersistentVolume>::all(client), meta, finalizers).await
            }
            Object::Class(_) => {
                set_finalizers(&Api::<VolumeAttributesClass>::all(client), meta, finalizers).await
            }
        }
    }
}

async fn list<K>(api: Api<K>) -> Result<Vec<Arc<K>>, ControllerError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
{
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(ControllerError::api("list", K::plural(&())))?;
    Ok(listed.items.into_iter().map(Arc::new).collect())
}

/// Replaces the finalizers of the object that `meta` describes, if it still is as described.
async fn set_finalizers<K>(
    api: &Api<K>,
    meta: &ObjectMeta,
    finalizers: &[String],
) -> Result<(), ControllerError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
{
    let name = meta.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({"metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "finalizers": if finalizers.is_empty() { Value::Null } else { json!(finalizers) },
    }}));
    let patched = api.patch_metadata(name, &PatchParams::default(), &patch).await;
    let what = format!("{} {name}", K::kind(&()));
    gone_is_fine(patched).map(drop).map_err(ControllerError::api("change the finalizers of", what))
}
