//! A small authoritative name server on a free port of 127.0.0.1, by UDP and TCP, whose zone tests change as they go.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// What longer answers must be asked for by TCP (the resolver offers 1,232 bytes).
const UDP_BYTES: usize = 1232;

#[derive(Clone)]
enum Reply {
    Records { answers: Vec<Record>, along: Vec<Record> },
    Fails,
    Silent,
}

#[derive(Default)]
struct Zone {
    replies: HashMap<(String, RecordType), Reply>,
    asked: Vec<(String, RecordType)>,
    by_tcp: usize,
}

/// The server; it ends with the runtime.
#[derive(Clone)]
pub struct Names {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl Names {
    pub async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let names = Self { address: udp.local_addr().unwrap(), zone: Arc::default() };
        tokio::spawn(names.clone().by_udp(udp));
        tokio::spawn(names.clone().by_tcp(tcp));
        names
    }

    /// Address records, of the kind that each address is; the other kind stays as it is.
    pub fn addresses(&self, name: &str, ttl: u32, ips: &[&str]) {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let kind = if ips[0].is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let answers = ips.iter().map(|ip| address(name, ttl, *ip)).collect();
        self.set(name, kind, Reply::Records { answers, along: vec![] });
    }

    /// SRV records (priority, weight, port, target), and addresses of targets that go along.
    pub fn srv(&self, name: &str, ttl: u32, records: &[(u16, u16, u16, &str)], along: &[(&str, &str)]) {
        let record = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
            let data = SRV::new(*priority, *weight, *port, Name::from_ascii(target).unwrap());
            Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::SRV(data))
        };
        let answers = records.iter().map(record).collect();
        let along = along.iter().map(|(name, ip)| address(name, ttl, ip.parse().unwrap())).collect();
        self.set(name, RecordType::SRV, Reply::Records { answers, along });
    }

    /// SERVFAIL.
    pub fn fails(&self, name: &str, kind: RecordType) {
        self.set(name, kind, Reply::Fails);
    }

    /// No answer at all.
    pub fn silent(&self, name: &str, kind: RecordType) {
        self.set(name, kind, Reply::Silent);
    }

    /// NXDOMAIN from now on.
    pub fn forget(&self, name: &str) {
        self.zone.lock().unwrap().replies.retain(|(known, _), _| known != name);
    }

    /// How often this was asked.
    pub fn asked(&self, name: &str, kind: RecordType) -> usize {
        let zone = self.zone.lock().unwrap();
        zone.asked.iter().filter(|(asked, of)| asked == name && *of == kind).count()
    }

    /// Questions by TCP.
    pub fn asked_by_tcp(&self) -> usize {
        self.zone.lock().unwrap().by_tcp
    }

    fn set(&self, name: &str, kind: RecordType, reply: Reply) {
        self.zone.lock().unwrap().replies.insert((name.to_owned(), kind), reply);
    }

    async fn by_udp(self, socket: UdpSocket) {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let Some(answer) = self.answer(&buffer[..length]) else { continue };
            let mut bytes = answer.to_vec().unwrap();
            if bytes.len() > UDP_BYTES {
                bytes = answer.truncate().to_vec().unwrap();
            }
            socket.send_to(&bytes, from).await.unwrap();
        }
    }

    async fn by_tcp(self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(self.clone().connection(stream));
        }
    }

    async fn connection(self, mut stream: TcpStream) {
        while let Ok(length) = stream.read_u16().await {
            let mut question = vec![0; length.into()];
            stream.read_exact(&mut question).await.unwrap();
            self.zone.lock().unwrap().by_tcp += 1;
            let Some(answer) = self.answer(&question) else { continue };
            let bytes = answer.to_vec().unwrap();
            stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    }

    fn answer(&self, question: &[u8]) -> Option<Message> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries.first().unwrap().clone();
        let name = query.name().to_ascii().to_lowercase();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        let mut zone = self.zone.lock().unwrap();
        zone.asked.push((name.clone(), query.query_type()));
        let is_known = zone.replies.keys().any(|(known, _)| *known == name);
        match zone.replies.get(&(name, query.query_type())).cloned() {
            Some(Reply::Silent) => return None,
            Some(Reply::Fails) => answer.metadata.response_code = ResponseCode::ServFail,
            Some(Reply::Records { answers, along }) => {
                answer.add_answers(answers);
                answer.add_additionals(along);
            }
            None if is_known => {}
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.add_query(query);
        Some(answer)
    }
}

fn address(name: &str, ttl: u32, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
}
