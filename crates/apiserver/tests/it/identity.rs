//! Who comes in, by what, and as whom.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Method;
use ring::signature::KeyPair as _;
use sampan_apiserver::{Access, Authentication, AuthenticationConfiguration, Fetch, User};
use serde_json::{Value, json};

use crate::world::{JSON, World};

const WHO_AM_I: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

async fn who(world: &World, token: &str) -> Value {
    let header = bearer(token);
    let answer = world.knock(Method::POST, WHO_AM_I, &[("authorization", &header)], "{}").await;
    answer.expect(201)["status"]["userInfo"].clone()
}

#[tokio::test]
async fn bad_evidence_is_refused_and_none_is_nobody() {
    let world = World::new().await;
    let rows = [
        (None, "/version", 200),
        (None, "/api", 403),
        (Some("Basic YTpi"), "/version", 401),
        (Some("Bearer nonsense"), "/version", 401),
        (Some("Bearer abcdef.0123456789abcdef"), "/version", 401),
        (Some("Bearer "), "/version", 401),
    ];
    for (header, path, code) in rows {
        let headers: Vec<(&str, &str)> = header.map(|value| ("authorization", value)).into_iter().collect();
        let answer = world.knock(Method::GET, path, &headers, "").await;
        assert_eq!(answer.code, code, "{header:?} {path}: {}", answer.body);
    }
    // Headers of a front proxy are nothing where no proxy's certificate comes with them.
    let posing = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    world.knock(Method::GET, "/api/v1/secrets", &posing, "").await.expect(403);
}

#[tokio::test]
async fn machines_come_with_bootstrap_tokens() {
    let world = World::new().await;
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": encode("abcdef"),
            "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
            "auth-extra-groups": encode("system:bootstrappers:sampan:default-node-token"),
        },
    });
    world.post("/api/v1/namespaces/kube-system/secrets", &secret).await.expect(201);
    world.get("/api/v1/secrets").await.expect(200);
    let token = "abcdef.0123456789abcdef";
    let user = who(&world, token).await;
    assert_eq!(user["username"], "system:bootstrap:abcdef", "{user}");
    let review = world.post(REVIEWS, &json!({"spec": {"token": token}})).await.expect(201);
    assert_eq!(review["status"]["user"]["groups"], user["groups"]);
    let elsewhere = json!({"spec": {"token": token, "audiences": ["elsewhere"]}});
    assert_eq!(world.post(REVIEWS, &elsewhere).await.expect(201)["status"]["authenticated"], false);
    // A machine may ask for a certificate and for nothing else.
    let header = bearer(token);
    let secrets = world.knock(Method::GET, "/api/v1/secrets", &[("authorization", &header)], "").await;
    secrets.expect(403);
    world.delete("/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef").await.expect(200);
    world.get("/api/v1/secrets").await.expect(200);
    world.knock(Method::POST, WHO_AM_I, &[("authorization", &header)], "{}").await.expect(401);
}

#[tokio::test]
async fn others_can_check_our_tokens() {
    let world = World::new().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    world.post(accounts, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    let token = world.post(&format!("{accounts}/robot/token"), &json!({"spec": {}})).await.expect(201);
    let token = token["status"]["token"].as_str().expect("a token").to_owned();
    world.get(accounts).await.expect(200);
    let header = bearer(&token);
    let headers = [("authorization", header.as_str())];
    for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        world.knock(Method::GET, path, &[], "").await.expect(403);
    }
    let discovery = world.knock(Method::GET, "/.well-known/openid-configuration", &headers, "").await;
    let discovery = discovery.expect(200);
    let (issuer, keys) = (discovery["issuer"].as_str(), discovery["jwks_uri"].as_str());
    assert_eq!(keys.zip(issuer).and_then(|(k, i)| k.strip_prefix(i)), Some("/openid/v1/jwks"));
    let answer = world.knock(Method::GET, "/openid/v1/jwks", &headers, "").await;
    assert_eq!(answer.headers["content-type"], "application/jwk-set+json");
    let key = answer.expect(200)["keys"][0].clone();
    // As a stranger would.
    let decode = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().expect("text")).expect("base64");
    let point = [vec![4], decode(&key["x"]), decode(&key["y"])].concat();
    let (signed, signature) = token.rsplit_once('.').expect("a signature");
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).expect("base64"))
        .expect("genuine");
}

