// SPDX-License-Identifier: MPL-2.0
//! A voiceprint out of the vectors of a recording.

use super::matching::Thresholds;
use super::{ModelKey, Quality, Take};
use crate::dsp::vectors::{cosine, normalise};

/// Pieces that are kept beside the mean at most.
pub const EXEMPLARS_MOST: usize = 8;
/// Pieces this many median deviations less like the mean than the median piece are no speech of that person: laughter,
/// a cough, another voice.
const OUTLIER_DEVIATIONS: f32 = 2.5;
/// Fewest pieces of which halves can be compared.
const AGREEMENT_LEAST: usize = 4;
/// Part of the pieces that a second person has at least: a word from elsewhere does no harm.
const SECOND_PART: f64 = 0.15;
/// Rounds of parting pieces between two voices at most; it settles within a few.
const ROUNDS_MOST: usize = 20;

/// What a recording adds to a voice: `vectors` are those of its pieces, each of length 1 and of the model's dimension.
/// [`Quality::agreement`] is set here, the rest of `quality` is kept. None if there are no vectors.
pub fn take(model: ModelKey, vectors: &[Vec<f32>], mut quality: Quality, at: u64) -> Option<Take> {
    let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    let kept = without_outliers(&vectors);
    if kept.is_empty() {
        return None;
    }
    quality.agreement = agreement(&kept);
    let mean = mean(&kept);
    let exemplars = exemplars(&kept, &mean);
    Some(Take {
        model,
        mean,
        exemplars,
        quality,
        at,
    })
}

/// Two voices in what should be one person's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoVoices {
    /// Part of the pieces that the lesser one has, 0 to 0.5.
    pub part: f64,
    /// How like the two are: see [`super::matching`].
    pub likeness: f32,
}

/// Whether pieces, each of length 1 and beginning `hop_s` seconds after the one before, are of two people: parted into two
/// groups that are as different as may be, each of more than a seventh, those are less alike than
/// [`Thresholds::two`]. None for one person.
///
/// From 15 s on it finds two people who share what there is, from 30 s on one in five who is another; below that it may miss
/// them (docs/benchmarks.md has rates).
pub fn two_voices(vectors: &[Vec<f32>], hop_s: f64, thresholds: &Thresholds) -> Option<TwoVoices> {
    let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    let farthest = |from: &[f32]| {
        let likeness = |v: &&&[f32]| cosine(v, from);
        let least = vectors
            .iter()
            .min_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        least.map(|v| v.to_vec())
    };
    let first = farthest(&mean(&vectors))?;
    let second = farthest(&first)?;
    let mut centres = [first, second];
    let mut parts = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS_MOST {
        parts = [Vec::new(), Vec::new()];
        for vector in &vectors {
            let is_second = cosine(vector, &centres[1]) > cosine(vector, &centres[0]);
            parts[usize::from(is_second)].push(*vector);
        }
        let next = [mean(&parts[0]), mean(&parts[1])];
        if next == centres {
            break;
        }
        centres = next;
    }
    let lesser = parts[0].len().min(parts[1].len());
    let part = lesser as f64 / vectors.len() as f64;
    if part <= SECOND_PART {
        return None;
    }
    let seconds = [0, 1].map(|n| parts[n].len() as f64 * hop_s);
    let likeness = thresholds.likeness(cosine(&centres[0], &centres[1]), seconds);
    (likeness < thresholds.two).then_some(TwoVoices { part, likeness })
}

fn mean(vectors: &[&[f32]]) -> Vec<f32> {
    let mut sum = vec![0.0; vectors.first().map_or(0, |v| v.len())];
    for vector in vectors {
        sum.iter_mut().zip(*vector).for_each(|(s, v)| *s += v);
    }
    normalise(&mut sum);
    sum
}

/// Those that are like the others, in their order; three quarters at least.
fn without_outliers<'a>(vectors: &[&'a [f32]]) -> Vec<&'a [f32]> {
    let centre = mean(vectors);
    let likeness: Vec<f32> = vectors.iter().map(|v| cosine(v, &centre)).collect();
    let middle = median(likeness.clone());
    let deviation = median(likeness.iter().map(|l| (l - middle).abs()).collect());
    let mut rising = likeness.clone();
    rising.sort_by(f32::total_cmp);
    // Whatever the deviation: the quarter that is least like the mean, and no more.
    let quarter = rising.get(vectors.len() / 4).copied().unwrap_or(0.0);
    let least = (middle - OUTLIER_DEVIATIONS * deviation).min(quarter);
    let all = vectors.iter().zip(likeness);
    all.filter(|(_, l)| *l >= least).map(|(v, _)| *v).collect()
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Cosine of the means of odd and of even pieces. None where they are few.
fn agreement(vectors: &[&[f32]]) -> Option<f64> {
    if vectors.len() < AGREEMENT_LEAST {
        return None;
    }
    let half = |first: usize| {
        let every: Vec<&[f32]> = vectors.iter().skip(first).step_by(2).copied().collect();
        mean(&every)
    };
    Some(f64::from(cosine(&half(0), &half(1))))
}

