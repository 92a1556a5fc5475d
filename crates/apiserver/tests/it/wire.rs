//! The forms of an answer: protobuf for built-in kinds, gzip for large answers, documents known by their hash.

use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use sampan_api::protobuf;
use serde_json::{Value, json};

use crate::world::{JSON, MERGE, World, admin};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIRE: &str = "application/vnd.kubernetes.protobuf";
const CONFIG_MAP: &str = "io.k8s.api.core.v1.ConfigMap";

struct Raw {
    code: StatusCode,
    headers: HeaderMap,
    body: bytes::Bytes,
}

impl Raw {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    fn decoded(&self, type_: &str) -> Value {
        assert_eq!(self.header("content-type"), WIRE);
        protobuf::decode(&self.body, type_).expect("protobuf")
    }
}

async fn send(
    world: &World,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> Raw {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = world.raw(admin(), request.body(Full::new(body.into())).expect("a request")).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Raw { code: parts.status, headers: parts.headers, body }
}

async fn get(world: &World, path: &str, headers: &[(&str, &str)]) -> Raw {
    send(world, Method::GET, path, headers, "").await
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

#[tokio::test]
async fn objects_in_protobuf_are_the_objects_in_json() {
    let world = World::new().await;
    let client = "application/vnd.kubernetes.protobuf,application/json";
    let body = protobuf::encode(CONFIG_MAP, "v1", "ConfigMap", &map("m")).expect("protobuf");
    let created = send(&world, Method::POST, MAPS, &[("content-type", WIRE), ("accept", client)], body).await;
    assert_eq!(created.code, 201);
    let created = created.decoded(CONFIG_MAP);
    let same = world.get(&format!("{MAPS}/m")).await.expect(200);
    assert_eq!(created, same);

    let patched = send(
        &world,
        Method::PATCH,
        &format!("{MAPS}/m"),
        &[("content-type", MERGE), ("accept", client)],
        r#"{"data": {"c": "d"}}"#,
    )
    .await;
    assert_eq!(patched.decoded(CONFIG_MAP)["data"], json!({"a": "b", "c": "d"}));

    let list = get(&world, MAPS, &[("accept", client)]).await.decoded(&format!("{CONFIG_MAP}List"));
    assert_eq!(
        (list["kind"].as_str(), list["items"][0]["data"]["c"].as_str()),
        (Some("ConfigMapList"), Some("d"))
    );
    assert!(list["metadata"]["resourceVersion"].is_string());
    let metadata = format!("{WIRE};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let partial = get(&world, MAPS, &[("accept", &metadata)]).await.decoded(&format!("{CONFIG_MAP}List"));
    assert_eq!(
        (partial["kind"].as_str(), &partial["items"][0]["data"]),
        (Some("PartialObjectMetadataList"), &Value::Null)
    );

    let missing = get(&world, &format!("{MAPS}/nope"), &[("accept", client)]).await;
    assert_eq!(missing.code, 404);
    let status = missing.decoded("io.k8s.apimachinery.pkg.apis.meta.v1.Status");
    assert_eq!((status["reason"].as_str(), status["code"].as_i64()), (Some("NotFound"), Some(404)));

    let deleted = send(&world, Method::DELETE, &format!("{MAPS}/m"), &[("accept", client)], "").await;
    let status = deleted.decoded("io.k8s.apimachinery.pkg.apis.meta.v1.Status");
    assert_eq!((status["status"].as_str(), status["details"]["name"].as_str()), (Some("Success"), Some("m")));

    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}).to_string();
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review =
        send(&world, Method::POST, path, &[("content-type", JSON), ("accept", client)], review).await;
    let review = review.decoded("io.k8s.api.authorization.v1.SelfSubjectAccessReview");
    assert_eq!(review["status"]["allowed"], true);
}

#[tokio::test]
async fn volumes_and_probes_survive_protobuf() {
    let world = World::new().await;
    world
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{
            "name": "c", "image": "i",
            "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            "livenessProbe": {"httpGet": {"port": "http"}},
        }],
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "w", "secret": {"secretName": "s"}}],
    }});
    let type_ = "io.k8s.api.core.v1.Pod";
    let body = protobuf::encode(type_, "v1", "Pod", &pod).expect("protobuf");
    let pods = "/api/v1/namespaces/default/pods";
    let created = send(&world, Method::POST, pods, &[("content-type", WIRE), ("accept", WIRE)], body).await;
    assert_eq!(created.code, 201);
    let same = world.get(&format!("{pods}/p")).await.expect(200);
    assert_eq!(created.decoded(type_), same);
    let spec = &same["spec"];
    assert_eq!(spec["volumes"][0]["emptyDir"]["sizeLimit"], "1Gi");
    assert_eq!(spec["containers"][0]["env"][0]["valueFrom"]["configMapKeyRef"]["name"], "m");
    assert_eq!(spec["containers"][0]["livenessProbe"]["httpGet"]["port"], "http");
}

