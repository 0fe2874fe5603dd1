//! grpcio.

use std::process::Command;

use sightline_testkit::setup;

use crate::support::{
    FRAMES_AN_HOUR, Mesh, NO_IMAGE, assert_no_image, assert_repeat, assert_verdict, json_of,
};

#[test]
fn a_python_client_generated_from_the_protos_uses_the_whole_public_api() {
    let (Some(python), Some(mesh)) = (setup::path("SIGHTLINE_TEST_PYTHON"), Mesh::start()) else { return };
    let repository = setup::repository();
    let mut client = Command::new(python);
    client.arg(repository.join("tests/python/client.py")).arg(repository.join("proto"));
    let seen = json_of(client.arg(mesh.process.address("ingest").to_string()).args(mesh.images()));

    assert_repeat(&seen["unary"]);

    // The first image was classified by the unary call; the second and the bytes that are no image are new.
    let batch = seen["batch"].as_array().unwrap();
    assert_eq!(batch.iter().map(|answer| answer["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_verdict(&batch[0]["verdict"], "EXACT_DUPLICATE");
    assert_verdict(&batch[1]["verdict"], "MODEL");
    assert_no_image(&batch[2]["error"]);

    let stream = &seen["stream"];
    assert_eq!(stream["welcome"]["maxInFlight"], 64);
    assert_eq!(stream["welcome"]["maxImageBytes"], "10000000");
    assert_eq!(stream["heartbeats"], serde_json::json!([7]));
    let answers = stream["answers"].as_object().unwrap();
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["100", "101", "102", "103", "104"]);
    for (id, answer) in answers {
        match id.as_str() {
            "102" => assert_no_image(&answer["error"]),
            _ => assert_verdict(&answer["verdict"], "EXACT_DUPLICATE"),
        }
    }

    let bad = &seen["bad"];
    assert_eq!((&bad["code"], &bad["message"]), (&"INVALID_ARGUMENT".into(), &NO_IMAGE.into()));
    assert_eq!(
        bad["ErrorInfo"],
        serde_json::json!({ "reason": "IMAGE_UNRECOGNISED", "domain": "sightline" })
    );

    let greedy = &seen["greedy"];
    assert_eq!(greedy["code"], "RESOURCE_EXHAUSTED");
    assert_eq!(greedy["ErrorInfo"]["reason"], "RATE_LIMITED");
    let retry = greedy["RetryInfo"]["retryDelay"].as_str().unwrap().trim_end_matches('s');
    let (retry, interval) = (retry.parse::<f64>().unwrap(), 3600.0 / FRAMES_AN_HOUR as f64);
    assert!(
        (interval - 60.0..=interval).contains(&retry),
        "a place comes free within {interval} s: {greedy}"
    );

    assert_eq!(seen["health"], serde_json::json!({ "check": "SERVING", "watch": "SERVING" }));

    let services: Vec<_> = seen["reflection"]["services"].as_array().unwrap().iter().collect();
    assert!(services.contains(&&"sightline.ingest.v1.IngestService".into()), "{services:?}");
    assert!(services.contains(&&"grpc.health.v1.Health".into()), "{services:?}");
    let methods = serde_json::json!({
        "Classify": "sightline.ingest.v1.ClassifyResponse",
        "ClassifyBatch": "sightline.ingest.v1.ClassifyBatchResponse",
        "ClassifyStream": "sightline.ingest.v1.ClassifyStreamResponse",
    });
    assert_eq!(seen["reflection"]["methods"], methods);
}
