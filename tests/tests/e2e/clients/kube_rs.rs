//! kube-rs over TLS, as an operator written in Rust uses it. Our own parts use it too, but without a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as CoreNamespace, Pod, ServiceAccount};
use kube::api::{
    Api, DeleteParams, DynamicObject, EvictParams, GroupVersionKind, ListParams, LogParams, Patch,
    PatchParams, PostParams, Preconditions, VersionMatch, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, WatchStreamExt as _, reflector, watcher};
use kube::{Client, Config, Discovery, Resource as _, ResourceExt as _};
use sampan_tests::{Cluster, Namespace, PATIENCE};
use serde_json::{Value, json};

/// A client with a connection of its own.
async fn connect(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).expect("the kubeconfig can be read");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("the kubeconfig can be used")).expect("a client can be made")
}

/// Runs a test with a client in a namespace; one that hangs fails.
fn with_client<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Client, String) -> F) {
    let space = Namespace::new(name);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let client = connect(space.cluster()).await;
        let finished = tokio::time::timeout(PATIENCE, test(client, name.to_owned())).await;
        assert!(finished.is_ok(), "it did not end within {PATIENCE:?}");
    });
}

/// An object of a type that is written as JSON.
fn typed<K: serde::de::DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("the object is of its type")
}

fn config_map(name: &str, labels: Value, data: Value) -> ConfigMap {
    typed(json!({"metadata": {"name": name, "labels": labels}, "data": data}))
}

/// Holds that a call is refused with this code, this reason and a message that contains this text.
#[track_caller]
fn refused<T>(result: kube::Result<T>, code: u16, reason: &str, text: &str) {
    match result {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (code, reason), "{}", status.message);
            assert!(status.message.contains(text), "no `{text}` in `{}`", status.message);
        }
        Err(e) => panic!("refused in another way: {e}"),
        Ok(_) => panic!("accepted, but should be refused with {code} {reason}"),
    }
}

#[test]
fn typed_objects() {
    with_client("rs-typed", |client, space| async move {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &space);
        let post = PostParams::default();
        let made = api.create(&post, &config_map("a", json!({"app": "x"}), json!({"n": "1"}))).await.unwrap();
        refused(
            api.create(&post, &config_map("a", json!({}), json!({}))).await,
            409,
            "AlreadyExists",
            "\"a\" already exists",
        );
        assert!(api.get_opt("absent").await.unwrap().is_none());
        let mut changed = made.clone();
        changed.data = Some(BTreeMap::from([("n".to_owned(), "2".to_owned())]));
        let replaced = api.replace("a", &post, &changed).await.unwrap();
        assert_eq!(replaced.uid(), made.uid());
        refused(api.replace("a", &post, &changed).await, 409, "Conflict", "the object has been modified");
        let merge = Patch::Merge(json!({"metadata": {"labels": {"app": null, "more": "1"}}}));
        let patched = api.patch("a", &PatchParams::default(), &merge).await.unwrap();
        assert_eq!(patched.labels().get("more").map(String::as_str), Some("1"));
        assert!(!patched.labels().contains_key("app"));

        let metadata = api.get_metadata("a").await.unwrap();
        assert_eq!(metadata.metadata.uid, made.metadata.uid, "only the metadata was asked for");
        let wrong = Preconditions { uid: Some("00000000".to_owned()), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(wrong);
        refused(api.delete("a", &params).await, 409, "Conflict", "Precondition failed");
        let gone = api.delete("a", &DeleteParams::default()).await.unwrap();
        assert!(gone.right().is_some_and(|status| status.is_success()), "a deletion answers with a status");

        let list = ListParams::default().labels("page=yes");
        for number in 0..7 {
            let name = format!("p-{number}");
            api.create(&post, &config_map(&name, json!({"page": "yes"}), json!({}))).await.unwrap();
        }
        let (mut names, mut page) = (Vec::new(), list.clone().limit(3));
        loop {
            let part = api.list(&page).await.unwrap();
            names.extend(part.iter().map(|map| map.name_any()));
            match part.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = list.clone().limit(3).continue_token(&token),
                None => break,
            }
        }
        assert_eq!(names, (0..7).map(|n| format!("p-{n}")).collect::<Vec<_>>());
        let any = list.clone().at("0").matching(VersionMatch::NotOlderThan);
        assert_eq!(api.list(&any).await.unwrap().items.len(), 7);
        api.delete_collection(&DeleteParams::default(), &list).await.unwrap();
        assert!(api.list(&list).await.unwrap().items.is_empty());

        let accounts: Api<ServiceAccount> = Api::namespaced(client, &space);
        accounts.create(&post, &typed(json!({"metadata": {"name": "robot"}}))).await.unwrap();
        let spec = TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request("robot", &post, &request).await.unwrap();
        let token = answer.status.and_then(|status| status.token).unwrap_or_default();
        assert_eq!(token.split('.').count(), 3);
    });
}

