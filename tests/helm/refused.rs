//! Values that cannot work are refused before anything is installed, with a message that names them and the way out.

use crate::support::{Profile, TLS, template};

/// Profile, more values as `--set-json` takes them, and what the message says.
type Row = (&'static str, &'static [&'static str], &'static str);

/// Combinations, which templates find.
const COMBINATIONS: &[Row] = &[
    ("distributed", &[r#"insecure.confirm="""#], "auth.secretName is empty: name the Secret"),
    ("distributed", &[r#"insecure.confirm="yes""#], "insecure.confirm is \"yes\": write \"anybody-who-"),
    (
        "distributed",
        &[r#"auth={"secretName":"a","serviceTokenSecretName":"b"}"#],
        "auth.secretName and insecure.confirm are both set",
    ),
    ("production", &[r#"auth.serviceTokenSecretName="""#], "auth.serviceTokenSecretName is empty"),
    ("distributed", &["stats.replicas=2"], "stats has more than one replica"),
    ("distributed", &["stats.autoscaling.enabled=true"], "stats has more than one replica"),
    ("production", &[r#"postgres.secretName="""#], "postgres.secretName is empty: name the Secret"),
    (
        "production",
        &[r#"stats={"store":"sqlite","autoscaling":{"enabled":false}}"#],
        "which would not use it",
    ),
    ("distributed", &["ratelimiter.replicas=2"], "each would count for itself"),
    ("production", &[r#"redis.ratelimiter.secretName="""#], "redis.ratelimiter.secretName is empty"),
    ("small", &[r#"stats.store="postgres""#], "mode \"all-in-one\" keeps everything in its own stores"),
    ("small", &[r#"redis.cache.secretName="r""#], "mode \"all-in-one\" keeps everything in its own stores"),
    ("small", &[r#"discovery.kind="kubernetes""#], "there is nobody to find"),
    ("small", &[r#"classifier.device="cuda""#], "mode \"all-in-one\" runs on the CPU"),
    ("small", &["allInOne.terminationGracePeriodSeconds=45"], "allInOne.terminationGracePeriodSeconds is 45"),
    ("production", &["ingest.autoscaling.minReplicas=60"], "minReplicas (60) is above maxReplicas (50)"),
    (
        "production",
        &["ingest.autoscaling.targetCPU=0", "ingest.autoscaling.targetMemory=0"],
        "nothing to scale by",
    ),
    ("production", &["stats.resources.requests={\"cpu\":null}"], "stats.resources.requests.cpu is not set"),
    ("production", &[r#"classifier.device="cuda""#], "classifier.resources.limits has no nvidia.com/gpu"),
    ("gpu", &[r#"classifier.device="cpu""#], "would leave it idle"),
    (
        "gpu",
        &[r#"image.digest="sha256:0000000000000000000000000000000000000000000000000000000000000000""#],
        "pins one image for all pods",
    ),
    ("production", &[r#"classifier.modelSource.kind="pvc""#], "claimName is empty"),
    (
        "production",
        &[r#"classifier.modelSource={"kind":"hostPath","hostPath":"m"}"#],
        "must be an absolute path",
    ),
    ("production", &[r#"classifier.modelSource.kind="init""#], "init.command is empty"),
    ("production", &[r#"ingest.ingress={"enabled":true,"host":"h"}"#], "only over TLS"),
    (
        "production",
        &[r#"ingest.ingress={"enabled":true,"tlsSecretName":"t"}"#],
        "without ingest.ingress.host",
    ),
    ("distributed", &[r#"ingest.service.type="LoadBalancer""#], "anybody could use it"),
    (
        "distributed",
        &[r#"ingest.service.loadBalancerSourceRanges=["10.0.0.0/8"]"#],
        "would not keep anybody out",
    ),
    ("production", &["ingest.terminationGracePeriodSeconds=25"], "a stop may take up to 25 s"),
    ("production", &["networkPolicy.metricsFrom=[]"], "Prometheus would be kept out"),
    (
        "production",
        &[TLS[0], TLS[1], TLS[2], r#"tls.secretNames.stats="""#],
        "tls.secretNames.stats is empty",
    ),
    ("small", TLS, "calls itself inside one pod"),
    ("production", &[TLS[2]], "calls would not be encrypted: set tls.enabled"),
    ("production", &[r#"tls.callers.stats=["spiffe://a/*"]"#], "calls would not be encrypted"),
    (
        "production",
        &["tls.enabled=true", r#"tls.certManager={"enabled":true,"issuer":{"name":"ours"}}"#],
        "install cert-manager first",
    ),
    (
        "production",
        &[
            r#"ingest.ingress={"enabled":true,"host":"h","tlsSecretName":"t"}"#,
            r#"edgeTls.secretName="edge""#,
        ],
        "to \"GRPCS\"",
    ),
    (
        "production",
        &[
            r#"ingest.ingress={"enabled":true,"host":"h","tlsSecretName":"t"}"#,
            r#"ingest.ingress.annotations={"nginx.ingress.kubernetes.io/backend-protocol":"GRPCS"}"#,
        ],
        "or name the Secret",
    ),
];

/// Values that the schema does not take.
const SHAPES: &[Row] = &[
    ("production", &["ingest.replcas=3"], "'replcas' not allowed"),
    ("production", &["ratelimiter.settings.max_kes=1"], "'max_kes' not allowed"),
    ("production", &[r#"ingest.settings.listen="0.0.0.0:1""#], "'listen' not allowed"),
    ("production", &["ingest.replicas=0"], "/ingest/replicas"),
    ("production", &[r#"stats.store="mysql""#], "/stats/store"),
    ("production", &[r#"discovery.kind="consul""#], "/discovery/kind"),
    ("production", &[r#"image.digest="latest""#], "/image/digest"),
    ("production", &[r#"ingest.resources.limits.memory="2 GB""#], "/ingest/resources/limits/memory"),
    ("production", &["ingest.pdb.maxUnavailable=0"], "/ingest/pdb/maxUnavailable"),
    ("production", &[r#"networkPolicy.clients=[{"cidr":"10.0.0.0/8"}]"#], "/networkPolicy/clients/0"),
    ("production", &["classifier.models=[]"], "/classifier/models"),
    ("production", &[r#"tls.trustDomain="spiffe://a""#], "/tls/trustDomain"),
    ("production", &[r#"tls.callers.stats=["stats"]"#], "/tls/callers/stats/0"),
    ("production", &[r#"server.settings.lame_duck="9s""#], "'lame_duck' not allowed"),
];

fn said(row: &Row) -> Option<(bool, String)> {
    let mut arguments = Profile::named(row.0).arguments();
    arguments.extend(row.1.iter().flat_map(|value| ["--set-json".into(), (*value).into()]));
    let output = template(&arguments)?;
    Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    for row in COMBINATIONS {
        let Some((rendered, said)) = said(row) else { return };
        assert!(
            !rendered && said.contains("These values cannot work:") && said.contains(row.2),
            "{row:?}: {said}"
        );
        assert_eq!(said.matches("\n  - ").count(), 1, "{row:?} breaks more than it says: {said}");
    }
}

#[test]
fn values_of_a_wrong_shape_are_refused() {
    for row in SHAPES {
        let Some((rendered, said)) = said(row) else { return };
        assert!(!rendered && said.contains(row.2), "{row:?}: {said}");
    }
}

/// Of cert-manager's Certificates, in a cluster that has the kind.
#[test]
fn a_certificate_that_nobody_could_make_is_refused() {
    for (set, expected) in [
        (&["tls.enabled=true", "tls.certManager.enabled=true"][..], "tls.certManager.issuer.name is empty"),
        (
            &[r#"edgeTls={"secretName":"e","certManager":{"enabled":true,"dnsNames":["a"]}}"#],
            "edgeTls.certManager.issuer.name is empty",
        ),
        (
            &[r#"edgeTls={"certManager":{"enabled":true,"dnsNames":["a"],"issuer":{"name":"i"}}}"#],
            "edgeTls.secretName is empty",
        ),
        (
            &[r#"edgeTls={"secretName":"e","certManager":{"enabled":true,"issuer":{"name":"i"}}}"#],
            "edgeTls.certManager.dnsNames is empty",
        ),
    ] {
        let mut arguments = Profile::named("production").arguments();
        arguments.extend(["--api-versions".into(), "cert-manager.io/v1/Certificate".into()]);
        arguments.extend(set.iter().flat_map(|value| ["--set-json".into(), (*value).into()]));
        let Some(output) = template(&arguments) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{set:?}: {said}");
        assert_eq!(said.matches("\n  - ").count(), 1, "{said}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let row: Row = ("production", &[r#"postgres.secretName="""#, r#"auth.serviceTokenSecretName="""#], "");
    let Some((_, said)) = said(&row) else { return };
    assert_eq!(said.matches("\n  - ").count(), 2, "{said}");
}