/// An identity provider of one key.
struct Provider {
    pair: ring::signature::EcdsaKeyPair,
}

impl Provider {
    fn new() -> Self {
        let random = ring::rand::SystemRandom::new();
        let by = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = ring::signature::EcdsaKeyPair::generate_pkcs8(by, &random).expect("a key");
        let pair = ring::signature::EcdsaKeyPair::from_pkcs8(by, document.as_ref(), &random).expect("a key");
        Self { pair }
    }

    fn token(&self, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({"alg": "ES256", "kid": "k"})), encode(claims));
        let signature = self.pair.sign(&ring::rand::SystemRandom::new(), signed.as_bytes()).expect("signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[async_trait]
impl Fetch for Provider {
    async fn get(&self, url: &str, _: Option<&str>, _: usize) -> Result<Bytes, String> {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let document = match url {
            "https://id.example.com/.well-known/openid-configuration" => {
                json!({"issuer": "https://id.example.com", "jwks_uri": "https://id.example.com/keys"})
            }
            _ => json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": encode(x), "y": encode(y)}]}),
        };
        Ok(document.to_string().into())
    }
}

#[tokio::test]
async fn people_come_with_tokens_of_a_provider() {
    let provider = Arc::new(Provider::new());
    let configuration = AuthenticationConfiguration::parse(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n\
         - issuer: {url: 'https://id.example.com', audiences: [sampan]}\n\
         \x20 claimMappings:\n\
         \x20   username: {claim: sub, prefix: 'id:'}\n\
         \x20   groups: {claim: groups, prefix: 'id:'}\n",
    );
    let authentication = Authentication {
        configuration: configuration.expect("a configuration"),
        fetch: Some(provider.clone()),
        front_proxy: None,
    };
    let world = World::with(Access { authentication, ..Access::default() }, |store, _| store).await;
    let claims = |audience: &str| {
        let exp = 4_000_000_000_i64;
        json!({"iss": "https://id.example.com", "sub": "ann", "aud": audience, "exp": exp, "groups": ["dev"]})
    };
    let user = who(&world, &provider.token(&claims("sampan"))).await;
    assert_eq!(user["username"], "id:ann", "{user}");
    assert_eq!(user["groups"], json!(["id:dev", "system:authenticated"]));
    let review = json!({"spec": {"token": provider.token(&claims("sampan"))}});
    assert_eq!(world.post(REVIEWS, &review).await.expect(201)["status"]["user"]["username"], "id:ann");
    for token in [provider.token(&claims("other")), Provider::new().token(&claims("sampan"))] {
        let header = bearer(&token);
        world.knock(Method::GET, "/version", &[("authorization", &header)], "").await.expect(401);
    }
}

#[tokio::test]
async fn expressions_judge_tokens_and_name_people() {
    let provider = Arc::new(Provider::new());
    let configuration = AuthenticationConfiguration::parse(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n\
         - issuer: {url: 'https://id.example.com', audiences: [sampan]}\n\
         \x20 claimValidationRules: [{expression: 'claims.email_verified == true', message: unverified}]\n\
         \x20 claimMappings:\n\
         \x20   username: {expression: 'claims.email'}\n\
         \x20   groups: {expression: 'claims.teams.filter(t, t.active).map(t, t.name)'}\n\
         \x20   extra: [{key: example.com/level, valueExpression: 'string(claims.level)'}]\n\
         \x20 userValidationRules: [{expression: '!user.groups.exists(g, g.startsWith(\"system:\"))'}]\n",
    );
    let authentication = Authentication {
        configuration: configuration.expect("a configuration"),
        fetch: Some(provider.clone()),
        front_proxy: None,
    };
    let world = World::with(Access { authentication, ..Access::default() }, |store, _| store).await;
    let claims = |verified: bool, team: &str| {
        json!({
            "iss": "https://id.example.com", "aud": "sampan", "exp": 4_000_000_000_i64, "level": 3,
            "email": "ann@example.com", "email_verified": verified,
            "teams": [{"name": team, "active": true}, {"name": "old", "active": false}],
        })
    };
    let user = who(&world, &provider.token(&claims(true, "dev"))).await;
    assert_eq!(user["username"], "ann@example.com", "{user}");
    assert_eq!(user["groups"], json!(["dev", "system:authenticated"]));
    assert_eq!(user["extra"], json!({"example.com/level": ["3"]}));
    let refused = [claims(false, "dev"), claims(true, "system:masters")];
    let tokens = refused.iter().map(|claims| provider.token(claims));
    for token in tokens.chain([Provider::new().token(&claims(true, "dev"))]) {
        let header = bearer(&token);
        world.knock(Method::GET, "/version", &[("authorization", &header)], "").await.expect(401);
    }
}

#[tokio::test]
async fn acting_as_somebody_else() {
    let world = World::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "actor"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["ann"]},
        {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"],
         "resourceNames": ["a"]},
    ]});
    world.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    let binding = json!({
        "metadata": {"name": "actor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "actor"},
        "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    world.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    world.get(&format!("{rbac}/clusterrolebindings")).await.expect(200);
    type Row<'a> = (&'a [(&'a str, &'a str)], u16);
    let rows: [Row<'_>; 6] = [
        (&[("impersonate-user", "ann")], 201),
        (&[("impersonate-user", "eve")], 403),
        (&[("impersonate-user", "ann"), ("impersonate-extra-scopes", "a")], 201),
        (&[("impersonate-user", "ann"), ("impersonate-extra-scopes", "b")], 403),
        (&[("impersonate-user", "ann"), ("impersonate-uid", "u")], 403),
        (&[("impersonate-group", "system:masters")], 400),
    ];
    for (headers, code) in rows {
        let mut request = http::Request::builder().method(Method::POST).uri(WHO_AM_I);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("content-type", JSON).body(Bytes::from_static(b"{}").into());
        let response = world.raw(User::known("bob", &[]), request.expect("a request")).await;
        assert_eq!(response.status().as_u16(), code, "{headers:?}");
    }
}

#[tokio::test]
async fn reviews_say_why() {
    let world = World::new().await;
    let review = |user: &str, groups: Value, attributes: Value| json!({"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let discovery = json!({"spec": {"user": "ann", "groups": ["system:authenticated"],
        "nonResourceAttributes": {"verb": "get", "path": "/api"}}});
    let status = world.post(path, &discovery).await.expect(201)["status"].clone();
    assert_eq!(
        status,
        json!({"allowed": true, "reason": "RBAC: allowed by ClusterRoleBinding \"system:discovery\" of ClusterRole \
               \"system:discovery\" to Group \"system:authenticated\""})
    );
    let pods = |selector: Value| {
        let attributes = json!({"verb": "list", "resource": "pods", "fieldSelector": selector});
        review("system:node:n", json!(["system:nodes"]), attributes)
    };
    let rows = [
        (json!({"rawSelector": "spec.nodeName=n"}), true),
        (json!({"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]}), true),
        (json!({"rawSelector": "spec.nodeName=m"}), false),
        (Value::Null, false),
    ];
    for (selector, allowed) in rows {
        let status = world.post(path, &pods(selector.clone())).await.expect(201)["status"].clone();
        assert_eq!(status["allowed"], allowed, "{selector}: {status}");
    }
    let rules = json!({"spec": {"namespace": "default"}});
    let rules_path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    for (user, incomplete) in
        [(User::known("ann", &[]), false), (User::known("system:node:n", &["system:nodes"]), true)]
    {
        let answer = world.send_as(user, Method::POST, rules_path, JSON, rules.to_string()).await.expect(201);
        assert_eq!(answer["status"]["incomplete"], incomplete, "{answer}");
    }
}
