//! Scripts that run inside Redis.

use redis::Cmd;

/// A Lua script and its digest. Sent by digest; a server that does not know it, because it restarted or is new, is sent
/// the source, which it then remembers.
#[derive(Debug, Clone)]
pub struct Script {
    source: &'static str,
    sha: String,
}

impl Script {
    /// Takes the source of a script.
    pub fn new(source: &'static str) -> Self {
        Self { source, sha: redis::Script::new(source).get_hash().to_owned() }
    }

    /// The call by digest; what follows is the number of keys, the keys, and the arguments.
    pub(crate) fn by_digest(&self) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.sha);
        cmd
    }

    /// The call by source.
    pub(crate) fn by_source(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(self.source);
        cmd
    }
}
