//! Serving: end to end against the usual Python way.
//!
//! `cargo xtask bench serving` fetches what is needed and runs this. In one run, in turns:
//! - [`sightline_benches::product`]: `sightline dev` as it comes, called over gRPC from this process, one call a frame and one stream a
//!   connection, with frames it never saw and with frames it has just seen (`repeats`);
//! - [`peer`]: FastAPI under gunicorn with PIL and torch on the same model, not optimised, at the best of several
//!   settings, called from this process over kept HTTP connections;
//! - [`bare`]: threads that decode as ingest does and run the model as the classifier does, without any service.
//!
//! Frames are made before the clock starts. The client runs on the same cores as what it measures, so its CPU time is
//! shown beside the server's; what others used of the machine is shown too.

mod bare;
mod frames;
mod options;
mod peer;
mod report;
mod rounds;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use options::{Options, PeerSettings};
use sightline_benches::product::{Product, Way};
use sightline_proto::verdict::VerdictSource;

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print(options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error),
    };
    // One thread: a client that spreads over cores would only take them from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("serving: {error:#}");
    ExitCode::from(2)
}

#[allow(clippy::print_stdout)] // a benchmark's result
fn print(text: &str) {
    println!("{text}");
}

fn path(variable: &str) -> Result<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .with_context(|| format!("{variable} is not set; `cargo xtask bench serving` sets it"))
}

async fn run(options: &Options) -> Result<bool> {
    let each = rounds::frames_of_a_round(options);
    // The first ones warm everybody up.
    let warm_up = options.frames.min(64);
    eprintln!("making {} frames", warm_up + options.rounds * each);
    let frames = frames::make(&path("SIGHTLINE_TEST_SAMPLES")?, warm_up + options.rounds * each)?;
    let mut sizes: Vec<usize> = frames.iter().map(Bytes::len).collect();
    sizes.sort_unstable();
    let kilobytes = |share: usize| sizes[(sizes.len() - 1) * share / 10] / 1000;
    eprintln!(
        "their sizes: median {} KB, nine in ten from {} to {} KB",
        kilobytes(5),
        kilobytes(1),
        kilobytes(9)
    );
    let (first, frames) = frames.split_at(warm_up);

    let model = path("SIGHTLINE_TEST_MODEL")?;
    let mesh = Product::start(Some(&model), &options.set).await?;
    let input = mesh.input().await?;
    let bare = if options.has("bare") { Some(bare::Bare::start(&model, &input)?) } else { None };
    let (peer, settings) = match options.has("peer") {
        true => start_peer(options, first).await.map(|(peer, settings)| (Some(peer), Some(settings)))?,
        false => (None, None),
    };
    let field = rounds::Field { mesh, peer, bare };
    field.mesh.classify(Way::Unary, first, first.len(), options.in_flight, VerdictSource::Model).await?;
    if let Some(bare) = &field.bare {
        bare.classify(first)?;
    }

    if field.peer.is_some() {
        same_network(&field, &path("SIGHTLINE_TEST_SAMPLES")?).await?;
    }
    let mut outcome = rounds::Outcome::default();
    for (number, frames) in frames.chunks_exact(each).enumerate() {
        eprintln!("round {} of {}", number + 1, options.rounds);
        rounds::round(&field, options, number, frames, &mut outcome).await?;
    }
    let report = report::Report { outcome: &outcome, options, peer: settings };
    print(&if options.json { report.json().to_string() } else { report.table() });
    Ok(report.passed())
}

/// On frames without loss, where decoders cannot differ, the peer must give our scores.
async fn same_network(field: &rounds::Field, samples: &Path) -> Result<()> {
    /// Frames travel to our classifier in 16 bits a value; that and kernels may show, but nothing else.
    const SAME: f32 = 1e-3;
    let Some(peer) = &field.peer else { return Ok(()) };
    let frames = frames::lossless(samples)?;
    let ours = field.mesh.classify(Way::Unary, &frames, frames.len(), 1, VerdictSource::Model).await?;
    let theirs = peer::classify(peer.connect(2).await?, &frames).await?;
    let most = rounds::differ(&ours, &theirs).into_iter().fold(0.0, f32::max);
    eprintln!("scores of the peer on PNG frames differ from ours by at most {most:.5}");
    ensure!(most <= SAME, "the peer computes something else: its scores differ by {most}");
    Ok(())
}

/// The peer with the settings that are fastest here, or those asked for.
async fn start_peer(options: &Options, frames: &[Bytes]) -> Result<(peer::Peer, PeerSettings)> {
    let kit = peer::Kit::make(&path("SIGHTLINE_TEST_PYTHON")?, &path("SIGHTLINE_TEST_PACKAGE")?)?;
    let candidates = options.peer.map_or(peer::CANDIDATES.to_vec(), |only| vec![only]);
    let mut best: Option<(f64, PeerSettings)> = None;
    for settings in candidates {
        let peer = peer::Peer::start(&kit, settings).await?;
        // Once for warmth, once for the clock.
        peer::classify(peer.connect(options.in_flight).await?, frames).await?;
        let connections = peer.connect(options.in_flight).await?;
        let run = peer::classify(connections, frames);
        let (sample, _) = rounds::measure(Some(peer.id()), frames.len(), run).await?;
        eprintln!("the peer with {settings}: {:.1} frames/s", sample.rate());
        if best.is_none_or(|(rate, _)| sample.rate() > rate) {
            best = Some((sample.rate(), settings));
        }
    }
    let (rate, settings) = best.context("the peer has settings to try")?;
    ensure!(rate > 0.0, "the peer classified nothing");
    let peer = peer::Peer::start(&kit, settings).await?;
    peer::classify(peer.connect(options.in_flight).await?, frames).await?;
    Ok((peer, settings))
}
