//! The default model behind the public API, against the scores of nsfwjs itself.

use sightline_testkit::setup;

use crate::support::{assert_probabilities, classify, difference, expected, mesh, samples, scores};

#[tokio::test(flavor = "multi_thread")]
async fn photographs_get_the_scores_that_nsfwjs_gives_them() {
    let (Some(model), Some(photos)) = (setup::model(), samples()) else { return };
    let mesh = mesh(&[model]).await;
    let photo = |name| std::fs::read(photos.join(name)).unwrap();
    let rocket = include_bytes!("../vectors/nsfwjs/rocket.png").to_vec();
    let logo = include_bytes!("../vectors/nsfwjs/nsfwjs_logo.jpg").to_vec();
    // Decoders of JPEG differ by a level here and there; of PNG they may not.
    let (png, jpeg) = (1e-4, 2e-2);
    for (name, image, tolerance) in [
        ("astronaut.png", photo("astronaut.png"), png),
        ("coffee.png", photo("coffee.png"), png),
        ("rocket.png", rocket, png),
        ("rocket.png", photo("rocket.jpg"), jpeg),
        ("nsfwjs_logo.jpg", logo, jpeg),
    ] {
        let verdict = classify(&mesh, image, "").await.unwrap();
        let scores = scores(&verdict);
        assert_probabilities(&scores, name);
        let difference = difference(&scores, &expected(name));
        assert!(difference <= tolerance, "{name}: {scores:?} is off by {difference}");
        assert_eq!(verdict.model, "nsfwjs-mobilenet-v2@4.4.0");
        assert_eq!(verdict.level().short_name(), "NONE");
    }
    mesh.stop().await;
}
