//! The real binary as a child process.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{models::Small, setup};

/// `sightline dev` or `sightline serve` in a process of its own, on free ports, killed when dropped.
pub struct Process {
    child: Child,
    addresses: HashMap<String, SocketAddr>,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Process {
    /// The binary that `cargo xtask test` built, or a visible skip.
    pub fn binary() -> Option<PathBuf> {
        setup::path("SIGHTLINE_TEST_BINARY")
    }

    /// The binary as a command that sees none of the caller's settings.
    pub fn command() -> Option<Command> {
        let mut command = Command::new(Self::binary()?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SIGHTLINE_")) {
            command.env_remove(name);
        }
        Some(command)
    }

    /// Runs a command to its end; for commands that are expected to end.
    pub fn run(arguments: &[&str]) -> Option<Output> {
        Some(Self::command()?.args(arguments).output().unwrap())
    }

    /// Starts `sightline dev` with its data and a small model in `folder`, and waits until it serves.
    pub fn dev(folder: &TempDir, settings: &[&str]) -> Option<Self> {
        let model = Small::default().write(folder.path());
        let data = folder.path().join("data");
        let mut all = vec![
            format!("classifier.models=[{:?}]", model.display().to_string()),
            format!("node.data_dir={}", data.display()),
        ];
        for section in ["ingest", "classifier", "ratelimiter", "stats"] {
            all.push(format!("{section}.listen=127.0.0.1:0"));
        }
        all.push("telemetry.admin_listen=127.0.0.1:0".into());
        all.push("telemetry.log=warn".into());
        all.extend(settings.iter().map(ToString::to_string));
        let mut command = Self::command()?;
        command.arg("dev");
        for setting in all {
            command.args(["--set", &setting]);
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut process = Self { child, addresses: HashMap::new(), log: Arc::default() };
        // The banner: "ingest       http://127.0.0.1:7401  …", and as its last line "Ctrl-C stops everything".
        for line in BufReader::new(process.child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.starts_with("Ctrl-C") {
                break;
            }
            let mut words = line.split_whitespace();
            if let (Some(name), Some(uri)) = (words.next(), words.next())
                && let Some(address) = uri.strip_prefix("http://").and_then(|rest| rest.split('/').next())
                && let Ok(address) = address.parse()
            {
                process.addresses.insert(name.to_owned(), address);
            }
        }
        assert!(process.addresses.contains_key("ingest"), "the process did not come up");
        Some(process)
    }

    /// Starts `sightline serve ROLE…` with these arguments and waits until each role listens, as its log says. Every
    /// role gets a free port of loopback unless the arguments set `ROLE.listen`.
    pub fn serve(roles: &[&str], arguments: &[&str]) -> Option<Self> {
        let mut command = Self::command()?;
        command.arg("serve").args(roles);
        for listen in
            roles.iter().map(|role| format!("{role}.listen")).chain(["telemetry.admin_listen".into()])
        {
            command.args(["--set", &format!("{listen}=127.0.0.1:0")]);
        }
        command.args(["--set", "telemetry.log=info", "--set", "telemetry.log_format=json"]).args(arguments);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut process = Self { child, addresses: HashMap::new(), log: Arc::default() };
        let mut log = BufReader::new(process.child.stderr.take().unwrap()).lines().map_while(Result::ok);
        while process.addresses.len() < roles.len() {
            let line = log.next().expect("the process did not come up");
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            if event["message"] == "serving" {
                let [role, address] = ["role", "address"].map(|field| event[field].as_str().unwrap());
                process.addresses.insert(role.to_owned(), address.parse().unwrap());
            }
        }
        let kept = Arc::clone(&process.log);
        std::thread::spawn(move || {
            log.for_each(|line| {
                eprintln!("{line}");
                kept.lock().unwrap().extend(serde_json::from_str(&line));
            });
        });
        Some(process)
    }

    /// What a process of [`Process::serve`] has logged at a level since it served, such as "WARN".
    pub fn logged(&self, level: &str) -> Vec<Value> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|event| event["level"] == level).cloned().collect()
    }

    /// Where a role listens: "ingest", …, "metrics".
    pub fn address(&self, role: &str) -> SocketAddr {
        self.addresses[role]
    }

    /// The same as `http://…`.
    pub fn uri(&self, role: &str) -> String {
        format!("http://{}", self.address(role))
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes, from /proc.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGHUP: look at the certificates' files now.
    pub fn hang_up(&self) {
        signal("-HUP", self.id());
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&self) {
        signal("-TERM", self.id());
    }

    /// The exit status of a process that was asked to stop; fails the test when it takes longer than `within`.
    pub fn ended(mut self, within: Duration) -> ExitStatus {
        let (id, (tell, told)) = (self.id(), mpsc::sync_channel(1));
        std::thread::spawn(move || tell.send(self.child.wait().unwrap()));
        told.recv_timeout(within).unwrap_or_else(|_| {
            signal("-KILL", id);
            panic!("still running {within:?} after it was asked to stop")
        })
    }

    /// SIGTERM, and the exit status; fails the test when it takes longer than `within`.
    pub fn terminate(self, within: Duration) -> ExitStatus {
        self.ask_to_stop();
        self.ended(within)
    }
}

fn signal(signal: &str, id: u32) {
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
