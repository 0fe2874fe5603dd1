//! Who may call.

use std::time::Duration;

use sightline_mesh::auth::{Claims, SigningKey, mint};
use sightline_proto::{
    ingest::{ClassifyRequest, Frame},
    stats::QueryRequest,
};
use sightline_testkit::{MeshSandbox, frames};
use tonic::{Code, Request};

use crate::errors::seen;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const HOUR: Duration = Duration::from_secs(3600);

fn claims(user: &str, scope: &str) -> Claims {
    Claims { sub: user.into(), tenant: "acme".into(), scope: scope.into() }
}

fn token(claims: &Claims, audience: &str) -> String {
    mint(&SigningKey::Secret(SECRET), claims, audience, None, HOUR).unwrap()
}

async fn guarded() -> MeshSandbox {
    let keys = tempfile::tempdir().unwrap();
    let secret = keys.path().join("secret");
    let service = keys.path().join("service-token");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::write(&service, token(&Claims { tenant: String::new(), ..claims("", "service") }, "sightline"))
        .unwrap();
    let mesh = MeshSandbox::start_with(|config| {
        config.auth.secret_file = Some(secret);
        config.auth.service_token_file = Some(service);
    })
    .await;
    drop(keys);
    mesh
}

fn request<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

fn frame(user: &str) -> ClassifyRequest {
    let frame = Frame { user_id: user.into(), image: frames::jpeg(1, 64).into(), ..Frame::default() };
    ClassifyRequest { frame: Some(frame) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_names_the_user_and_every_bad_one_is_refused_with_its_reason() {
    let mesh = guarded().await;
    let mut client = mesh.ingest().await;
    let ada = claims("ada", "classify");
    let good = token(&ada, "sightline");
    assert!(client.classify(request(frame(""), Some(&good))).await.is_ok());

    let mut forged = good.clone();
    let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
    forged.push(last);
    let other_key = mint(&SigningKey::Secret(&[7; 32]), &ada, "sightline", None, HOUR).unwrap();
    let wrong_audience = token(&ada, "somebody-else");
    let wrong_scope = token(&claims("ada", "service"), "sightline");
    let table: [(Option<&str>, Code, &str); 6] = [
        (None, Code::Unauthenticated, "TOKEN_MISSING"),
        (Some("not.a.token"), Code::Unauthenticated, "TOKEN_INVALID"),
        (Some(&forged), Code::Unauthenticated, "TOKEN_SIGNATURE"),
        (Some(&other_key), Code::Unauthenticated, "TOKEN_SIGNATURE"),
        (Some(&wrong_audience), Code::Unauthenticated, "TOKEN_AUDIENCE"),
        (Some(&wrong_scope), Code::PermissionDenied, "TOKEN_SCOPE"),
    ];
    for (bad, code, reason) in table {
        let status = client.classify(request(frame("ada"), bad)).await.unwrap_err();
        let (seen_code, seen_reason, message) = seen(&status);
        assert_eq!((seen_code, seen_reason.as_str()), (code, reason));
        assert!(bad.is_none_or(|bad| !message.contains(bad)), "the message repeats the token");
        assert!(client.classify(request(frame(""), Some(&good))).await.is_ok(), "after {reason}");
    }
    let status = client.classify(request(frame("bob"), Some(&good))).await.unwrap_err();
    assert_eq!(seen(&status).1, "USER_MISMATCH");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_may_not_call_the_services_behind_the_edge() {
    let mesh = guarded().await;
    let client = token(&claims("ada", "classify"), "sightline");
    let status = mesh.stats().await.query(request(QueryRequest::default(), Some(&client))).await.unwrap_err();
    assert_eq!(seen(&status).1, "TOKEN_SCOPE");
    mesh.stop().await;
}
