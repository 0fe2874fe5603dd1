//! A child process that is a server.

use std::{
    fs::{self, File, OpenOptions},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Home, Result, io, tools::find};

/// How long a server may take until it is ready: generous, because two cores may be busy with a build.
const START: Duration = Duration::from_secs(60);
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long a server may take to end after SIGTERM before it is killed.
const STOP: Duration = Duration::from_secs(20);

/// What to run and when it is ready.
pub struct Spec {
    /// For messages and the name of the log.
    pub name: String,
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, beside what it inherits.
    pub environment: Vec<(String, String)>,
    /// Where it runs and keeps its log.
    pub home: Home,
    /// Run it as this user when we are root: for programs that refuse to run as root.
    pub user: Option<&'static str>,
    /// Whether it is ready.
    pub ready: Box<dyn Fn() -> bool + Send + Sync>,
}

/// A running server. Killed when dropped, and when this process ends.
pub struct Server {
    spec: Spec,
    child: Child,
    /// Children of a process that was killed: they end by themselves when they notice, and until then PostgreSQL's hold
    /// its memory, with which no other can start on the same files.
    orphans: Vec<u32>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.spec.name)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// [`Error`], naming the log.
    pub fn start(spec: Spec) -> Result<Self> {
        let child = spawn(&spec)?;
        let mut server = Self { spec, child, orphans: Vec::new() };
        server.wait_ready()?;
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.spec.home.folder()
    }

    /// What it printed.
    pub fn log(&self) -> &Path {
        self.spec.home.log()
    }

    /// SIGKILL, waited for. Its children are left to end by themselves.
    pub fn kill(&mut self) {
        self.orphans.extend(children(self.pid()));
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// SIGTERM; after 20 s SIGKILL.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal("TERM");
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().map_err(io("waiting"))? {
                return Ok(status);
            }
            if since.elapsed() > STOP {
                self.kill();
            }
            pause(POLL);
        }
    }

    /// SIGSTOP: it accepts connections and answers nothing.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Starts it again, with the same ports and files, after [`Server::kill`] or [`Server::stop`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.wait_for_orphans();
        self.child = spawn(&self.spec)?;
        self.wait_ready()
    }

    fn wait_for_orphans(&mut self) {
        let since = Instant::now();
        // As a number it may be somebody else's by now; then the wait has its bound.
        while since.elapsed() < STOP && self.orphans.iter().any(|pid| is_alive(*pid)) {
            pause(POLL);
        }
        self.orphans.clear();
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU time that it and its children used, from /proc: user and system together.
    pub fn cpu(&self) -> Duration {
        cpu(self.pid())
    }

    fn signal(&self, signal: &str) {
        // Fails only when it has ended already.
        Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status().ok();
    }

    fn wait_ready(&mut self) -> Result<()> {
        let fail = |problem: String, spec: &Spec| {
            Err(Error::NotStarted { program: spec.name.clone(), problem, log: spec.home.log().to_owned() })
        };
        let since = Instant::now();
        while !(self.spec.ready)() {
            if let Some(status) = self.child.try_wait().map_err(io("waiting"))? {
                return fail(format!("it ended with {status}"), &self.spec);
            }
            if since.elapsed() > START {
                return fail(format!("not ready after {START:?}"), &self.spec);
            }
            pause(POLL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process's CPU time with that of its live children.
fn cpu(pid: u32) -> Duration {
    /// Clock ticks per second, the same on every Linux that we know: `getconf CLK_TCK`.
    const TICKS: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; after it user and system time are the 12th and 13th field, and
    // those of children that were waited for come next.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS) + children(pid).into_iter().map(cpu).sum::<Duration>()
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Everything in this crate blocks, and says so.
#[allow(clippy::disallowed_methods)]
pub(crate) fn pause(time: Duration) {
    thread::sleep(time);
}

fn spawn(spec: &Spec) -> Result<Child> {
    let output: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(spec.home.log())
        .map_err(io(format!("opening {}", spec.home.log().display())))?;
    let mut command = Command::new(find("setpriv")?);
    if let Some(user) = spec.user.filter(|_| is_root()) {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(&spec.program).args(&spec.arguments);
    // Settings are what the spec says, not what happens to be set here.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SIGHTLINE_") {
            command.env_remove(name);
        }
    }
    command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(spec.home.folder()).stdin(Stdio::null());
    let errors = output.try_clone().map_err(io("duplicating a log's handle"))?;
    command.stdout(output).stderr(errors);
    on_spawner(command).map_err(io(format!("starting {}", spec.name)))
}

/// Linux kills a child with its parent *thread*: all are spawned from one that lives as long as the process.
fn on_spawner(command: Command) -> std::io::Result<Child> {
    type Job = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(1);
        thread::spawn(move || {
            while let Ok((mut command, reply)) = inbox.recv() {
                reply.send(command.spawn()).ok();
            }
        });
        jobs
    });
    let (reply, answer) = mpsc::sync_channel(1);
    spawner.send((command, reply)).expect("the spawner never ends");
    answer.recv().expect("the spawner answers every job")
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}

/// Hands a folder over to a user, when we are root.
pub(crate) fn give_to(user: &str, folder: &Path) -> Result<()> {
    if is_root() {
        run(Command::new("chown").arg("-R").arg(format!("{user}:{user}")).arg(folder))?;
    }
    Ok(())
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let text = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(io(text.clone()))?;
    let both = || {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        format!("{out}{err}")
    };
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::Command { command: text, problem: both() }),
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
///
/// # Panics
/// When the machine has none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("the machine has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// A port of 127.0.0.1 that nobody listens on now, from those that the kernel gives to no outgoing connection by itself
/// (they begin at 32,768): nobody takes it while its server is started again.
///
/// # Panics
/// When all are taken.
pub fn lasting_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes begin elsewhere.
    let begin = std::process::id().wrapping_mul(97);
    let mut ports = (0..COUNT).map(|_| {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + number).expect("all of them are below 32,768")
    });
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("the machine has a free port")
}
