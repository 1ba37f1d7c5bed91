// SPDX-License-Identifier: MPL-2.0
//! One person or two.

use crate::diarize::cluster::{self, Clustering};
use crate::diarize::voice::VoiceThresholds;

/// Share of the speech that is not the first voice's, 0 to 1, from the vectors of its pieces.
pub fn second_voice(vectors: &[Vec<f32>], thresholds: &VoiceThresholds) -> f64 {
    let all: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    let how = Clustering {
        link: thresholds.link,
        merge: thresholds.merge,
        least: 2,
        min: 1,
        max: 8,
    };
    let people = cluster::people(&all, &how);
    let mut sizes = vec![0_usize; people.len()];
    for vector in &all {
        if let Some((place, _)) = cluster::nearest(&people, vector) {
            sizes[place] += 1;
        }
    }
    let most = sizes.iter().copied().max().unwrap_or(0);
    1.0 - most as f64 / all.len().max(1) as f64
}
