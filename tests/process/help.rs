//! Help that teaches.

use crate::support::sightline;

/// Every command, and words without which its help would not say how to use it.
const COMMANDS: [(&str, &[&str]); 22] = [
    (
        "",
        &[
            "image safety",
            "sightline classify photo.jpg",
            "sightline dev",
            "SIGHTLINE_*",
            "--config",
            "--set",
        ],
    ),
    ("dev", &["Ctrl-C", "loopback", "node.data_dir", "--once", "\"dev\""]),
    ("serve", &["loopback", "[auth]", "--insecure", "ingest", "classifier", "stats", "ratelimiter", "Helm"]),
    (
        "classify",
        &["JPEG, PNG, WebP or GIF", "--json", "--endpoint", "--model", "Exits with 1", "--token-file"],
    ),
    ("stats", &["query"]),
    ("stats query", &["Examples", "--by", "--bucket", "--user", "RFC 3339", "--endpoint", "--json"]),
    ("models", &["list", "import"]),
    ("models list", &["classifier", "--endpoint", "--json"]),
    (
        "models import",
        &["npm pack nsfwjs@4.4.0", "inception-v3", "--out", "classifier.models", "docs/MODELS.md"],
    ),
    ("limits", &["check"]),
    ("limits check", &["user=ada", "exits with 1", "--hits", "--tenant", "--json"]),
    ("mesh", &["top"]),
    ("mesh top", &["telemetry.admin_listen", "--admin", "--every", "--once", "--json", "LATENCY", "jq"]),
    (
        "health",
        &["grpc.health.v1", "Examples", "--endpoint", "--service", "--json", "NOT_SERVING", "exits with 1"],
    ),
    ("config", &["check", "print"]),
    ("config check", &["--config", "--set"]),
    ("config print", &["TOML", "--markdown"]),
    ("token", &["mint"]),
    (
        "token mint",
        &["--secret-file", "--key-file", "--user", "--scope", "classify", "service", "--lifetime"],
    ),
    ("migrate", &["PostgreSQL", "stats.postgres_url", "--dry-run", "--json"]),
    ("completions", &["bash", "zsh", "fish", "/etc/bash_completion.d/sightline"]),
    ("help", &[]),
];

#[test]
fn the_help_of_every_command_teaches() {
    for (command, words) in COMMANDS.iter().filter(|(command, _)| *command != "help") {
        let arguments: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let Some(said) = sightline(&arguments) else { return };
        let help = said.ok();
        let first = help.lines().next().unwrap();
        assert!(first.len() > 12 && !first.starts_with("Usage"), "{command}: {first:?} says nothing");
        for word in *words {
            assert!(help.contains(word), "`sightline {command} --help` does not mention {word:?}:\n{help}");
        }
        for (listed, what) in commands_in(&help) {
            assert!(!what.is_empty(), "`sightline {command} --help` says nothing of {listed}");
            let full = format!("{command} {listed}");
            let known = listed == "help" || COMMANDS.iter().any(|(name, _)| *name == full.trim());
            assert!(known, "`{full}` is not in the list of this test");
        }
    }
}

/// Name and description of each line below "Commands:".
fn commands_in(help: &str) -> impl Iterator<Item = (&str, &str)> {
    let below = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = below.take_while(|line| line.starts_with("  "));
    lines.filter(|line| !line.starts_with("   ")).map(|line| {
        let line = line.trim();
        line.split_once("  ").map_or((line, ""), |(name, what)| (name, what.trim()))
    })
}

/// Every command that calls a mesh says how to trust it, and by which variables.
#[test]
fn commands_that_call_a_mesh_teach_tls() {
    for command in ["classify", "stats query", "models list", "limits check", "mesh top", "health"] {
        let arguments: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let Some(said) = sightline(&arguments) else { return };
        let help = said.ok();
        for word in [
            "https",
            "--ca <FILE>",
            "--cert <FILE>",
            "--key <FILE>",
            "--server-name <NAME>",
            "spiffe://",
            "SIGHTLINE_CLIENT_CA",
            "SIGHTLINE_CLIENT_CERT",
            "SIGHTLINE_CLIENT_KEY",
            "SIGHTLINE_CLIENT_SERVER_NAME",
        ] {
            assert!(help.contains(word), "`sightline {command} --help` does not mention {word:?}:\n{help}");
        }
    }
}

#[test]
fn a_slip_is_answered_with_what_was_meant() {
    let Some(said) = sightline(&["clasify", "photo.jpg"]) else { return };
    said.refused(&["clasify", "classify"]);
    sightline(&["classify"]).unwrap().refused(&["<FILE>", "--help"]);
    sightline(&["serve", "everything"]).unwrap().refused(&["everything", "ingest, classifier, stats"]);
}

#[test]
fn the_version_is_told() {
    let Some(said) = sightline(&["--version"]) else { return };
    assert_eq!(said.ok(), concat!("sightline ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn shells_complete_every_command_and_option() {
    for (shell, start) in
        [("bash", "_sightline()"), ("zsh", "#compdef sightline"), ("fish", "complete -c sightline")]
    {
        let Some(said) = sightline(&["completions", shell]) else { return };
        let script = said.ok();
        assert!(script.contains(start), "{shell}: {script}");
        for name in ["classify", "once", "completions", "endpoint", "token-file", "bucket", "insecure"] {
            assert!(script.contains(name), "{shell} does not complete {name}");
        }
    }
}