#[test]
fn server_side_apply_and_subresources() {
    with_client("rs-apply", |client, space| async move {
        let api: Api<Deployment> = Api::namespaced(client.clone(), &space);
        let pod = Namespace::pod_object("web", "echo started; sleep 1000", json!({}), json!({}));
        let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod["spec"]}}});
        let apply = PatchParams::apply("rs");
        let made = api.patch("web", &apply, &Patch::Apply(&wanted)).await.unwrap();
        let again = api.patch("web", &apply, &Patch::Apply(&wanted)).await.unwrap();
        assert_eq!(made.metadata.generation, again.metadata.generation);
        let mut other = wanted.clone();
        other["spec"]["replicas"] = json!(2);
        let rival = PatchParams::apply("rival");
        refused(
            api.patch("web", &rival, &Patch::Apply(&other)).await,
            409,
            "Conflict",
            "conflict with \"rs\": .spec.replicas",
        );
        api.patch("web", &rival.clone().force(), &Patch::Apply(&other)).await.unwrap();
        let unknown = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"nonsense": 1}});
        let strict = PatchParams::default().validation_strict();
        refused(
            api.patch("web", &strict, &Patch::Merge(&unknown)).await,
            400,
            "BadRequest",
            "unknown field \"spec.nonsense\"",
        );

        assert_eq!(api.get_scale("web").await.unwrap().spec.and_then(|s| s.replicas), Some(2));
        let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
        api.patch_scale("web", &PatchParams::default(), &scale).await.unwrap();
        await_condition(api.clone(), "web", conditions::is_deployment_completed()).await.unwrap();
        let before = api.get("web").await.unwrap().metadata.generation;
        let restarted = api.restart("web").await.unwrap();
        assert!(restarted.metadata.generation > before, "a restart is a change of the template");
        await_condition(api.clone(), "web", conditions::is_deployment_completed()).await.unwrap();

        let pods: Api<Pod> = Api::namespaced(client, &space);
        let running = pods.list(&ListParams::default().fields("status.phase=Running")).await.unwrap();
        let live = running.iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
        let (name, uid) = live.map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).unwrap();
        let log = pods.logs(&name, &LogParams { tail_lines: Some(1), ..LogParams::default() }).await;
        assert_eq!(log.unwrap(), "started\n");
        pods.evict(&name, &EvictParams::default()).await.unwrap();
        await_condition(pods, &name, conditions::is_deleted(&uid)).await.unwrap();
    });
}

#[test]
fn watches() {
    with_client("rs-watches", |client, space| async move {
        let api: Api<ConfigMap> = Api::namespaced(client, &space);
        let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
        let post = PostParams::default();
        api.create(&post, &config_map("a", json!({}), json!({"n": "1"}))).await.unwrap();
        let merge = Patch::Merge(json!({"data": {"n": "2"}}));
        api.patch("a", &PatchParams::default(), &merge).await.unwrap();
        api.delete("a", &DeleteParams::default()).await.unwrap();
        let events = api.watch(&WatchParams::default().fields("metadata.name=a"), &version).await.unwrap();
        let seen: Vec<WatchEvent<ConfigMap>> = events.take(3).try_collect().await.unwrap();
        assert!(matches!(&seen[..], [WatchEvent::Added(_), WatchEvent::Modified(_), WatchEvent::Deleted(_)]));

        // Both ways of a first list: pages and a stream. Only one of them has more than a page.
        for number in 0..5 {
            let name = format!("w-{number}");
            api.create(&post, &config_map(&name, json!({"kept": "yes"}), json!({}))).await.unwrap();
        }
        let config = watcher::Config::default().labels("kept=yes");
        for config in [config.clone().page_size(2), config.streaming_lists()] {
            let stream = watcher(api.clone(), config).default_backoff();
            let mut stream = std::pin::pin!(stream);
            let mut first = BTreeSet::new();
            loop {
                match stream.try_next().await.unwrap() {
                    Some(watcher::Event::InitApply(object)) => {
                        first.insert(object.name_any());
                    }
                    Some(watcher::Event::InitDone) => break,
                    Some(_) => {}
                    None => panic!("a watcher never ends"),
                }
            }
            assert_eq!(first, (0..5).map(|n| format!("w-{n}")).collect());
            api.create(&post, &config_map("late", json!({"kept": "yes"}), json!({}))).await.unwrap();
            let next = stream.try_next().await.unwrap();
            assert!(matches!(next, Some(watcher::Event::Apply(object)) if object.name_any() == "late"));
            api.delete("late", &DeleteParams::default()).await.unwrap();
            let next = stream.try_next().await.unwrap();
            assert!(matches!(next, Some(watcher::Event::Delete(object)) if object.name_any() == "late"));
        }
    });
}

