//! `sightline classify` and `sightline dev --once`.

use std::{fs, path::Path};

use serde_json::Value;
use sightline_proto::{
    ingest::{
        ClassifyBatchRequest, ClassifyBatchResponse, ClassifyRequest, ClassifyResponse,
        ClassifyStreamRequest, ClassifyStreamResponse,
        ingest_service_server::{IngestService, IngestServiceServer},
    },
    verdict::Verdict,
};
use sightline_testkit::{Process, frames, models::Small};
use tempfile::TempDir;
use tonic::{Request, Response, Status, Streaming};

use crate::support::{Said, sightline};

/// A picture, the same again, a text that calls itself a picture, and nothing at all.
fn files(folder: &TempDir) -> [String; 4] {
    let paths = ["photo.jpg", "again.jpg", "letter.png", "missing.gif"].map(|name| folder.path().join(name));
    fs::write(&paths[0], frames::jpeg(1, 64)).unwrap();
    fs::write(&paths[1], frames::jpeg(1, 64)).unwrap();
    fs::write(&paths[2], "Dear Ada").unwrap();
    paths.map(|path| path.display().to_string())
}

fn small_model(parent: &Path) -> String {
    format!("classifier.models=[{:?}]", Small::default().write(parent).display().to_string())
}

fn assert_verdict(line: &Value, path: &str) {
    let keys: Vec<_> = line.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["level", "milliseconds", "model", "path", "scores", "source"]);
    assert_eq!((&line["path"], &line["model"]), (&path.into(), &"small@1".into()));
    assert!(["NONE", "MILD", "SUGGESTIVE", "EXPLICIT", "SEVERE"].contains(&line["level"].as_str().unwrap()));
    assert!(line["milliseconds"].as_f64().unwrap() > 0.0);
    let scores = line["scores"].as_object().unwrap();
    assert_eq!(scores.keys().collect::<Vec<_>>(), ["explicit", "safe", "suggestive"]);
    let sum: f64 = scores.values().map(|value| value.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{line}");
}

fn assert_error(line: &Value, path: &str, code: &str, reason: &str, message: &str) {
    let error = serde_json::json!({ "code": code, "reason": reason, "message": message });
    assert_eq!(*line, serde_json::json!({ "path": path, "error": error }));
}

/// One line a file, in the order of the files, whichever mesh answered.
fn assert_lines(said: &Said, files: &[String; 4]) {
    assert_eq!(said.code, 1, "{said:?}");
    let lines = said.lines();
    assert_eq!(lines.len(), 4, "{said:?}");
    assert_verdict(&lines[0], &files[0]);
    assert_verdict(&lines[1], &files[1]);
    // Whichever came first was classified, the other shares its answer.
    let mut sources = [lines[0]["source"].as_str().unwrap(), lines[1]["source"].as_str().unwrap()];
    sources.sort_unstable();
    assert_eq!(sources, ["EXACT_DUPLICATE", "MODEL"]);
    assert_eq!(lines[0]["scores"], lines[1]["scores"]);
    let no_image = "frame.image: the bytes are no image; JPEG, PNG, WebP and GIF are taken";
    assert_error(&lines[2], &files[2], "INVALID_ARGUMENT", "IMAGE_UNRECOGNISED", no_image);
    let missing = "No such file or directory (os error 2)";
    assert_error(&lines[3], &files[3], "NOT_FOUND", "FILE_NOT_FOUND", missing);
}

#[test]
fn files_are_classified_by_a_mesh_in_the_commands_own_process() {
    let folder = tempfile::tempdir().unwrap();
    let (files, model) = (files(&folder), small_model(folder.path()));
    let mut arguments = vec!["classify", "--json", "--set", &model];
    arguments.extend(files.iter().map(String::as_str));
    let Some(said) = sightline(&arguments) else { return };
    assert_lines(&said, &files);
    assert_eq!(said.err, "");
}

#[test]
fn files_are_classified_by_a_running_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder);
    let Some(process) = Process::dev(&folder, &[]) else { return };
    let endpoint = process.uri("ingest");
    let mut arguments = vec!["classify", "--json", "--endpoint", &endpoint];
    arguments.extend(files.iter().map(String::as_str));
    assert_lines(&sightline(&arguments).unwrap(), &files);

    let said =
        sightline(&["classify", "--endpoint", &endpoint, "--json", "--model", "large", &files[0]]).unwrap();
    assert_eq!(said.code, 1);
    let message = "frame.model: \"large\" is not served; served are: small@1";
    assert_error(&said.lines()[0], &files[0], "NOT_FOUND", "MODEL_UNKNOWN", message);
}

#[test]
fn people_get_a_table_and_success_is_0() {
    let folder = tempfile::tempdir().unwrap();
    let (files, model) = (files(&folder), small_model(folder.path()));
    let data = format!("node.data_dir={}", folder.path().join("data").display());
    for command in [&["classify"][..], &["dev", "--once"]] {
        let arguments = [command, &["--set", &model, "--set", &data, &files[0]]].concat();
        let Some(said) = sightline(&arguments) else { return };
        // The file's name is enough where it tells the files apart.
        let name = Path::new(&files[0]).file_name().unwrap().to_str().unwrap();
        assert_table(&said.ok(), name);
    }
}

fn assert_table(text: &str, file: &str) {
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["image", "level", "scores", "source", "ms"]);
    let cells: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(cells[0], file);
    assert!(cells.contains(&"MODEL") && cells.contains(&"safe"), "{text}");
    assert!(cells.last().unwrap().parse::<f64>().unwrap() > 0.0, "{text}");
}

#[test]
fn a_mesh_that_is_not_there_is_named_with_the_way_out() {
    let Some(said) = sightline(&["classify", "--endpoint", "http://127.0.0.1:1", "photo.jpg"]) else {
        return;
    };
    said.refused(&["no ingest service answers at http://127.0.0.1:1", "sightline dev"]);
}

/// An ingest that answers nobody before eight wait.
struct Patient(tokio::sync::Barrier);

#[tonic::async_trait]
impl IngestService for Patient {
    type ClassifyBatchStream = tokio_stream::Empty<Result<ClassifyBatchResponse, Status>>;
    type ClassifyStreamStream = tokio_stream::Empty<Result<ClassifyStreamResponse, Status>>;

    async fn classify(&self, _: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        self.0.wait().await;
        Ok(Response::new(ClassifyResponse { verdict: Some(Verdict::default()) }))
    }

    async fn classify_batch(
        &self,
        _: Request<ClassifyBatchRequest>,
    ) -> Result<Response<Self::ClassifyBatchStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn classify_stream(
        &self,
        _: Request<Streaming<ClassifyStreamRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

#[test]
fn eight_files_are_on_their_way_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..16).map(|at| folder.path().join(format!("{at}.jpg"))).collect();
    files.iter().for_each(|file| fs::write(file, "x").unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = IngestServiceServer::new(Patient(tokio::sync::Barrier::new(8)));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let mut arguments = vec!["classify", "--json", "--endpoint", &endpoint, "--timeout", "20s"];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    let Some(said) = sightline(&arguments) else { return };
    assert_eq!((said.code, said.lines().len()), (0, 16), "{said:?}");
}