#[tokio::test]
async fn watches_in_protobuf_are_frames() {
    let world = World::new().await;
    for name in ["a", "b"] {
        world.post(MAPS, &map(name)).await.expect(201);
    }
    world.delete(&format!("{MAPS}/a")).await.expect(200);
    for query in ["", "&labelSelector=!x"] {
        let path = format!("{MAPS}?watch=true&timeoutSeconds=1&resourceVersion=1{query}");
        let watched = get(&world, &path, &[("accept", WIRE)]).await;
        assert_eq!(watched.header("content-type"), "application/vnd.kubernetes.protobuf;stream=watch");
        let mut rest = &watched.body[..];
        let mut seen = Vec::new();
        while let Some((length, after)) = rest.split_at_checked(4) {
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
            let (event, after) = after.split_at_checked(length).expect("a whole frame");
            // Field 1 is the type, field 2 a message around the enveloped object.
            let at = event.windows(4).position(|w| w == b"k8s\0").expect("an object");
            let object = protobuf::decode(&event[at..], CONFIG_MAP).expect("protobuf");
            let type_ = String::from_utf8_lossy(&event[2..2 + usize::from(event[1])]).into_owned();
            seen.push((type_, object["metadata"]["name"].as_str().unwrap_or_default().to_owned()));
            rest = after;
        }
        assert!(rest.is_empty());
        let expected = [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")];
        assert_eq!(seen, expected.map(|(t, n)| (t.to_owned(), n.to_owned())), "{query}");
    }
}

#[tokio::test]
async fn unspoken_types_are_refused() {
    let world = World::new().await;
    let cbor = "application/cbor";
    assert_eq!(get(&world, MAPS, &[("accept", cbor)]).await.code, 406);
    for (method, type_) in [(Method::POST, cbor), (Method::PATCH, "application/apply-patch+cbor")] {
        let path = if method == Method::POST { MAPS.to_owned() } else { format!("{MAPS}/a?fieldManager=x") };
        assert_eq!(send(&world, method, &path, &[("content-type", type_)], "\u{1}").await.code, 415);
    }
    let table = format!("{WIRE};as=Table;g=meta.k8s.io;v=v1,application/json;as=Table;g=meta.k8s.io;v=v1");
    let answer = get(&world, MAPS, &[("accept", &table)]).await;
    assert_eq!((answer.code.as_u16(), answer.header("content-type")), (200, "application/json"));
}

#[tokio::test]
async fn large_answers_are_compressed_when_asked() {
    let world = World::new().await;
    for i in 0..3 {
        let mut large = map(&format!("m{i}"));
        large["data"]["large"] = "sampan ".repeat(10_000).into();
        world.post(MAPS, &large).await.expect(201);
    }
    let plain = get(&world, MAPS, &[("accept", JSON)]).await;
    assert_eq!(plain.header("content-encoding"), "");
    let packed = get(&world, MAPS, &[("accept", JSON), ("accept-encoding", "gzip")]).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.body.len() < plain.body.len() / 10);
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut unpacked)
        .expect("gzip");
    assert_eq!(unpacked, plain.body);
    let small = get(&world, &format!("{MAPS}?limit=1"), &[("accept-encoding", "gzip")]).await;
    assert_eq!(small.header("content-encoding"), "");
    let watch = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let watched = get(&world, &watch, &[("accept-encoding", "gzip")]).await;
    assert_eq!((watched.header("content-encoding"), watched.body.len() > 200_000), ("", true));
}

#[tokio::test]
async fn openapi_documents_are_complete_and_known_by_hash() {
    let world = World::new().await;
    let index = world.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("an address").to_owned();
    let core = get(&world, &url, &[]).await;
    assert_eq!((core.code.as_u16(), core.header("cache-control")), (200, "public, immutable"));
    assert!(core.header("expires").ends_with(" GMT"), "{}", core.header("expires"));
    let again = get(&world, "/openapi/v3/api/v1", &[("if-none-match", core.header("etag"))]).await;
    assert_eq!((again.code.as_u16(), again.body.len()), (304, 0));
    let old = get(&world, "/openapi/v3/api/v1?hash=OLD", &[]).await;
    assert_eq!((old.code.as_u16(), old.header("location")), (301, &*url));

    let core: Value = serde_json::from_slice(&core.body).expect("JSON");
    let pod = &core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    let containers = &pod["properties"]["containers"];
    assert!(
        containers["description"].as_str().is_some_and(|d| d.contains("List of containers")),
        "{containers}"
    );
    assert_eq!(pod["properties"]["restartPolicy"]["default"], "Always");
    let list = &core["components"]["schemas"]["io.k8s.api.core.v1.PodList"];
    assert_eq!(list["x-kubernetes-group-version-kind"][0]["kind"], "PodList");
    let seccomp =
        &core["components"]["schemas"]["io.k8s.api.core.v1.SeccompProfile"]["x-kubernetes-unions"][0];
    assert_eq!(seccomp["fields-to-discriminateBy"]["localhostProfile"], "LocalhostProfile");
    let log = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/log"]["get"];
    assert_eq!(log["operationId"], "readCoreV1NamespacedPodLog");

    let v2 = get(&world, "/openapi/v2", &[("accept", JSON)]).await;
    let v2_again =
        get(&world, "/openapi/v2", &[("accept", JSON), ("if-none-match", v2.header("etag"))]).await;
    assert_eq!((v2.code.as_u16(), v2_again.code.as_u16(), v2.header("vary")), (200, 304, "Accept"));
    let v2: Value = serde_json::from_slice(&v2.body).expect("JSON");
    for (document, at) in [(&core, "/components/schemas"), (&v2, "/definitions")] {
        every_reference_leads_somewhere(document, at);
    }

    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = get(&world, "/apis", &[("accept", aggregated)]).await;
    let known =
        get(&world, "/apis", &[("accept", aggregated), ("if-none-match", groups.header("etag"))]).await;
    assert_eq!((groups.code.as_u16(), known.code.as_u16()), (200, 304));
}

fn every_reference_leads_somewhere(document: &Value, at: &str) {
    let schemas = document.pointer(at).and_then(Value::as_object).expect("schemas");
    let mut waiting = vec![document];
    let mut count = 0;
    while let Some(value) = waiting.pop() {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap_or_default();
            assert!(schemas.contains_key(name), "{reference} leads nowhere");
            count += 1;
        }
        waiting.extend(value.as_object().into_iter().flat_map(|o| o.values()));
        waiting.extend(value.as_array().into_iter().flatten());
    }
    assert!(count > 500, "only {count} references");
}
