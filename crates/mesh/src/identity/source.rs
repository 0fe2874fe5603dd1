//! One identity of this process: files that are looked at again and again, and what connections use of them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use metrics::{Gauge, counter, describe_counter, describe_gauge, gauge};
use rustls::{
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sightline_telemetry::dependencies::{Condition, Dependency};
use tokio::{sync::Notify, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{
    files::{Material, TlsError, TlsFiles, Validity, humantime},
    spiffe::SpiffeId,
};

/// Files that do not fit each other are read again after this before they count as bad: whoever writes certificate and
/// key one after the other is given the time to finish.
const SETTLE: Duration = Duration::from_millis(250);

/// A certificate with its key and the authorities of peers, replaced as a whole when the files change. Cheap to share;
/// every new handshake uses the current one, connections that are open keep theirs.
pub struct Identity {
    name: &'static str,
    files: TlsFiles,
    current: ArcSwap<Material>,
    expires: Gauge,
    /// Asks [`Identity::watch`] to look now.
    look: Notify,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files; `name` (`edge`, `mesh`) stands in metrics and log. Blocks on the disk, for a start.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn load(name: &'static str, files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        describe_gauge!("mesh_certificate_expires_seconds", "Until our own certificate ends, by identity");
        describe_counter!(
            "mesh_certificate_reloads_total",
            "Changed files, by identity and outcome (new, bad)"
        );
        let material = files.read()?;
        let identity = Self {
            name,
            files,
            expires: gauge!("mesh_certificate_expires_seconds", "identity" => name),
            current: ArcSwap::from_pointee(material),
            look: Notify::new(),
        };
        identity.expires.set(identity.validity().seconds_left(SystemTime::now()));
        Ok(Arc::new(identity))
    }

    /// Our own name, if the certificate has one.
    pub fn id(&self) -> Option<SpiffeId> {
        self.current.load().id.clone()
    }

    /// From when to when our certificate may be used.
    pub fn validity(&self) -> Validity {
        self.current.load().validity
    }

    /// Whether there are authorities to check peers against.
    pub fn checks_peers(&self) -> bool {
        self.files.ca.is_some()
    }

    /// Looks at the files at once instead of at the next interval; for SIGHUP.
    pub fn look_now(&self) {
        self.look.notify_one();
    }

    pub(super) fn material(&self) -> arc_swap::Guard<Arc<Material>> {
        self.current.load()
    }

    /// Reads the files every `interval` until the handle is dropped, and says on `dependency` how that goes. Content
    /// decides whether they changed, which also sees Kubernetes exchange the folder behind a link. Files that cannot be
    /// used change nothing: the certificate before them stays.
    pub fn watch(self: &Arc<Self>, interval: Duration, dependency: Dependency) -> AbortOnDropHandle<()> {
        let identity = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut told = Told::default();
            loop {
                let now = SystemTime::now();
                identity.tell(&mut told, now, &dependency);
                tokio::select! {
                    () = sleep(interval) => {}
                    () = identity.look.notified() => {}
                }
                told.bad = identity.renew().await.err();
            }
        }))
    }

    /// Takes the files if they changed and can be used.
    async fn renew(&self) -> Result<(), TlsError> {
        let material = match self.read().await {
            Ok(material) => material,
            Err(_) => {
                sleep(SETTLE).await;
                self.read().await?
            }
        };
        if material.digest != self.current.load().digest {
            let left = material.validity.seconds_left(SystemTime::now()).max(0.0);
            let id = material.id.as_ref().map_or("", |id| id.as_str());
            let left = humantime(Duration::from_secs_f64(left));
            info!(identity = self.name, id, "a new certificate is in use, valid for {left}");
            self.current.store(Arc::new(material));
            self.count("new");
        }
        Ok(())
    }

    async fn read(&self) -> Result<Material, TlsError> {
        let files = self.files.clone();
        let reading = tokio::task::spawn_blocking(move || files.read());
        let material = reading.await.expect("reading files is neither cancelled nor does it panic")?;
        // With it every peer that goes by a list would turn us away.
        if material.id.is_none() && self.current.load().id.is_some() {
            return Err(self.files.nameless());
        }
        Ok(material)
    }

    fn count(&self, outcome: &'static str) {
        counter!("mesh_certificate_reloads_total", "identity" => self.name, "outcome" => outcome)
            .increment(1);
    }

    /// Gauge, dependency (whose changes are logged) and the nearing end, each change once.
    fn tell(&self, told: &mut Told, now: SystemTime, dependency: &Dependency) {
        let material = self.current.load();
        let left = material.validity.seconds_left(now);
        self.expires.set(left);
        let condition = match &told.bad {
            _ if left <= 0.0 => Condition::Down(format!(
                "the {} certificate has expired and peers refuse it{}",
                self.name,
                told.bad
                    .as_ref()
                    .map(|bad| format!("; the new files cannot be used: {bad}"))
                    .unwrap_or_default()
            )),
            Some(bad) => Condition::Degraded(format!("the certificate before stays in use: {bad}")),
            None => Condition::Healthy,
        };
        if told.bad != told.counted {
            told.counted.clone_from(&told.bad);
            if told.bad.is_some() {
                self.count("bad");
            }
        }
        dependency.report(condition);
        if left > 0.0 && material.validity.is_due(now) && told.due != Some(material.digest) {
            told.due = Some(material.digest);
            let left = humantime(Duration::from_secs_f64(left));
            warn!(
                identity = self.name,
                "the certificate ends in {left}: less than a third of its life is left"
            );
        }
    }
}

/// What has been said already.
#[derive(Default)]
struct Told {
    bad: Option<TlsError>,
    /// The problem that was counted.
    counted: Option<TlsError>,
    /// The certificate whose nearing end was logged.
    due: Option<[u8; 32]>,
}

/// Presents the current certificate in each handshake.
pub(super) struct Presenter(pub(super) Arc<Identity>);

impl fmt::Debug for Presenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResolvesServerCert for Presenter {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.material().certified))
    }
}

impl ResolvesClientCert for Presenter {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.material().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
