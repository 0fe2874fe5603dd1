//! Running the binary, and talking to one that runs.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Output,
};

use serde_json::Value;
use sightline_proto::ingest::{Frame, ingest_service_client::IngestServiceClient};
use sightline_testkit::Process;
use tonic::transport::Channel;

/// What a command that ended said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The standard output of a command that must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Fails unless the command could not be done at all, and said why: with all these words.
    pub fn refused(&self, words: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (2, ""), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
    }

    /// Standard output as one JSON value a line.
    pub fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }
}

/// Runs a command to its end, or skips visibly.
pub fn sightline(arguments: &[&str]) -> Option<Said> {
    Process::run(arguments).map(Said::of)
}

/// The total that `stats query` prints.
pub fn counted(process: &Process) -> usize {
    let said = sightline(&["stats", "query", "--json", "--endpoint", &process.uri("stats")]).unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    said.lines().iter().map(|row| row["frames"].as_u64().unwrap() as usize).sum()
}

/// A counter or gauge of `/metrics`; 0 until it is first counted.
pub fn metric(address: SocketAddr, name: &str) -> f64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// A client of the public API.
pub async fn ingest(process: &Process) -> IngestServiceClient<Channel> {
    let channel = Channel::from_shared(process.uri("ingest")).unwrap().connect().await.unwrap();
    IngestServiceClient::new(channel).max_encoding_message_size(64 << 20)
}

/// A frame of Ada's.
pub fn frame(image: Vec<u8>) -> Frame {
    Frame { user_id: "ada".into(), image: image.into(), ..Frame::default() }
}
