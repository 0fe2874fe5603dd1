//! What keeps a process from starting: told by setting, file and what is wrong with it, and exit code 2.

use std::{fs, net::TcpListener, path::Path};

use sightline_model::manifest::{Digest, Manifest};
use sightline_testkit::models::Small;

use crate::support::{Said, sightline};

#[test]
fn a_taken_port_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = format!("node.data_dir={}", folder.path().display());
    for (setting, other) in
        [("stats.listen", "telemetry.admin_listen"), ("telemetry.admin_listen", "stats.listen")]
    {
        let (setting, other) = (format!("{setting}={address}"), format!("{other}=127.0.0.1:0"));
        let arguments = ["serve", "stats", "--set", &setting, "--set", &other, "--set", &data];
        let Some(said) = sightline(&arguments) else { return };
        let (name, _) = setting.split_once('=').unwrap();
        said.refused(&[&format!("`{name}`: {address} is in use by another process"), "choose another port"]);
    }
}

/// Starts a classifier that is to serve this folder and must refuse.
fn serve(models: &[&Path]) -> Option<Said> {
    let models: Vec<_> = models.iter().map(|model| format!("{:?}", model.display().to_string())).collect();
    let models = format!("classifier.models=[{}]", models.join(","));
    let settings = ["classifier.listen=127.0.0.1:0", "telemetry.admin_listen=127.0.0.1:0", &models];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    sightline(&["serve", "classifier"].into_iter().chain(settings).collect::<Vec<_>>())
}

#[test]
fn no_model_at_all_is_refused_with_the_way_out() {
    let Some(said) = serve(&[]) else { return };
    said.refused(&["`classifier.models` is empty", "sightline models import"]);
}

#[test]
fn a_missing_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere");
    let Some(said) = serve(&[&missing]) else { return };
    said.refused(&[&missing.display().to_string(), "No such file"]);

    let model = Small::default().write(folder.path());
    fs::remove_file(model.join("model.pt")).unwrap();
    serve(&[&model]).unwrap().refused(&[&model.join("model.pt").display().to_string(), "No such file"]);
}

#[test]
fn a_manifest_that_says_nonsense_is_named_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let model = Small::default().write(folder.path());
    let manifest = fs::read_to_string(model.join("model.toml")).unwrap();
    for (good, bad, words) in [
        ("schema = 1", "schema = 2", "`schema` is 2, this program reads 1"),
        ("width = 32", "width = 0", "`input.width`"),
        ("tolerance", "tolerence", "tolerence"),
        ("file = \"model.pt\"", "file = \"../model.pt\"", "`file`"),
    ] {
        assert!(manifest.contains(good), "{manifest}");
        fs::write(model.join("model.toml"), manifest.replace(good, bad)).unwrap();
        let Some(said) = serve(&[&model]) else { return };
        said.refused(&[&model.display().to_string(), words]);
    }
}

#[test]
fn a_changed_model_file_is_told_by_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let model = Small::default().write(folder.path());
    let file = model.join("model.pt");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let Some(said) = serve(&[&model]) else { return };
    let digest = Digest::of(&bytes).to_string();
    said.refused(&[&file.display().to_string(), &format!("digest is {digest}"), "the manifest says sha256:"]);
}

/// Puts `bytes` in the place of the module, with their right digest.
fn replace(model: &Path, bytes: &[u8]) {
    fs::write(model.join("model.pt"), bytes).unwrap();
    let manifest = Manifest { digest: Digest::of(bytes), ..Manifest::load(model).unwrap() };
    manifest.save(model).unwrap();
}

#[test]
fn a_file_that_is_no_module_is_named_though_its_digest_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let model = Small::default().write(folder.path());
    let module = fs::read(model.join("model.pt")).unwrap();
    let mut damaged = module.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for bytes in [&b"this is no TorchScript"[..], &module[..module.len() / 2], &damaged] {
        replace(&model, bytes);
        let Some(said) = serve(&[&model]) else { return };
        let file = model.join("model.pt").display().to_string();
        said.refused(&["model small@1", &file, "is not a TorchScript module that can be loaded"]);
        assert!(
            said.err.lines().filter(|line| !line.starts_with('{')).count() == 1,
            "one line: {}",
            said.err
        );
    }
}

#[test]
fn a_model_whose_output_has_another_shape_is_refused_by_both_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let model = Small { outputs: Some(5), ..Small::default() }.write(folder.path());
    let Some(said) = serve(&[&model]) else { return };
    said.refused(&["model small@1", "gives 5 values for 1 images where model.toml names 3 classes"]);
}

#[test]
fn the_same_model_twice_and_a_device_that_is_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Small::default().write(folder.path());
    let Some(said) = serve(&[&model, &model]) else { return };
    said.refused(&["`classifier.models` names small@1 twice"]);
    let settings =
        ["classifier.listen=127.0.0.1:0", "telemetry.admin_listen=127.0.0.1:0", "classifier.device=tpu"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let said = sightline(&["serve", "classifier"].into_iter().chain(settings).collect::<Vec<_>>()).unwrap();
    said.refused(&["`classifier.device`", "tpu"]);
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let data = format!("node.data_dir={}", file.join("data").display());
    let settings = ["stats.listen=127.0.0.1:0", "telemetry.admin_listen=127.0.0.1:0", &data];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<_> = ["serve", "stats"].into_iter().chain(settings).collect();
    let Some(said) = sightline(&arguments) else { return };
    said.refused(&["`node.data_dir`: cannot make", &file.display().to_string()]);
}
