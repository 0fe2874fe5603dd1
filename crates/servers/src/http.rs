//! As much HTTP as the servers' own APIs need: one request, one connection.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{Error, Result, io};

/// Longer than any of the servers takes to answer its API.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200 and so on.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Sends a request to 127.0.0.1; a body is sent as JSON.
///
/// # Errors
/// When there is no answer, or none that is HTTP.
pub fn request(port: u16, method: &str, path: &str, body: &str) -> Result<Answer> {
    request_at((Ipv4Addr::LOCALHOST, port).into(), method, path, body)
}

/// The same to another address of this machine.
///
/// # Errors
/// When there is no answer, or none that is HTTP.
pub fn request_at(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    let what = || io(format!("{method} http://{address}{path}"));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(what())?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(what())?;
    // Version 1.0: the answer ends with the connection and is never chunked.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).map_err(what())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(what())?;
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    match (status, text.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok(Answer { status, body: body.to_owned() }),
        _ => Err(Error::Command {
            command: format!("{method} {path}"),
            problem: format!("not HTTP: {text:?}"),
        }),
    }
}

/// Whether a GET is answered with 200.
pub(crate) fn is_ok(port: u16, path: &str) -> bool {
    is_ok_at((Ipv4Addr::LOCALHOST, port).into(), path)
}

/// The same of another address.
pub(crate) fn is_ok_at(address: SocketAddr, path: &str) -> bool {
    request_at(address, "GET", path, "").is_ok_and(|answer| answer.status == 200)
}
