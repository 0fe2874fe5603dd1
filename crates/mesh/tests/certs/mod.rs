//! Authorities and certificates for tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType, date_time_ymd,
};

/// Somebody who signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with these names, and its key; valid from an hour ago until `life` from now.
    pub fn issue(&self, names: &[&str], life: Duration) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        for name in names {
            let text = (*name).try_into().unwrap();
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI(text),
                Err(_) => SanType::DnsName(text),
            });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + (now - Duration::from_secs(3600));
        params.not_after = epoch + (now + life);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A day: as good as for ever in a test.
pub const DAY: Duration = Duration::from_secs(24 * 3600);