/// The piece that is least like the mean, then again and again the one that is least like those chosen.
fn exemplars(vectors: &[&[f32]], mean: &[f32]) -> Vec<Vec<f32>> {
    let mut chosen: Vec<Vec<f32>> = Vec::new();
    // For each piece how like it is to the most alike of those chosen.
    let mut nearest: Vec<f32> = vectors.iter().map(|v| cosine(v, mean)).collect();
    while chosen.len() < EXEMPLARS_MOST.min(vectors.len()) {
        let farthest = (0..nearest.len()).min_by(|a, b| nearest[*a].total_cmp(&nearest[*b]));
        let Some(farthest) = farthest else {
            break;
        };
        let own = vectors[farthest];
        let is_first = chosen.is_empty();
        for (likeness, vector) in nearest.iter_mut().zip(vectors) {
            let to_own = cosine(vector, own);
            *likeness = if is_first {
                to_own
            } else {
                likeness.max(to_own)
            };
        }
        nearest[farthest] = f32::INFINITY;
        chosen.push(own.to_vec());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelKey {
        ModelKey {
            name: "test".into(),
            version: "0".repeat(64),
            dimension: 3,
        }
    }

    fn unit(values: [f32; 3]) -> Vec<f32> {
        let mut vector = values.to_vec();
        normalise(&mut vector);
        vector
    }

    /// Pieces around the first axis, a little apart.
    fn pieces(count: usize) -> Vec<Vec<f32>> {
        let at = |n: usize| {
            unit([
                1.0,
                0.02 * n as f32,
                if n.is_multiple_of(2) { 0.05 } else { -0.05 },
            ])
        };
        (0..count).map(at).collect()
    }

    fn made(vectors: &[Vec<f32>]) -> Take {
        take(model(), vectors, Quality::default(), 7).expect("there are vectors")
    }

    #[test]
    fn an_outlier_is_left_out_and_moves_nothing() {
        let clean = made(&pieces(12));
        let mut with = pieces(12);
        with.insert(5, unit([0.1, 0.2, 1.0]));

        let take = made(&with);

        assert!(cosine(&take.mean, &clean.mean) > 0.999_99);
        assert!(!take.exemplars.contains(&with[5]));
    }

    #[test]
    fn never_more_than_a_quarter_is_left_out() {
        let mut vectors = vec![unit([1.0, 0.0, 0.0]); 8];
        vectors.extend(vec![unit([0.0, 1.0, 0.0]); 6]);
        let borrowed: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();

        assert!(without_outliers(&borrowed).len() >= 11);
    }

    #[test]
    fn exemplars_are_eight_at_most_and_lie_far_apart() {
        let take = made(&pieces(40));

        assert_eq!(take.exemplars.len(), EXEMPLARS_MOST);
        let different = take.exemplars.iter().enumerate().all(|(n, e)| {
            let others = take.exemplars[..n].iter();
            others
                .map(|o| cosine(o, e))
                .all(|likeness| likeness < 0.9999)
        });
        assert!(different);
        assert_eq!(made(&pieces(3)).exemplars.len(), 3);
    }

    #[test]
    fn halves_agree_from_four_pieces_on() {
        assert_eq!(made(&pieces(3)).quality.agreement, None);

        let agreement = made(&pieces(4)).quality.agreement.expect("four pieces");

        assert!((0.98..1.0).contains(&agreement), "{agreement}");
    }

    const HOW: Thresholds = Thresholds {
        accept: 0.8,
        stranger: 0.5,
        strong: 0.95,
        same: 0.9,
        two: 0.78,
        slack: 0.1,
        half_s: 0.0,
        least_s: 2.0,
    };

    #[test]
    fn a_second_person_is_found_from_a_seventh_of_the_pieces_on() {
        let with = |others: usize| {
            let mut vectors = pieces(20 - others);
            vectors.extend((0..others).map(|n| unit([0.4, 1.0, 0.01 * n as f32])));
            two_voices(&vectors, 1.5, &HOW)
        };

        assert_eq!(with(0), None);
        assert_eq!(with(3), None);
        let found = with(4).expect("a fifth is another's");
        assert!((found.part - 0.2).abs() < 1e-9 && found.likeness < 0.78);
        assert!((with(10).expect("half is another's").part - 0.5).abs() < 1e-9);
    }

    #[test]
    fn few_pieces_or_none_are_not_two_people() {
        assert_eq!(two_voices(&[], 1.5, &HOW), None);
        assert_eq!(two_voices(&pieces(1), 1.5, &HOW), None);
        assert_eq!(two_voices(&vec![unit([1.0, 0.0, 0.0]); 9], 1.5, &HOW), None);
    }

    #[test]
    fn one_piece_is_a_voice_and_none_is_nobody() {
        let take_of_one = made(&pieces(1));

        assert_eq!(take_of_one.mean, pieces(1)[0]);
        assert_eq!(take_of_one.at, 7);
        assert_eq!(take(model(), &[], Quality::default(), 7), None);
    }
}