#[test]
fn a_reflector_holds_what_the_server_holds() {
    with_client("rs-reflector", |client, space| async move {
        let api: Api<ConfigMap> = Api::namespaced(client, &space);
        let (reader, writer) = reflector::store();
        let config = watcher::Config::default().labels("kept=yes");
        let stream = reflector(writer, watcher(api.clone(), config)).applied_objects();
        let feeding = tokio::spawn(stream.for_each(|_| std::future::ready(())));
        reader.wait_until_ready().await.unwrap();
        assert!(reader.is_empty());
        let post = PostParams::default();
        for number in 0..50 {
            let name = format!("m-{number}");
            api.create(&post, &config_map(&name, json!({"kept": "yes"}), json!({}))).await.unwrap();
        }
        for number in (0..50).step_by(2) {
            api.delete(&format!("m-{number}"), &DeleteParams::default()).await.unwrap();
        }
        let wanted: BTreeSet<String> = (0..50).skip(1).step_by(2).map(|n| format!("m-{n}")).collect();
        let held = || reader.state().iter().map(|object| object.name_any()).collect::<BTreeSet<_>>();
        while held() != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        feeding.abort();
    });
}

/// What the controller of the test works with.
struct Context {
    maps: Api<ConfigMap>,
    accounts: Api<ServiceAccount>,
}

type FinalizerError = finalizer::Error<kube::Error>;

/// Keeps a service account for every marked map, and unmarks it in the end.
async fn reconcile(map: Arc<ConfigMap>, context: Arc<Context>) -> Result<Action, FinalizerError> {
    let accounts = context.accounts.clone();
    finalizer(&context.maps, "test.sampan/account", map, |event| async move {
        match event {
            finalizer::Event::Apply(map) => {
                let owner = map.controller_owner_ref(&()).expect("a stored object has an identity");
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": {"name": map.name_any(), "ownerReferences": [owner]}});
                let params = PatchParams::apply("test-controller").force();
                accounts.patch(&map.name_any(), &params, &Patch::Apply(account)).await?;
            }
            finalizer::Event::Cleanup(map) => {
                accounts.delete(&map.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok::<_, kube::Error>(Action::await_change())
    })
    .await
}

#[test]
fn a_controller_with_a_finalizer() {
    with_client("rs-controller", |client, space| async move {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &space);
        let accounts: Api<ServiceAccount> = Api::namespaced(client, &space);
        let context = Arc::new(Context { maps: maps.clone(), accounts: accounts.clone() });
        let marked = watcher::Config::default().labels("account=yes");
        let running = Controller::new(maps.clone(), marked)
            .owns(accounts.clone(), watcher::Config::default())
            .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(100)), context)
            .for_each(|_| std::future::ready(()));
        let running = tokio::spawn(running);
        let marked = config_map("robot", json!({"account": "yes"}), json!({}));
        maps.create(&PostParams::default(), &marked).await.unwrap();
        await_condition(accounts.clone(), "robot", conditions::is_created()).await.unwrap();
        // What an owner lost comes back.
        let first = accounts.get("robot").await.unwrap().uid().unwrap();
        accounts.delete("robot", &DeleteParams::default()).await.unwrap();
        let replaced = |account: Option<&ServiceAccount>| {
            account.is_some_and(|account| account.uid().is_some_and(|uid| uid != first))
        };
        await_condition(accounts.clone(), "robot", replaced).await.unwrap();
        let held = maps.get("robot").await.unwrap();
        assert_eq!(held.finalizers(), ["test.sampan/account"]);
        maps.delete("robot", &DeleteParams::default()).await.unwrap();
        let uid = held.uid().unwrap();
        await_condition(maps, "robot", conditions::is_deleted(&uid)).await.unwrap();
        assert!(accounts.get_opt("robot").await.unwrap().is_none(), "the controller has cleaned up");
        running.abort();
    });
}

#[test]
fn discovery_and_dynamic_objects() {
    with_client("rs-dynamic", |client, space| async move {
        for discovery in [
            Discovery::new(client.clone()).run().await.unwrap(),
            Discovery::new(client.clone()).run_aggregated().await.unwrap(),
        ] {
            let kind = GroupVersionKind::gvk("apps", "v1", "Deployment");
            let (resource, capabilities) = discovery.resolve_gvk(&kind).expect("deployments are served");
            assert_eq!(resource.plural, "deployments");
            assert!(capabilities.supports_operation("patch"));
            assert!(!capabilities.subresources.is_empty(), "they have subresources");
            let kind = GroupVersionKind::gvk("", "v1", "ConfigMap");
            let (resource, _) = discovery.resolve_gvk(&kind).expect("config maps are served");
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &space, &resource);
            let object = DynamicObject::new("dynamic", &resource).data(json!({"data": {"a": "1"}}));
            let made = api.create(&PostParams::default(), &object).await.unwrap();
            assert_eq!(made.data["data"]["a"], "1");
            api.delete("dynamic", &DeleteParams::default()).await.unwrap();
        }
        let version = client.apiserver_version().await.unwrap();
        assert_eq!(version.major, "1");
        let all: Api<CoreNamespace> = Api::all(client);
        assert_eq!(all.get(&space).await.unwrap().name_any(), space);
    });
}
