//! The larger model of the package.

use sightline_testkit::setup;

use crate::support::{assert_probabilities, classify, mesh, samples, scores};

#[tokio::test(flavor = "multi_thread")]
async fn inception_v3_classifies_every_photograph() {
    let (Some(model), Some(photos)) = (setup::path("SIGHTLINE_TEST_INCEPTION"), samples()) else { return };
    let mesh = mesh(&[model]).await;
    let mut classified = 0;
    for entry in std::fs::read_dir(photos).unwrap() {
        let path = entry.unwrap().path();
        let verdict = classify(&mesh, std::fs::read(&path).unwrap(), "").await;
        let verdict = verdict.unwrap_or_else(|status| panic!("{}: {status}", path.display()));
        assert_eq!(verdict.model, "nsfwjs-inception-v3@4.4.0");
        assert_probabilities(&scores(&verdict), &path.display().to_string());
        classified += 1;
    }
    assert!(classified > 20, "only {classified} photographs are there");
    mesh.stop().await;
}
