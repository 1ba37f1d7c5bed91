// SPDX-License-Identifier: MPL-2.0
//! Who is who across parts of a recording that were diarized apart, as after a seek: the same voice keeps its number.

use crate::dsp::vectors::cosine;

/// Voices heard so far. Numbers are given in the order of appearance and never again.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    voices: Vec<Vec<f32>>,
}

impl Identities {
    /// The number of each of `voices` (of length 1), which are different people: that of the known voice within the cosine
    /// distance `merge`, the most alike first, or a new one.
    pub fn of(&mut self, voices: &[Vec<f32>], merge: f32) -> Vec<usize> {
        let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
        for (n, voice) in voices.iter().enumerate() {
            for (known, other) in self.voices.iter().enumerate() {
                let like = cosine(voice, other);
                if 1.0 - like < merge {
                    pairs.push((like, n, known));
                }
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut numbers: Vec<Option<usize>> = vec![None; voices.len()];
        let mut taken = vec![false; self.voices.len()];
        for (_, n, known) in pairs {
            if numbers[n].is_none() && !taken[known] {
                numbers[n] = Some(known);
                taken[known] = true;
            }
        }
        let numbers = numbers.into_iter().zip(voices).map(|(number, voice)| {
            number.unwrap_or_else(|| {
                self.voices.push(voice.clone());
                self.voices.len() - 1
            })
        });
        numbers.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voice_that_returns_keeps_its_number_and_a_new_one_gets_the_next() {
        let mut identities = Identities::default();
        let (a, b, c) = (
            vec![1.0, 0.0, 0.0],
            vec![0.0, 1.0, 0.0],
            vec![0.0, 0.0, 1.0],
        );
        assert_eq!(identities.of(&[a.clone(), b.clone()], 0.2), [0, 1]);

        let near_b = vec![0.1, 0.99, 0.0];

        assert_eq!(identities.of(&[c, near_b, a], 0.2), [2, 1, 0]);
    }

    #[test]
    fn two_voices_of_one_part_never_get_one_number() {
        let mut identities = Identities::default();
        identities.of(&[vec![1.0, 0.0]], 0.5);

        let found = identities.of(&[vec![0.95, 0.31], vec![1.0, 0.0]], 0.5);

        assert_eq!(found, [1, 0]);
    }
}
