//! PostgreSQL.

use std::{fs, process::Command};

use crate::{
    Home, Result, Server, Spec, free_port, io,
    process::{give_to, is_root, run},
    tools::find,
};

/// Debian's package makes this user; PostgreSQL refuses to run as root.
pub(crate) const USER: &str = "postgres";

/// A PostgreSQL with one superuser `sightline`, no password, and the database `sightline`.
#[derive(Debug)]
pub struct Postgres {
    /// The process, to be killed and started again.
    pub server: Server,
    port: u16,
}

impl Postgres {
    /// Makes a data folder and starts on it; `settings` as in `postgresql.conf`, such as `["max_connections=20"]`.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start(settings: &[&str]) -> Result<Self> {
        Self::start_at(Home::temporary("postgres")?, free_port(), settings)
    }

    /// The same at a place and port of the caller's choice; the place must be reachable for the user `postgres`.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start_at(home: Home, port: u16, settings: &[&str]) -> Result<Self> {
        let data = home.folder().join("data");
        fs::create_dir(&data).map_err(io("making a folder"))?;
        give_to(USER, home.folder())?;
        let mut initdb = as_user(&find("initdb")?);
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--username=sightline",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]);
        run(initdb.arg("-D").arg(&data).current_dir(home.folder()))?;

        let mut arguments =
            vec!["-D".to_owned(), data.display().to_string(), "-p".to_owned(), port.to_string()];
        let own =
            ["listen_addresses=127.0.0.1".to_owned(), format!("unix_socket_directories={}", data.display())];
        for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let spec = Spec {
            name: "postgres".into(),
            program: find("postgres")?,
            arguments,
            environment: vec![],
            home,
            user: Some(USER),
            ready: Box::new(move || psql(port, "postgres", "SELECT 1").is_ok()),
        };
        find("psql")?;
        let postgres = Self { server: Server::start(spec)?, port };
        psql(port, "postgres", "CREATE DATABASE sightline")?;
        Ok(postgres)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the database `sightline`.
    pub fn url(&self) -> String {
        format!("postgresql://sightline@127.0.0.1:{}/sightline", self.port)
    }

    /// Makes another, empty database and returns its URL.
    ///
    /// # Errors
    /// [`crate::Error::Command`].
    pub fn database(&self, name: &str) -> Result<String> {
        psql(self.port, "postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(format!("postgresql://sightline@127.0.0.1:{}/{name}", self.port))
    }

    /// Runs SQL on a database and returns the values, one row a line, columns separated by `|`.
    ///
    /// # Errors
    /// [`crate::Error::Command`].
    pub fn sql(&self, database: &str, text: &str) -> Result<String> {
        psql(self.port, database, text)
    }
}

fn psql(port: u16, database: &str, text: &str) -> Result<String> {
    let mut psql = Command::new(find("psql")?);
    psql.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "sightline"]);
    psql.env("PGCONNECT_TIMEOUT", "5");
    Ok(run(psql.args(["-p", &port.to_string(), "-d", database, "-c", text]))?.trim().to_owned())
}

fn as_user(program: &std::path::Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--"]).arg(program);
    command
}
