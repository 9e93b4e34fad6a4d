//! Medians, ratios and verdicts. Machines are noisy, and the noise changes from minute to minute; so
//! contenders are compared within a round only, and it is the ratios of the rounds that are judged.

use serde::Serialize;

/// Median, least and most of some rounds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` when there is no round.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max })
    }

    /// Of the per-round ratios of `values` to `reference`.
    pub(crate) fn of_ratios(values: &[f64], reference: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = values
            .iter()
            .zip(reference)
            .filter(|(_, reference)| **reference > 0.0)
            .map(|(value, reference)| value / reference)
            .collect();
        Self::of(&ratios)
    }
}

/// Which way is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

impl Better {
    /// The place of the best of some medians.
    pub(crate) fn best(self, medians: &[f64]) -> Option<usize> {
        let places = 0..medians.len();
        let compare = |a: &usize, b: &usize| medians[*a].total_cmp(&medians[*b]);
        match self {
            Self::Lower => places.min_by(compare),
            Self::Higher => places.max_by(compare),
        }
    }
}

/// What the rounds say about a ratio to another contender.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Better,
    Worse,
    /// Some rounds went one way and some the other.
    WithinTheNoise,
}

impl Verdict {
    /// On the ratios of one contender to another: only when all rounds agree is one better.
    pub(crate) fn on(ratios: Spread, better: Better) -> Self {
        match better {
            _ if ratios.min <= 1.0 && 1.0 <= ratios.max => Self::WithinTheNoise,
            Better::Lower if ratios.max < 1.0 => Self::Better,
            Better::Higher if ratios.min > 1.0 => Self::Better,
            _ => Self::Worse,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::WithinTheNoise => "within the noise",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Spread {
        Spread::of(values).expect("there are values")
    }

    #[test]
    fn a_median_lies_in_the_middle() {
        let odd = spread(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was twice as slow in the second round; the ratio did not care.
        let ratios = Spread::of_ratios(&[8.0, 16.0, 9.0], &[10.0, 20.0, 10.0]);
        let ratios = ratios.expect("there are rounds");
        assert_eq!((ratios.min, ratios.median, ratios.max), (0.8, 0.8, 0.9));
        assert_eq!(Spread::of_ratios(&[1.0], &[0.0]), None);
    }

    #[test]
    fn a_verdict_needs_all_rounds_to_agree() {
        for (rounds, lower, higher) in [
            ([0.7, 0.8, 0.9], Verdict::Better, Verdict::Worse),
            ([1.1, 1.2, 1.3], Verdict::Worse, Verdict::Better),
            (
                [0.7, 0.8, 1.01],
                Verdict::WithinTheNoise,
                Verdict::WithinTheNoise,
            ),
            (
                [1.0, 1.0, 1.2],
                Verdict::WithinTheNoise,
                Verdict::WithinTheNoise,
            ),
        ] {
            assert_eq!(Verdict::on(spread(&rounds), Better::Lower), lower);
            assert_eq!(Verdict::on(spread(&rounds), Better::Higher), higher);
        }
    }

    #[test]
    fn the_best_is_the_lowest_or_the_highest() {
        assert_eq!(Better::Lower.best(&[2.0, 1.0, 3.0]), Some(1));
        assert_eq!(Better::Higher.best(&[2.0, 1.0, 3.0]), Some(2));
        assert_eq!(Better::Lower.best(&[]), None);
    }
}
