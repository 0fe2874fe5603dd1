//! An HTTP/2 client by the frame (RFC 9113): sees what libraries hide.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const DATA: u8 = 0;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The last stream it will serve.
    GoAway(u32),
    Ping,
    Other(u8),
    End,
}

pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut raw = Self { stream };
        raw.send(SETTINGS, 0, &[]).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The next frame; a ping is answered.
    pub async fn next(&mut self) -> Said {
        let mut head = [0; 9];
        let reading = timeout(Duration::from_secs(20), self.stream.read_exact(&mut head));
        if reading.await.expect("the server says something within 20 seconds").is_err() {
            return Said::End;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut payload).await.unwrap();
        assert_ne!(head[3], DATA);
        match (head[3], head[4] & ACK) {
            (SETTINGS, 0) => {
                self.send(SETTINGS, ACK, &[]).await;
                Said::Other(SETTINGS)
            }
            (PING, 0) => {
                self.send(PING, ACK, &payload).await;
                Said::Ping
            }
            (GOAWAY, _) => Said::GoAway(u32::from_be_bytes(payload[..4].try_into().unwrap())),
            (kind, _) => Said::Other(kind),
        }
    }

    /// All that the server says until it ends the connection, without what belongs to its beginning.
    pub async fn rest(&mut self) -> Vec<Said> {
        let (mut all, began) = (Vec::new(), Instant::now());
        loop {
            // It may go on asking whether we live.
            assert!(began.elapsed() < Duration::from_secs(60), "{all:?}");
            match self.next().await {
                Said::Other(_) => {}
                Said::End => return all,
                said => all.push(said),
            }
        }
    }
}

impl Raw {
    /// What a server says first, to one that it may not let in.
    pub async fn connect_anyway(address: SocketAddr) -> Said {
        let mut raw = Self { stream: TcpStream::connect(address).await.unwrap() };
        let preface = raw.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        if preface.is_err() {
            return Said::End;
        }
        raw.next().await
    }
}
