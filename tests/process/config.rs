//! Settings: printed, read back, refused by name.

use std::fs;

use sightline_testkit::{Process, setup};

use crate::support::{Said, sightline};

#[test]
fn what_print_shows_reads_back_as_the_same_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sightline.toml");
    let path = file.to_str().unwrap();
    let set = ["--set", "ingest.max_batch=7", "--set", "policy.mild=0.25", "--set", "auth.issuer=me"];
    let Some(printed) = sightline(&[&["config", "print"][..], &set].concat()) else { return };
    let printed = printed.ok();
    assert!(printed.contains("\nmax_batch = 7\n") && printed.contains("\nissuer = \"me\"\n"), "{printed}");
    fs::write(&file, &printed).unwrap();
    assert_eq!(sightline(&["config", "check", "--config", path]).unwrap().ok(), "the settings are good\n");
    assert_eq!(sightline(&["config", "print", "--config", path]).unwrap().ok(), printed);
}

#[test]
fn the_reference_in_docs_is_what_the_binary_prints() {
    let Some(said) = sightline(&["config", "print", "--markdown"]) else { return };
    let file = fs::read_to_string(setup::repository().join("docs/CONFIG.md")).unwrap();
    assert!(said.ok() == file, "docs/CONFIG.md is stale: run `cargo xtask gen`");
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sightline.toml");
    fs::write(&file, "[ingest]\nmax_batch = 2\nmax_side = 2\ndecoders = 2\n").unwrap();
    let Some(mut command) = Process::command() else { return };
    command.env("SIGHTLINE_CONFIG", &file).env("SIGHTLINE_INGEST_MAX_SIDE", "3");
    command.env("SIGHTLINE_INGEST_DECODERS", "3").args(["config", "print", "--set", "ingest.decoders=4"]);
    let printed = Said::of(command.output().unwrap()).ok();
    for line in ["\nmax_batch = 2\n", "\nmax_side = 3\n", "\ndecoders = 4\n", "\nstream_in_flight = 64\n"] {
        assert!(printed.contains(line), "{line:?} is not in {printed}");
    }
}

/// Runs `config check` over a file.
fn check(text: &str) -> Option<Said> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sightline.toml");
    fs::write(&file, text).unwrap();
    sightline(&["config", "check", "--config", file.to_str().unwrap()])
}

#[test]
fn a_wrong_file_is_refused_by_file_and_key() {
    let cases: [(&str, &[&str]); 6] = [
        ("[ingest\n", &["sightline.toml", "line 1"]),
        (
            "[ingest]\nmax_btach = 3\n",
            &["sightline.toml", "`ingest.max_btach` is not a setting", "`max_batch`"],
        ),
        ("[ingets]\nmax_batch = 3\n", &["sightline.toml", "`ingets` is not a setting", "`ingest`"]),
        ("[ingest]\nmax_batch = \"many\"\n", &["sightline.toml", "`ingest.max_batch`", "\"many\""]),
        ("[ingest]\nmax_batch = 0\n", &["`ingest.max_batch` must be at least 1"]),
        ("[policy]\nmild = 1.5\n", &["`policy.mild`: 1.5 is not a probability"]),
    ];
    for (text, words) in cases {
        let Some(said) = check(text) else { return };
        said.refused(words);
    }
}

#[test]
fn files_that_settings_name_are_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    let [rules, secret] = ["limits.toml", "secret"].map(|name| folder.path().join(name));
    fs::write(&rules, "[[rule]]\nname = \"a\"\nkeys = [\"user\"]\nlimit = 0\nper = \"1s\"\nburst = 1\n")
        .unwrap();
    fs::write(&secret, "short").unwrap();
    let Some(said) = check(&format!("[ratelimiter]\nrules = {rules:?}\n")) else { return };
    said.refused(&["limits.toml", "rule \"a\": `limit` must be greater than 0"]);
    let said = check(&format!("[auth]\nsecret_file = {secret:?}\n")).unwrap();
    said.refused(&["`auth.secret_file`", "5 bytes; HS256 needs 32 or more"]);
    let said = check("[auth]\njwks_file = \"/nowhere/keys.json\"\n").unwrap();
    said.refused(&["`auth.jwks_file`", "/nowhere/keys.json"]);
}

#[test]
fn settings_with_which_no_process_would_start_are_refused() {
    let cases: [(&str, &[&str]); 5] = [
        (
            "[ingest]\nlisten = \"0.0.0.0:7401\"\n",
            &["`ingest.listen` is 0.0.0.0:7401, beyond loopback", "--insecure"],
        ),
        ("[ingest]\nclassifier = []\n", &["`ingest.classifier`: no address is configured"]),
        ("[telemetry]\nlog = \"=loud=\"\n", &["`telemetry.log`", "=loud="]),
        ("[classifier]\nmodels = [\"/nowhere\"]\n", &["`classifier.models`", "/nowhere"]),
        (
            "[auth]\nservice_token_file = \"/nowhere/token\"\n",
            &["`auth.service_token_file`", "/nowhere/token"],
        ),
    ];
    for (text, words) in cases {
        let Some(said) = check(text) else { return };
        said.refused(words);
    }
}

#[test]
fn the_environment_may_name_a_version_that_is_a_number_and_hold_what_is_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let Some(mut command) = Process::command() else { return };
    command.args(["config", "print"]).env("SIGHTLINE_POLICY_VERSION", "2");
    command.env("SOMEBODYS", std::ffi::OsStr::from_bytes(&[0xff, 0xfe]));
    assert!(Said::of(command.output().unwrap()).ok().contains("\nversion = \"2\"\n"));
}

#[test]
fn a_missing_file_an_unknown_variable_and_a_malformed_flag_are_refused() {
    let Some(said) = sightline(&["config", "check", "--config", "/nowhere/sightline.toml"]) else { return };
    said.refused(&["/nowhere/sightline.toml does not exist"]);
    let said = sightline(&["config", "check", "--set", "ingest.max_batch"]).unwrap();
    said.refused(&["--set ingest.max_batch: write it as section.key=value"]);
    let mut command = Process::command().unwrap();
    command.args(["config", "check"]).env("SIGHTLINE_INGEST_MAX_BACTH", "3");
    let said = Said::of(command.output().unwrap());
    said.refused(&["SIGHTLINE_INGEST_MAX_BACTH sets nothing", "did you mean SIGHTLINE_INGEST_MAX_BATCH?"]);
}
