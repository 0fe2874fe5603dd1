//! What a server may hold and for how long, as settings.

use std::time::Duration;

use sightline_config::{ByteSize, HumanDuration};

sightline_config::settings! {
    /// What every listener holds of connections, calls and bytes, and how it comes to an end. Each listener counts for
    /// itself.
    pub struct ServerConfig in "server" {
        /// How long a server that was asked to stop goes on as before while its health says NOT_SERVING, so that
        /// clients and load balancers turn away before their connections are closed. As long as those take to notice:
        /// 5s where Kubernetes routes. Zero for trials.
        pub lame_duck: HumanDuration = HumanDuration::from_secs(0),
        /// A connection is asked to end (GOAWAY) at this age, a tenth more or less, so that clients spread over new
        /// replicas and new addresses. Zero: never.
        pub max_connection_age: HumanDuration = HumanDuration::from_secs(1800),
        /// How long calls and streams on such a connection may take to end before it is cut.
        pub max_connection_age_grace: HumanDuration = HumanDuration::from_secs(30),
        /// How long TLS and the first bytes of HTTP may take: whoever connects and says nothing is sent away.
        pub handshake_timeout: HumanDuration = HumanDuration::from_secs(10),
        /// Connections open at once, of about 100 KB each when they are idle; the next one is closed at once.
        pub max_connections: usize = 32_768,
        /// The same from one IP address (a /64 of IPv6). Raise it, or set 0 for any number, where a proxy stands before
        /// the listener: all its clients share its address.
        pub max_connections_per_address: usize = 4_096,
        /// Calls, streams among them, that one peer may have open over all its connections. A peer is a verified
        /// certificate's name, else an IP address. 0: any number.
        pub max_calls_per_peer: usize = 16_384,
        /// Unary calls worked on at once. Past it they queue, then are answered RESOURCE_EXHAUSTED before their bodies
        /// are read.
        pub max_calls: usize = 1_024,
        /// Unary calls that may wait for a place. Each may make the client send one window of its body ahead (256 KiB).
        pub max_queued_calls: usize = 256,
        /// How long one waits for a place in a short crowd; in a crowd that lasts longer than this, a twentieth of it.
        pub queue_timeout: HumanDuration = HumanDuration::from_millis(100),
        /// The latency that unary calls should keep. While they take longer fewer than `max_calls` are let in, down to
        /// `min_calls`. Zero: always `max_calls`.
        pub latency_target: HumanDuration = HumanDuration::from_secs(0),
        /// The fewest calls that `latency_target` leaves: at least what keeps the machine busy.
        pub min_calls: usize = 16,
        /// Streams open at once. A stream is not a unit of work: what is worked on in it is bounded by its credits, so
        /// this bounds memory only, about 50 KB each.
        pub max_streams: usize = 16_384,
        /// Streams of health and reflection open at once, besides those, of about 30 KB each: a service watches the health
        /// of another on each of its connections, a load balancer on one.
        pub max_watches: usize = 4_096,
        /// Bytes of unfinished messages held at once, over all connections: a message that does not fit into one frame
        /// (64 KiB at the edge) counts with its whole length from its beginning to its end.
        pub max_receive_bytes: ByteSize = ByteSize::mib(256),
        /// How long a message waits for its part of them before it is answered RESOURCE_EXHAUSTED.
        pub receive_wait: HumanDuration = HumanDuration::from_secs(1),
        /// How long a message may take to arrive: 10 MB at 1.4 Mbit/s. It is a call's whole time to send where the client
        /// sends one message, and the time of each message that counts where it sends many.
        pub receive_timeout: HumanDuration = HumanDuration::from_secs(60),
        /// When a call that was turned away should be tried again, a half more or less.
        pub retry_after: HumanDuration = HumanDuration::from_millis(500),
    }
}

impl ServerConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A text naming the key.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in [
            ("max_connections", self.max_connections),
            ("max_calls", self.max_calls),
            ("min_calls", self.min_calls),
            ("max_streams", self.max_streams),
            ("max_watches", self.max_watches),
        ] {
            if value == 0 {
                return Err(format!("`server.{key}` (0) would serve nobody: set at least 1"));
            }
        }
        if self.min_calls > self.max_calls {
            let (least, most) = (self.min_calls, self.max_calls);
            return Err(format!(
                "`server.min_calls` ({least}) is above `server.max_calls` ({most}): lower it"
            ));
        }
        for (key, value) in [
            ("handshake_timeout", self.handshake_timeout),
            ("receive_timeout", self.receive_timeout),
            ("retry_after", self.retry_after),
        ] {
            if value.0 == Duration::ZERO {
                return Err(format!("`server.{key}` must be longer than zero, such as \"1s\""));
            }
        }
        let least = ByteSize::mib(1);
        if self.max_receive_bytes.0 < least.0 {
            let set = self.max_receive_bytes;
            return Err(format!("`server.max_receive_bytes` ({set}) must be at least {least}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_would_serve_nobody_is_refused_with_its_setting() {
        assert_eq!(ServerConfig::default().validate(), Ok(()));
        type Change = fn(&mut ServerConfig);
        let changes: [(&str, Change); 4] = [
            ("`server.max_calls` (0)", |config| config.max_calls = 0),
            ("`server.min_calls` (2000)", |config| config.min_calls = 2000),
            ("`server.receive_timeout`", |config| config.receive_timeout = HumanDuration::from_secs(0)),
            ("`server.max_receive_bytes` (4B)", |config| config.max_receive_bytes = ByteSize(4)),
        ];
        for (setting, change) in changes {
            let mut config = ServerConfig::default();
            change(&mut config);
            let said = config.validate().unwrap_err();
            assert!(said.starts_with(setting), "{said}");
        }
    }
}
