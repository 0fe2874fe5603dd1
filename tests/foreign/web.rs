//! connect-web on Node.js.

use std::{os::unix::fs::symlink, process::Command};

use serde_json::{Value, json};
use sightline_testkit::setup;

use crate::support::{Mesh, NO_IMAGE, ORIGIN, assert_no_image, assert_repeat, assert_verdict, json_of};

#[test]
fn a_web_page_classifies_over_grpc_web_and_a_stranger_is_kept_out() {
    let (Some(node), Some(modules), Some(mesh)) =
        (setup::path("SIGHTLINE_TEST_NODE"), setup::path("SIGHTLINE_TEST_NODE_MODULES"), Mesh::start())
    else {
        return;
    };
    let repository = setup::repository();
    // Node looks for packages beside the script, and nothing is installed into the repository.
    let script = mesh.folder().join("client.mjs");
    std::fs::copy(repository.join("tests/web/client.mjs"), &script).unwrap();
    symlink(modules, mesh.folder().join("node_modules")).unwrap();
    let mut client = Command::new(node);
    client.arg(script).arg(repository.join("crates/proto/src/gen/descriptors.bin"));
    let seen = json_of(client.args([&mesh.process.uri("ingest"), ORIGIN]).args(mesh.images()));

    assert_repeat(&seen["unary"]);
    assert_eq!(seen["unary"]["headers"]["access-control-allow-origin"], ORIGIN);
    let exposed = names(&seen["unary"]["headers"]["access-control-expose-headers"]);
    assert_eq!(exposed, ["grpc-message", "grpc-status", "grpc-status-details-bin"]);

    let batch = seen["batch"].as_array().unwrap();
    assert_eq!(
        batch.iter().map(|answer| answer["index"].as_u64().unwrap_or(0)).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_verdict(&batch[0]["verdict"], "EXACT_DUPLICATE");
    assert_verdict(&batch[1]["verdict"], "MODEL");
    assert_no_image(&batch[2]["error"]);

    let bad = &seen["bad"];
    assert_eq!((&bad["code"], &bad["message"]), (&"InvalidArgument".into(), &NO_IMAGE.into()));
    assert_eq!(bad["info"], json!({ "reason": "IMAGE_UNRECOGNISED", "domain": "sightline" }));

    let allowed = &seen["allowed"];
    assert_eq!(allowed["status"], 200);
    assert_eq!(allowed["headers"]["access-control-allow-origin"], ORIGIN);
    assert_eq!(names(&allowed["headers"]["access-control-allow-methods"]), ["post"]);
    let headers = names(&allowed["headers"]["access-control-allow-headers"]);
    for needed in ["authorization", "content-type", "grpc-timeout", "x-grpc-web", "x-user-agent"] {
        assert!(headers.iter().any(|name| name == needed), "{needed}: {headers:?}");
    }
    assert_eq!(seen["stranger"]["headers"].get("access-control-allow-origin"), None, "{}", seen["stranger"]);
}

/// The names in a header, sorted, in lower case.
fn names(header: &Value) -> Vec<String> {
    let mut names: Vec<_> =
        header.as_str().unwrap_or("").split(',').map(|name| name.trim().to_lowercase()).collect();
    names.sort_unstable();
    names
}
