//! The section `[mesh]`: how this process calls other services.

use sightline_config::{ByteSize, HumanDuration};

use super::{Balance, CallOptions, MeshOptions, PoolOptions, RetryBudgetOptions};

sightline_config::settings! {
    /// How this process calls other services: which replica takes the next call, and what happens when replicas fail.
    pub struct MeshConfig in "mesh" {
        /// "least_loaded": the cheaper of two random replicas, by latency, calls in flight and what they say of themselves.
        /// "round_robin": one after another. "ring_hash": a user's checks on one rate limiter and frames on one classifier while
        /// that has room; zones do not count, and statistics, whose batches are of many users, go to any replica.
        pub balance: Balance = Balance::LeastLoaded,
        /// The zone of this process, as discovery names zones: replicas there come first. Unset: all are alike.
        pub zone: Option<String> = None,
        /// While at least this share of the own zone's replicas is usable, calls stay in the zone.
        pub zone_stay_above: f64 = 0.7,
        /// How long a call waits for a usable replica, deadline permitting: the restart of one.
        pub patience: HumanDuration = HumanDuration::from_secs(2),
        /// When no replica was usable for so long, calls fail at once until one is.
        pub failfast_after: HumanDuration = HumanDuration::from_secs(3),
        /// A replica that takes longer to accept a connection is as good as down.
        pub connect_timeout: HumanDuration = HumanDuration::from_secs(2),
        /// A connection on which nothing was read for so long is asked for a sign of life …
        pub keepalive_interval: HumanDuration = HumanDuration::from_secs(2),
        /// … and closed without one for so long. Together: after how long a replica that is stopped or unreachable is given up.
        pub keepalive_timeout: HumanDuration = HumanDuration::from_secs(2),
        /// Failures in a row that eject a replica.
        pub eject_after: u32 = 5,
        /// How long the first ejection lasts; each one after it twice as long, up to a minute.
        pub ejection: HumanDuration = HumanDuration::from_secs(1),
        /// At most this share of the replicas is ejected at once.
        pub max_ejected: f64 = 0.5,
        /// Calls in flight on one replica past which it is not chosen.
        pub max_in_flight: usize = 1024,
        /// Replicas of one service taken from discovery.
        pub max_endpoints: usize = 1024,
        /// Calls and messages sent once more (retries, hedges) per call to a service. 0.08 keeps what they add to a total failure
        /// below a tenth.
        pub retry_share: f64 = 0.08,
        /// The same per second, however few calls there are.
        pub retries_per_second: f64 = 1.0,
        /// The most that is saved up of both: what may be sent again at once when a replica dies.
        pub retry_burst: f64 = 100.0,
        /// Extra attempts that all services together may make for one call that comes from outside.
        pub tree_attempts: u32 = 8,
        /// Calls and messages that may be tried per one that a service takes; past it some are failed here, unsent, while it
        /// sheds. 1 or more.
        pub throttle_above: f64 = 2.0,
        /// Requests kept for another attempt, over all calls to one service; what does not fit is sent once.
        pub replay_bytes: ByteSize = ByteSize::mib(16),
    }
}

/// More than this many retries is no budget.
const MAX_RETRIES: f64 = 100_000.0;
/// From here on nothing is ever held back.
const MAX_THROTTLE: f64 = 1_000.0;

