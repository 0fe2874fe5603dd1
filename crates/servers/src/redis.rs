//! Redis: one server, or a cluster of several.

use std::{process::Command, time::Duration};

use crate::{
    Error, Home, Result, Server, Spec, free_port,
    process::{pause, run},
    tools::find,
};

/// A Redis without persistence, unless its arguments say otherwise.
#[derive(Debug)]
pub struct Redis {
    /// The process, to be killed, paused and started again.
    pub server: Server,
    port: u16,
}

impl Redis {
    /// Starts one; `arguments` as on its command line, such as `["--appendonly", "yes"]`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_at(Home::temporary("redis")?, free_port(), arguments)
    }

    /// The same at a place and port of the caller's choice.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start_at(home: Home, port: u16, arguments: &[&str]) -> Result<Self> {
        let number = port.to_string();
        let own = ["--port", &number, "--bind", "127.0.0.1", "--save", "", "--dir", "."];
        let spec = Spec {
            name: "redis".into(),
            program: find("redis-server")?,
            arguments: own.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect(),
            environment: vec![],
            home,
            user: None,
            ready: Box::new(move || {
                // Asks for a password or PONG: either way it answers.
                command(port, &["PING"]).is_ok_and(|said| said.contains("PONG") || said.contains("NOAUTH"))
            }),
        };
        find("redis-cli")?;
        Ok(Self { server: Server::start(spec)?, port })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs one command through redis-cli and returns what it prints.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        command(self.port, arguments)
    }
}

fn command(port: u16, arguments: &[&str]) -> Result<String> {
    run(Command::new(find("redis-cli")?).args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments))
}

/// A Redis Cluster of masters without replicas.
#[derive(Debug)]
pub struct RedisCluster {
    /// Its nodes.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts `count` nodes, three at least, and joins them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(count: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let bus = free_port().to_string();
            nodes.push(Redis::start(&["--cluster-enabled", "yes", "--cluster-port", &bus])?);
        }
        let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let mut create = Command::new(find("redis-cli")?);
        run(create.args(["--cluster", "create"]).args(addresses).args([
            "--cluster-replicas",
            "0",
            "--cluster-yes",
        ]))?;
        let cluster = Self { nodes };
        cluster.wait_joined()?;
        Ok(cluster)
    }

    /// The nodes' URLs.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    fn wait_joined(&self) -> Result<()> {
        /// Nodes gossip once a second.
        const TRIES: u32 = 600;
        for _ in 0..TRIES {
            let joined = |node: &Redis| {
                node.command(&["CLUSTER", "INFO"]).is_ok_and(|said| said.contains("cluster_state:ok"))
            };
            if self.nodes.iter().all(joined) {
                return Ok(());
            }
            pause(Duration::from_millis(50));
        }
        Err(Error::Command {
            command: "redis-cli --cluster create".into(),
            problem: "the nodes never joined".into(),
        })
    }
}
