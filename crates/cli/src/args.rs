//! The command line's grammar and its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Self-hosted image safety: says how unsafe screenshots and images are, at the scale of 100,000 clients.
#[derive(Debug, Parser)]
#[command(name = "sightline", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Try it:
  sightline classify photo.jpg            classify a file, with the whole mesh in this process
  sightline dev                           start all four services here and stay up
  sightline stats query --by level        what was seen so far
  sightline config print > sightline.toml every setting with its documentation

Settings come from defaults, then the file given by --config, then SIGHTLINE_* variables, then --set.")]
pub struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where settings come from.
#[derive(Debug, Default, Args)]
pub(crate) struct Settings {
    /// Read settings from this TOML file
    #[arg(long, short, global = true, env = "SIGHTLINE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one setting, over file and environment; may be repeated
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the whole mesh in this process, on embedded stores, and stay up until Ctrl-C
    ///
    /// Listens on loopback and asks for no token unless [auth] names keys. Statistics are kept in node.data_dir and are there again after a
    /// restart; limits are the generous preset "dev". Images given are classified through the public API first.
    Dev(Dev),
    /// Run one or more services of the mesh: what the Helm chart starts
    ///
    /// Refuses to listen beyond loopback unless keys to check tokens with are configured ([auth]), or --insecure.
    Serve(Serve),
    /// Make the tables of PostgreSQL, or bring them forward to what this version needs
    ///
    /// Run it before the first start and before each upgrade; servers refuse to start on tables they do not know.
    /// Running it again, or several at once, does no harm. Exits with 1 when --dry-run finds something to do.
    #[command(after_help = "Example:
  sightline migrate --set stats.postgres_url=postgresql://sightline@db/sightline

Give a password through SIGHTLINE_STATS_POSTGRES_URL or the file of --config: others can read a command line.")]
    Migrate(Migrate),
    /// Classify image files and print level, scores, source and milliseconds
    ///
    /// Without --endpoint the whole mesh runs in this process for as long as it takes. Exits with 1 if any file failed.
    #[command(after_help = "Examples:
  sightline classify photo.jpg
  sightline classify --endpoint https://images.example:443 --token-file ada.token --user ada *.jpg
  sightline classify --endpoint https://10.0.0.7:7401 --ca ca.pem --server-name images.example photo.jpg")]
    Classify(Classify),
    /// Ask the statistics
    #[command(subcommand)]
    Stats(Stats),
    /// See and add models
    #[command(subcommand)]
    Models(Models),
    /// Ask the rate limiter
    #[command(subcommand)]
    Limits(Limits),
    /// Watch how a process calls the other services
    #[command(subcommand)]
    Mesh(Mesh),
    /// Ask a service whether it serves (grpc.health.v1); exits with 1 when it does not, with 2 when it cannot be asked
    #[command(after_help = "Examples:
  sightline health
  sightline health --endpoint https://stats.mesh:7404 --ca ca.pem --cert me.pem --key me.key
  sightline health --service dependency.classifier

A server that is stopping says NOT_SERVING and still answers calls.")]
    Health(Health),
    /// Check and show settings
    #[command(subcommand)]
    Config(Config),
    /// Make tokens for clients and services
    #[command(subcommand)]
    Token(Token),
    /// Print completions for a shell: sightline completions bash > /etc/bash_completion.d/sightline
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Mesh {
    /// Show each replica live: state, load, latency, ejections, streams
    ///
    /// Asks an ingest's admin port (telemetry.admin_listen). On a terminal the table is drawn anew every --every until Ctrl-C;
    /// otherwise, and with --once, it is printed once. With --json one array of services a line.
    #[command(after_help = "Examples:
  sightline mesh top
  sightline mesh top --admin http://10.0.0.7:7400 --once
  sightline mesh top --json | jq '.[].endpoints[] | {address, state}'

LATENCY is a peak-sensitive mean; BUSY and QUEUE are what the replica says of itself; WAITING counts messages without a credit.")]
    Top {
        /// The admin port of a process that calls others
        #[arg(long, default_value = "http://127.0.0.1:7400", value_name = "URL")]
        admin: String,
        /// How often the table is drawn anew
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "TIME")]
        every: std::time::Duration,
        /// Print once and end
        #[arg(long)]
        once: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        tls: Tls,
    },
}