impl MeshConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A text naming the key.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in [("zone_stay_above", self.zone_stay_above), ("max_ejected", self.max_ejected)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("`mesh.{key}` is a share, from 0 to 1"));
            }
        }
        for (key, value) in [
            ("retry_share", self.retry_share),
            ("retries_per_second", self.retries_per_second),
            ("retry_burst", self.retry_burst),
        ] {
            if !(0.0..=MAX_RETRIES).contains(&value) {
                return Err(format!("`mesh.{key}` must be a number from 0 (none) to {MAX_RETRIES}"));
            }
        }
        if !(1.0..=MAX_THROTTLE).contains(&self.throttle_above) {
            return Err(format!("`mesh.throttle_above` must be a number from 1 to {MAX_THROTTLE}"));
        }
        for (key, time) in [
            ("patience", self.patience),
            ("failfast_after", self.failfast_after),
            ("connect_timeout", self.connect_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("ejection", self.ejection),
        ] {
            if time.is_zero() {
                return Err(format!("`mesh.{key}` must be longer than 0s"));
            }
        }
        let numbers = [
            ("eject_after", self.eject_after as usize),
            ("max_in_flight", self.max_in_flight),
            ("max_endpoints", self.max_endpoints),
        ];
        match numbers.iter().find(|(_, number)| *number == 0) {
            Some((key, _)) => Err(format!("`mesh.{key}` must be at least 1")),
            None => Ok(()),
        }
    }

    /// How calls are made, with the defaults of what is no setting.
    pub fn calls(&self) -> CallOptions {
        let mut options = CallOptions {
            budget: self.budget(),
            tree_attempts: self.tree_attempts,
            replay_bytes: self.replay_bytes.bytes(),
            ..CallOptions::default()
        };
        options.throttle.k = self.throttle_above;
        options
    }

    /// How messages on streams are sent, with the defaults of what is no setting.
    pub fn pools(&self) -> PoolOptions {
        let mut options =
            PoolOptions { patience: self.patience.0, budget: self.budget(), ..PoolOptions::default() };
        options.throttle.k = self.throttle_above;
        options
    }

    fn budget(&self) -> RetryBudgetOptions {
        RetryBudgetOptions {
            ratio: self.retry_share,
            min_per_second: self.retries_per_second,
            burst: self.retry_burst,
        }
    }

    /// As options, with the defaults of what is no setting.
    pub fn options(&self) -> MeshOptions {
        let mut options = MeshOptions {
            balance: self.balance,
            patience: self.patience.0,
            failfast_after: self.failfast_after.0,
            max_in_flight: self.max_in_flight,
            max_endpoints: self.max_endpoints,
            ..MeshOptions::default()
        };
        // A pod whose cluster does not say its zone has it empty.
        options.zone.own = self.zone.clone().filter(|zone| !zone.is_empty());
        options.zone.stay_above = self.zone_stay_above;
        options.transport.connect_timeout = self.connect_timeout.0;
        options.transport.keepalive_interval = self.keepalive_interval.0;
        options.transport.keepalive_timeout = self.keepalive_timeout.0;
        options.breaker.consecutive_failures = self.eject_after;
        options.breaker.ejection = self.ejection.0;
        options.breaker.max_ejected = self.max_ejected;
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_defaults_are_the_options_defaults() {
        let (config, options) = (MeshConfig::default(), MeshOptions::default());
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(format!("{:?}", config.options()), format!("{options:?}"));
        assert_eq!(format!("{:?}", config.calls()), format!("{:?}", CallOptions::default()));
        assert_eq!(format!("{:?}", config.pools()), format!("{:?}", PoolOptions::default()));
    }

    #[test]
    fn mistakes_are_named() {
        let good = MeshConfig::default();
        for (config, key) in [
            (MeshConfig { max_ejected: 1.5, ..good.clone() }, "mesh.max_ejected"),
            (MeshConfig { zone_stay_above: f64::NAN, ..good.clone() }, "mesh.zone_stay_above"),
            (MeshConfig { patience: HumanDuration::from_secs(0), ..good.clone() }, "mesh.patience"),
            (MeshConfig { eject_after: 0, ..good.clone() }, "mesh.eject_after"),
            (MeshConfig { retry_share: -0.1, ..good.clone() }, "mesh.retry_share"),
            (MeshConfig { retry_burst: f64::INFINITY, ..good.clone() }, "mesh.retry_burst"),
            (MeshConfig { throttle_above: 0.5, ..good.clone() }, "mesh.throttle_above"),
        ] {
            let said = config.validate().unwrap_err();
            assert!(said.contains(key), "{said}");
        }
    }
}
