//! Every profile is clean to Helm's linter and to the schemas of a real API server.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use sightline_servers::find;

use crate::{
    cluster::cluster,
    schemas,
    support::{PROFILES, TLS, chart, helm, render, there},
};

#[test]
fn helm_lints_every_profile() {
    for profile in &PROFILES {
        let Some(mut helm) = helm() else { return };
        let output =
            helm.arg("lint").arg("--strict").arg(chart()).args(profile.arguments()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("[WARNING]"), "{}: {said}", profile.name);
    }
}

#[test]
fn every_object_is_what_the_api_servers_schema_says() {
    let Some(kubeconform) = there(find("kubeconform")) else { return };
    let Some(share) = cluster() else { return };
    let folder = tempfile::tempdir().unwrap();
    schemas::write(&share.alone(), folder.path());
    let check = |text: &str| {
        let location =
            format!("{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json", folder.path().display());
        let mut child = Command::new(&kubeconform)
            .args(["-strict", "-summary", "-output", "json", "-schema-location", &location])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let tls = TLS.iter().chain(&[r#"edgeTls.secretName="edge""#]);
    let tls: Vec<String> = tls.flat_map(|value| ["--set-json".into(), (*value).into()]).collect();
    let encrypted = (&PROFILES[1], [PROFILES[1].arguments(), tls].concat());
    for (profile, arguments) in
        PROFILES.iter().map(|profile| (profile, profile.arguments())).chain([encrypted])
    {
        let Some(text) = render(&arguments) else { return };
        let (valid, said) = check(&text);
        let summary: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(valid && summary["summary"]["skipped"] == 0, "{}: {said}", profile.name);
        assert!(summary["summary"]["valid"].as_u64().unwrap() >= 5, "{said}");
        // The check can fail: an unknown field is seen.
        let (valid, said) = check(&text.replacen("selector:", "selektor:", 1));
        assert!(!valid && said.contains("selektor"), "{said}");
    }
}
