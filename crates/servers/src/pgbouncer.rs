//! PgBouncer, pooling by transaction.

use std::{fs, net::TcpStream};

use crate::{
    Home, Postgres, Result, Server, Spec, free_port, io, postgres::USER, process::give_to, tools::find,
};

/// A PgBouncer in transaction mode before a PostgreSQL.
#[derive(Debug)]
pub struct PgBouncer {
    /// The process.
    pub server: Server,
    port: u16,
}

impl PgBouncer {
    /// Starts one with `pool_size` connections to each database.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start(postgres: &Postgres, pool_size: usize) -> Result<Self> {
        let home = Home::temporary("pgbouncer")?;
        let port = free_port();
        let file = home.folder().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=sightline\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\n\
             max_client_conn = 1000\n",
            postgres.port()
        );
        fs::write(&file, text).map_err(io("writing pgbouncer.ini"))?;
        give_to(USER, home.folder())?;
        let spec = Spec {
            name: "pgbouncer".into(),
            program: find("pgbouncer")?,
            arguments: vec![file.display().to_string()],
            environment: vec![],
            home,
            user: Some(USER),
            ready: Box::new(move || TcpStream::connect(("127.0.0.1", port)).is_ok()),
        };
        Ok(Self { server: Server::start(spec)?, port })
    }

    /// The URL of a database through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://sightline@127.0.0.1:{}/{database}", self.port)
    }
}