/// Whether a service serves.
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// A service of the mesh
    #[arg(long, default_value = "http://127.0.0.1:7401", value_name = "URL")]
    pub(crate) endpoint: String,
    /// One of its gRPC services or dependencies, such as dependency.classifier; otherwise the server as a whole
    #[arg(long, default_value = "", value_name = "NAME")]
    pub(crate) service: String,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Images to classify once the mesh is up
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,
    /// Stop after the images instead of staying up
    #[arg(long, requires = "images")]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Which services
    #[arg(required = true, value_enum, value_name = "SERVICE")]
    pub(crate) services: Vec<Service>,
    /// Listen beyond loopback although nobody has to show a token; only for closed networks
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Only show what is applied and what would be
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object per migration
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Service {
    /// The public edge: takes frames from clients
    Ingest,
    /// Runs models
    Classifier,
    /// Counts finished frames
    Stats,
    /// Says whether a caller may go on
    Ratelimiter,
}

/// How a running mesh is reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct Remote {
    /// A file with the token to show
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Give up after this long
    #[arg(long, default_value = "10s", value_name = "TIME")]
    pub(crate) timeout: humantime::Duration,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

/// Whom an https address is trusted to be, and who we are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS, for addresses with https")]
pub(crate) struct Tls {
    /// The authorities (PEM) that the server's certificate must come from; otherwise those of this machine
    #[arg(long, env = "SIGHTLINE_CLIENT_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate (PEM, with its intermediates), for services that ask for one
    #[arg(long, env = "SIGHTLINE_CLIENT_CERT", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of --cert (PEM)
    #[arg(long, env = "SIGHTLINE_CLIENT_KEY", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Who must answer, instead of the address's host: a name, or an id such as spiffe://mesh.example/ns/prod/sa/stats
    #[arg(long, env = "SIGHTLINE_CLIENT_SERVER_NAME", value_name = "NAME")]
    pub(crate) server_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Classify {
    /// JPEG, PNG, WebP or GIF files
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Use a running mesh instead of one in this process, such as http://127.0.0.1:7401 or https://images.example
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// The model to use, NAME or NAME@VERSION; the default model otherwise
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// The user the frames are counted for
    #[arg(long, default_value = "cli")]
    pub(crate) user: String,
    /// The application the frames are counted for
    #[arg(long, default_value = "sightline-classify")]
    pub(crate) application: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Stats {
    /// Count finished frames
    #[command(after_help = "Examples:
  sightline stats query                         the total
  sightline stats query --by level,application  per level and application
  sightline stats query --bucket day --from 2026-11-01T00:00:00Z --user ada

A mesh with mutual TLS lets in whom `tls.callers.stats` lists:
  sightline stats query --endpoint https://stats.mesh:7404 --ca ca.pem --cert me.pem --key me.key \\
    --server-name spiffe://mesh.example/ns/prod/sa/stats")]
    Query(StatsQuery),
}

#[derive(Debug, Args)]
pub(crate) struct StatsQuery {
    /// The statistics service: replicas with commas between them, or a name such as dns://stats:7404
    #[arg(long, default_value = "http://127.0.0.1:7404", value_name = "URL")]
    pub(crate) endpoint: String,
    /// Only this tenant
    #[arg(long, default_value = "")]
    pub(crate) tenant: String,
    /// From this time on (RFC 3339), rounded down to the hour
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<humantime::Timestamp>,
    /// Before this time (RFC 3339), rounded up to the hour
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<humantime::Timestamp>,
    /// Count per hour or day (UTC)
    #[arg(long, value_enum)]
    pub(crate) bucket: Option<Bucket>,
    /// Count per user, application, level, source
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) by: Vec<GroupBy>,
    /// Only these users
    #[arg(long, value_delimiter = ',')]
    pub(crate) user: Vec<String>,
    /// Only these applications
    #[arg(long, value_delimiter = ',')]
    pub(crate) application: Vec<String>,
    /// Only these levels: none, mild, suggestive, explicit, severe
    #[arg(long, value_delimiter = ',')]
    pub(crate) level: Vec<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Bucket {
    Hour,
    Day,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum GroupBy {
    User,
    Application,
    Level,
    Source,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Show the models a classifier serves
    List {
        /// The classifier service: replicas with commas between them, or a name such as dns://classifier:7402
        #[arg(long, default_value = "http://127.0.0.1:7402", value_name = "URL")]
        endpoint: String,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Convert a model out of the npm package nsfwjs 4.4.0 into a folder with model.toml
    #[command(after_help = "Get the package with: npm pack nsfwjs@4.4.0
Then: sightline models import nsfwjs-4.4.0.tgz --out models/mobilenet
and serve it: sightline dev --set 'classifier.models=[\"models/mobilenet\"]'

Any other TorchScript module is served from a folder with a model.toml beside it: see docs/MODELS.md.")]
    Import {
        /// The package's tarball
        package: PathBuf,
        /// Which of its models
        #[arg(long, value_enum, default_value_t = Architecture::MobilenetV2)]
        model: Architecture,
        /// The folder to write; made when missing
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Architecture {
    /// 224 × 224, 2.6 MB, fast: the default
    MobilenetV2,
    /// 299 × 299, slower
    InceptionV3,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Limits {
    /// Check and charge the rules that apply to a caller; exits with 1 when refused
    #[command(after_help = "Example:
  sightline limits check user=ada ip=203.0.113.7")]
    Check {
        /// The rate limiter service: replicas with commas between them, or a name such as dns://ratelimiter:7403
        #[arg(long, default_value = "http://127.0.0.1:7403", value_name = "URL")]
        endpoint: String,
        /// The tenant
        #[arg(long, default_value = "")]
        tenant: String,
        /// What the check costs
        #[arg(long, default_value_t = 1)]
        hits: u32,
        /// Who asks, such as user=ada
        #[arg(required = true, value_name = "KEY=VALUE")]
        keys: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Read every layer of settings and say whether a process would start with them, without starting anything
    Check,
    /// Print the settings in force as a commented TOML file
    Print {
        /// Print the reference of all settings and variables as Markdown instead
        #[arg(long)]
        markdown: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Sign a token for a client, or for a service of the mesh
    #[command(after_help = "Example, with a shared secret:
  head -c 32 /dev/urandom | base64 > secret
  sightline token mint --secret-file secret --user ada > ada.token
  sightline token mint --secret-file secret --scope service --lifetime 365d > service.token
  sightline dev --set auth.secret_file=secret --set auth.service_token_file=service.token
  sightline classify --endpoint http://127.0.0.1:7401 --token-file ada.token --user ada photo.jpg

The services of a mesh with keys show each other the service token.")]
    Mint {
        /// A PEM private key (PKCS#8): Ed25519, P-256 or RSA
        #[arg(
            long,
            value_name = "FILE",
            required_unless_present = "secret_file",
            conflicts_with = "secret_file"
        )]
        key_file: Option<PathBuf>,
        /// A shared secret for HS256, at least 32 bytes
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
        /// The token's subject
        #[arg(long, default_value = "")]
        user: String,
        /// The token's tenant
        #[arg(long, default_value = "")]
        tenant: String,
        /// What the bearer may do: "classify" for clients, "service" for services of the mesh
        #[arg(long, default_value = "classify")]
        scope: String,
        /// How long it is valid
        #[arg(long, default_value = "1h", value_name = "TIME")]
        lifetime: humantime::Duration,
    },
}
