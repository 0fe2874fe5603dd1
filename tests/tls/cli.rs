//! The command line as a client of a mesh with TLS.

use std::fs;

use serde_json::Value;
use sightline_servers::free_port;
use sightline_testkit::{Process, eventually, frames};

use crate::{
    certs::{Authority, DAY},
    mesh::{Mesh, id},
};

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Said {
    let mut command = Process::command().unwrap();
    let output = command.args(arguments).envs(environment.iter().copied()).output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// An operator's laptop: files, and the mesh.
struct Desk {
    mesh: Mesh,
    ca: String,
    cert: String,
    key: String,
    photo: String,
}

impl Desk {
    async fn start(authority: &Authority) -> Option<Self> {
        let operator = "spiffe://mesh.example/ns/tools/sa/operator";
        let callers = |service: &str| format!("{service}=[{:?},{operator:?}]", id("ingest"));
        let callers = ["stats", "classifier", "ratelimiter"].map(callers).join(",");
        let mesh = Mesh::start(authority, DAY, &[&format!("tls.callers={{{callers}}}")]).await?;
        let path = |name: &str| mesh.folder().path().join(name).display().to_string();
        let [cert, key, photo] = ["operator.pem", "operator.key", "photo.png"].map(path);
        let own = authority.issue(&[operator], DAY);
        fs::write(&cert, own.0).unwrap();
        fs::write(&key, own.1).unwrap();
        fs::write(&photo, frames::png(1, 64)).unwrap();
        let ca = mesh.bundle("ca.pem", &[authority]).display().to_string();
        Some(Self { mesh, ca, cert, key, photo })
    }

    fn https(&self, service: &str) -> String {
        format!("https://{}", self.mesh.service(service).address(service))
    }

    /// A command to a service inside the mesh, as the operator.
    fn inside(&self, command: &[&str], service: &str) -> Said {
        let (endpoint, name) = (self.https(service), id(service));
        let tls = ["--ca", &self.ca, "--cert", &self.cert, "--key", &self.key, "--server-name", &name];
        run(&[command, &["--endpoint", &endpoint], &tls].concat(), &[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_calls_a_mesh_speaks_tls_and_says_what_does_not_fit() {
    if Process::binary().is_none() {
        return;
    }
    let authority = Authority::new("mesh");
    let Some(desk) = Desk::start(&authority).await else { return };
    eventually!(desk.mesh.service("ingest").view("classifier")["endpoints"][0]["state"] == "ready");
    commands(&desk).await;
    environment(&desk);
    mistakes(&desk);
}

async fn commands(desk: &Desk) {
    let edge = desk.https("ingest");
    let classify = ["classify", "--json", "--endpoint", &edge, "--ca", &desk.ca, &desk.photo];
    eventually!(run(&classify, &[]).code == 0);
    // By another name than the address.
    let named = [&classify[..], &["--server-name", "images.example"]].concat();
    assert_eq!(run(&named, &[]).code, 0);

    let said = desk.inside(&["models", "list", "--json"], "classifier");
    assert!(said.code == 0 && said.out.contains("\"small\""), "{}{}", said.out, said.err);
    let said = desk.inside(&["limits", "check", "--json", "user=ada"], "ratelimiter");
    assert!(said.code == 0 && said.out.contains("\"allowed\":true"), "{}{}", said.out, said.err);
    let counted = || desk.inside(&["stats", "query", "--json"], "stats");
    // The same picture twice is one inference and two frames.
    eventually!(counted().out.contains("\"frames\":"));
    let said = desk.inside(&["health"], "stats");
    assert_eq!((said.code, said.out.trim()), (0, "SERVING"), "{}", said.err);
    let said = desk.inside(&["health", "--json", "--service", "dependency.tls"], "stats");
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["status"], "SERVING", "{}", said.err);
    let said = desk.inside(&["health", "--service", "nobody"], "stats");
    assert!(said.code == 2 && said.out.is_empty() && !said.err.is_empty(), "{}{}", said.out, said.err);
    let admin = format!("http://127.0.0.1:{}", desk.mesh.service("ingest").admin);
    let said = run(&["mesh", "top", "--once", "--admin", &admin], &[]);
    assert!(said.code == 0 && said.out.contains("ready"), "{}{}", said.out, said.err);
}

/// Variables stand for the options, also where a command reads settings: they are none.
fn environment(desk: &Desk) {
    let stats = desk.https("stats");
    let name = id("stats");
    let variables = [
        ("SIGHTLINE_CLIENT_CA", desk.ca.as_str()),
        ("SIGHTLINE_CLIENT_CERT", &desk.cert),
        ("SIGHTLINE_CLIENT_KEY", &desk.key),
        ("SIGHTLINE_CLIENT_SERVER_NAME", &name),
    ];
    let said = run(&["health", "--endpoint", &stats], &variables);
    assert_eq!(said.code, 0, "{}", said.err);
    // Without a scheme it is https then.
    let said = run(&["health", "--endpoint", stats.trim_start_matches("https://")], &variables);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(run(&["config", "check"], &variables).code, 0);
}

fn mistakes(desk: &Desk) {
    let stranger = desk.mesh.bundle("stranger.pem", &[&Authority::new("stranger")]).display().to_string();
    let (edge, stats) = (desk.https("ingest"), desk.https("stats"));
    let (plain_edge, plain_stats) = (edge.replace("https", "http"), stats.replace("https", "http"));
    let admin = format!("https://127.0.0.1:{}", desk.mesh.service("ingest").admin);
    let nobody = format!("https://127.0.0.1:{}", free_port());
    let health = |rest: &[&str]| run(&[&["health", "--endpoint"], rest].concat(), &[]);
    for (what, said, words) in [
        (
            "an unknown authority",
            health(&[&edge, "--ca", &stranger]),
            &["is not trusted", "an authority that --ca", "stranger.pem does not hold"][..],
        ),
        (
            "this machine's authorities",
            health(&[&edge]),
            &["an authority that this machine does not trust: name its certificate with --ca"],
        ),
        (
            "another name",
            health(&[&edge, "--ca", &desk.ca, "--server-name", "elsewhere.example"]),
            &["not valid for name", "elsewhere.example", "--server-name"],
        ),
        (
            "another identity",
            health(&[
                &stats,
                "--ca",
                &desk.ca,
                "--cert",
                &desk.cert,
                "--key",
                &desk.key,
                "--server-name",
                "spiffe://mesh.example/ns/prod/sa/other",
            ]),
            &["is not who it must be", "the peer is spiffe://mesh.example/ns/prod/sa/stats", "--server-name"],
        ),
        ("plain to the edge", health(&[&plain_edge]), &["it speaks TLS", "https"]),
        ("plain to a service", health(&[&plain_stats]), &["it speaks TLS", "https"]),
        (
            "TLS to a plain port",
            run(&["mesh", "top", "--once", "--admin", &admin], &[]),
            &["does not speak TLS"],
        ),
        (
            "nobody",
            health(&[&nobody, "--ca", &desk.ca]),
            &["no sightline service answers at", "sightline dev"],
        ),
        ("options for http", health(&[&plain_edge, "--ca", &desk.ca]), &["is plain HTTP", "write https://"]),
        ("a certificate alone", health(&[&edge, "--cert", &desk.cert]), &["--cert needs --key"]),
        ("a key alone", health(&[&edge, "--key", &desk.key]), &["--key needs --cert"]),
        ("no file", health(&[&edge, "--ca", "/nowhere.pem"]), &["`--ca`: /nowhere.pem: "]),
        ("no certificate", health(&[&edge, "--ca", &desk.photo]), &["`--ca`: ", "photo.png"]),
        ("no address", health(&["ftp://a:1"]), &["--endpoint \"ftp://a:1\" is not an address"]),
    ] {
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{what}: {}", said.err);
        for word in words {
            assert!(said.err.contains(word), "{what}: no {word:?} in: {}", said.err);
        }
    }
}
