//! Lists in chunks, and forms that an answer does not have.

use serde_json::{Value, json};

use crate::world::{Answer, World, admin};

const TEMPLATES: &str = "/api/v1/namespaces/default/podtemplates";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

async fn world(count: usize) -> World {
    let world = World::new().await;
    for i in 0..count {
        let template = json!({"metadata": {"name": format!("t{i:03}")}, "template": {
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }});
        world.post(TEMPLATES, &template).await.expect(201);
    }
    world
}

fn names(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().into_iter().flatten();
    items.map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn chunks_say_how_much_is_left() {
    let world = world(40).await;
    let mut seen = Vec::new();
    let mut path = format!("{TEMPLATES}?limit=17");
    let mut revision = Value::Null;
    loop {
        let page = world.get(&path).await.expect(200);
        let found = names(&page);
        assert!(found.len() <= 17 && !found.is_empty());
        seen.extend(found);
        if revision.is_null() {
            revision = page["metadata"]["resourceVersion"].clone();
        }
        assert_eq!(page["metadata"]["resourceVersion"], revision, "a page is of another moment");
        let Some(token) = page["metadata"]["continue"].as_str() else {
            assert_eq!(page["metadata"].get("remainingItemCount"), None);
            break;
        };
        assert_eq!(page["metadata"]["remainingItemCount"], 40 - seen.len(), "after {}", seen.len());
        path = format!("{TEMPLATES}?limit=17&continue={token}");
    }
    let expected: Vec<String> = (0..40).map(|i| format!("t{i:03}")).collect();
    assert_eq!(seen, expected);
    assert_eq!(names(&world.get(TEMPLATES).await.expect(200)), expected);
}

#[tokio::test]
async fn a_list_goes_on_after_its_moment_is_forgotten() {
    let world = world(12).await;
    let first = world.get(&format!("{TEMPLATES}?limit=5")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().expect("more").to_owned();
    world.delete(&format!("{TEMPLATES}/t007")).await.expect(200);
    world.forget_history().await;
    let next = format!("{TEMPLATES}?limit=5&continue=");
    let gone: Answer = world.get(&format!("{next}{token}")).await;
    let gone = gone.expect(410);
    assert_eq!(gone["reason"], "Expired");
    let token = gone["metadata"]["continue"].as_str().expect("a way on").to_owned();
    let second = world.get(&format!("{next}{token}")).await.expect(200);
    // It shows what is there now, which is not what the first page belongs to.
    assert_eq!(names(&second), ["t005", "t006", "t008", "t009", "t010"]);
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().expect("more");
    assert_eq!(names(&world.get(&format!("{next}{token}")).await.expect(200)), ["t011"]);
}

#[tokio::test]
async fn questions_have_no_table() {
    let world = World::new().await;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}},
    });
    let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("content-type", "application/json")
        .header("accept", TABLE)
        .body(http_body_util::Full::new(review.to_string().into()))
        .expect("a request");
    let response = world.raw(admin(), request).await;
    let refused = crate::world::read(response).await.expect(406);
    assert_eq!(refused["reason"], "NotAcceptable");
    // What can be listed has one.
    let table = world.get_as("/api/v1/namespaces", TABLE).await.expect(200);
    assert_eq!(table["kind"], "Table");
}
