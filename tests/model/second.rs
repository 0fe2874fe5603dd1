//! Any TorchScript model with a manifest is served like the default one, beside it.

use sightline_model::manifest::Role;
use sightline_proto::classifier::ListModelsRequest;
use sightline_testkit::{frames, models::Small, setup};
use tonic::Code;

use crate::support::{assert_probabilities, classify, mesh, scores};

#[tokio::test(flavor = "multi_thread")]
async fn a_differently_shaped_model_is_served_beside_the_default_and_chosen_by_name() {
    let Some(default) = setup::model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let binary = Small {
        name: "binary",
        side: 20,
        classes: vec![("fine", Role::Safe), ("not-fine", Role::Explicit)],
        ..Small::default()
    };
    let mesh = mesh(&[default, binary.write(folder.path())]).await;

    let listed = mesh.classifier().await.list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
    let listed: Vec<_> = listed.iter().map(|model| (model.name.as_str(), model.default)).collect();
    assert_eq!(listed, [("nsfwjs-mobilenet-v2", true), ("binary", false)]);

    let image = || frames::jpeg(1, 96);
    for (asked, answers, classes) in [
        ("", "nsfwjs-mobilenet-v2@4.4.0", &["Drawing", "Hentai", "Neutral", "Porn", "Sexy"][..]),
        (
            "nsfwjs-mobilenet-v2",
            "nsfwjs-mobilenet-v2@4.4.0",
            &["Drawing", "Hentai", "Neutral", "Porn", "Sexy"],
        ),
        ("binary", "binary@1", &["fine", "not-fine"]),
        ("binary@1", "binary@1", &["fine", "not-fine"]),
    ] {
        let verdict = classify(&mesh, image(), asked).await.unwrap();
        assert_eq!(verdict.model, answers, "asked for {asked:?}");
        assert_eq!(verdict.scores.iter().map(|score| &score.class).collect::<Vec<_>>(), classes);
        assert_probabilities(&scores(&verdict), asked);
    }
    for unknown in ["binary@2", "ternary"] {
        let status = classify(&mesh, image(), unknown).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        let served = "served are: nsfwjs-mobilenet-v2@4.4.0, binary@1";
        assert_eq!(status.message(), format!("frame.model: {unknown:?} is not served; {served}"));
    }
    mesh.stop().await;
}
