//! toxiproxy: a TCP proxy that delays and breaks what passes through.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::{Error, Home, Result, Server, Spec, free_port, http, tools::find};

/// The proxies' server.
#[derive(Debug)]
pub struct Toxiproxy {
    /// The process.
    pub server: Server,
    api: u16,
}

impl Toxiproxy {
    /// Starts it without a proxy.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start() -> Result<Self> {
        let home = Home::temporary("toxiproxy")?;
        let api = free_port();
        let spec = Spec {
            name: "toxiproxy".into(),
            program: find("toxiproxy-server")?,
            arguments: ["-host", "127.0.0.1", "-port", &api.to_string()].map(str::to_owned).to_vec(),
            environment: vec![],
            home,
            user: None,
            ready: Box::new(move || http::is_ok(api, "/version")),
        };
        Ok(Self { server: Server::start(spec)?, api })
    }

    /// A proxy before a port of 127.0.0.1.
    ///
    /// # Errors
    /// [`Error`].
    pub fn proxy(&self, upstream: u16) -> Result<Proxy> {
        self.proxy_on(Ipv4Addr::LOCALHOST.into(), upstream)
    }

    /// The same, listening on another address of this machine.
    ///
    /// # Errors
    /// [`Error`].
    pub fn proxy_on(&self, address: IpAddr, upstream: u16) -> Result<Proxy> {
        let port = free_port();
        let name = format!("to-{upstream}-{port}");
        let body = format!(
            r#"{{"name":"{name}","listen":"{address}:{port}","upstream":"127.0.0.1:{upstream}","enabled":true}}"#
        );
        expect(self.api, "POST", "/proxies", &body)?;
        Ok(Proxy { api: self.api, name, port })
    }
}

/// One proxy.
#[derive(Debug)]
pub struct Proxy {
    api: u16,
    name: String,
    port: u16,
}

impl Proxy {
    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers take this much longer from now on; zero takes the delay away.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delay(&self, by: Duration) -> Result<()> {
        let toxics = format!("/proxies/{}/toxics", self.name);
        // Answers 404 when there is none yet.
        http::request(self.api, "DELETE", &format!("{toxics}/delay"), "")?;
        if by.is_zero() {
            return Ok(());
        }
        let body = format!(
            r#"{{"name":"delay","type":"latency","stream":"downstream","attributes":{{"latency":{}}}}}"#,
            by.as_millis()
        );
        expect(self.api, "POST", &toxics, &body)
    }

    /// Closed: connections are cut and refused. Open again: they are let through.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(&self, open: bool) -> Result<()> {
        expect(self.api, "POST", &format!("/proxies/{}", self.name), &format!(r#"{{"enabled":{open}}}"#))
    }
}

fn expect(api: u16, method: &str, path: &str, body: &str) -> Result<()> {
    let answer = http::request(api, method, path, body)?;
    match answer.status {
        200..=299 => Ok(()),
        status => Err(Error::Command {
            command: format!("{method} {path} {body}"),
            problem: format!("{status} {}", answer.body),
        }),
    }
}
