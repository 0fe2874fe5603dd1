//! Scores become a level.

use sightline_proto::{
    classifier::{Class, ClassRole},
    verdict::Level,
};

use crate::config::PolicyConfig;

/// Which classes count as what: their places among the scores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights {
    explicit: Vec<usize>,
    suggestive: Vec<usize>,
}

impl Weights {
    /// By the roles that the model's manifest gives its classes.
    pub fn of(classes: &[Class]) -> Self {
        let places = |role: ClassRole| {
            classes
                .iter()
                .enumerate()
                .filter(|(_, class)| class.role() == role)
                .map(|(place, _)| place)
                .collect()
        };
        Self { explicit: places(ClassRole::Explicit), suggestive: places(ClassRole::Suggestive) }
    }
}

/// Turns scores into levels by fixed thresholds.
#[derive(Debug, Clone)]
pub struct Policy {
    config: PolicyConfig,
    /// "name@version", as verdicts show it.
    pub id: String,
}

impl Policy {
    /// With the thresholds of `config`.
    pub fn new(config: &PolicyConfig) -> Self {
        Self { id: format!("{}@{}", config.name, config.version), config: config.clone() }
    }

    /// The level of scores of a model with these weights.
    pub fn level(&self, scores: &[f32], weights: &Weights) -> Level {
        let sum = |places: &[usize]| places.iter().filter_map(|place| scores.get(*place)).sum::<f32>();
        let explicit = sum(&weights.explicit);
        let unsafe_at_all = explicit + sum(&weights.suggestive);
        let PolicyConfig { severe, explicit: explicit_from, suggestive, mild, .. } = self.config;
        match () {
            () if explicit >= severe => Level::Severe,
            () if explicit >= explicit_from => Level::Explicit,
            () if unsafe_at_all >= suggestive => Level::Suggestive,
            () if unsafe_at_all >= mild => Level::Mild,
            () => Level::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_the_thresholds() {
        let class = |role: ClassRole| Class { name: "x".into(), role: role.into() };
        let weights = Weights::of(&[
            class(ClassRole::Safe),
            class(ClassRole::Explicit),
            class(ClassRole::Suggestive),
            class(ClassRole::Explicit),
        ]);
        let policy = Policy::new(&PolicyConfig::default());
        for (scores, level) in [
            ([0.9, 0.03, 0.05, 0.02], Level::None),
            ([0.65, 0.1, 0.2, 0.05], Level::Mild),
            ([0.3, 0.1, 0.5, 0.1], Level::Suggestive),
            ([0.2, 0.4, 0.05, 0.35], Level::Explicit),
            ([0.01, 0.6, 0.0, 0.39], Level::Severe),
        ] {
            assert_eq!(policy.level(&scores, &weights), level, "{scores:?}");
        }
        assert_eq!(policy.id, "default@1");
    }
}
