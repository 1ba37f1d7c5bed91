// SPDX-License-Identifier: MPL-2.0
//! Which local speakers of a recording are one person.
//!
//! In two stages. Vectors of windows are joined by centroid linkage (as pyannote 3.1 does it), with a threshold that rather
//! parts one person than joins two; then centroids, which vary less than single windows, are joined while two are nearer
//! than a second threshold, and each vector goes to the nearest. Thresholds belong to the model of the vectors.

use std::collections::BTreeMap;

use kodama::{Method, linkage};
use ndarray::{Array2, ArrayView1, s};

use crate::dsp::vectors::{cosine, normalise};

/// Vectors that people are made of at most; more are thinned out evenly: linkage grows with the square of their number and
/// faster, while a person who talks for seconds is in several of them. The rest goes to the nearest centroid.
const LINKED_MOST: usize = 2000;
/// Rounds of the second stage at most. It ends by itself: each merge leaves fewer.
const ROUNDS_MOST: usize = 1000;
/// What it costs that two local speakers of one window are one person, as likeness.
const SAME_COST: f32 = 0.15;
/// Moves of vectors between centroids before what is there is taken.
const MOVES_MOST: usize = 10;

/// How people are told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clustering {
    /// Distance of unit vectors (0 to 2) up to which the first stage links.
    pub link: f32,
    /// Cosine distance (0 to 2) under which two people are one.
    pub merge: f32,
    /// Least vectors of a person in the first stage; where a recording has few, a tenth of them.
    pub least: usize,
    /// Fewest people.
    pub min: usize,
    /// Most people.
    pub max: usize,
}

/// People as their centroids, of length 1.
pub type Centroids = Vec<Vec<f32>>;

/// The centroids of those who are in `vectors`, all of length 1. Empty if there are none.
pub fn people(vectors: &[&[f32]], how: &Clustering) -> Centroids {
    if vectors.is_empty() || how.max == 0 {
        return Vec::new();
    }
    let every = vectors.len().div_ceil(LINKED_MOST);
    let thinned: Vec<&[f32]> = vectors.iter().step_by(every).copied().collect();
    let least = how.least.div_ceil(every);
    let tree = Tree::of(&thinned);
    let labels = tree.cut(how.link);
    let mut centroids = large(&thinned, &labels, least);
    settle(&mut centroids, &thinned, how.merge, how.min.max(1));
    while centroids.len() > how.max {
        let (a, b, _) = nearest_pair(&centroids);
        join(&mut centroids, &thinned, a, b);
    }
    if centroids.len() < how.min {
        // The highest cut that gives enough of them, if there is one whose people are no mere outliers.
        let more = tree.heights().into_iter().rev().find_map(|height| {
            let found = of_size(&thinned, &tree.cut(height - f32::EPSILON), 2);
            (found.len() >= how.min).then_some(found)
        });
        if let Some(more) = more {
            centroids = more;
            while centroids.len() > how.max.min(how.min) {
                let (a, b, _) = nearest_pair(&centroids);
                join(&mut centroids, &thinned, a, b);
            }
        }
    }
    centroids
}

/// The centroid that is most like `vector`, and how like.
pub fn nearest(centroids: &[Vec<f32>], vector: &[f32]) -> Option<(usize, f32)> {
    let scores = centroids.iter().map(|c| cosine(c, vector));
    scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))
}

/// For each of up to three local speakers of a window the centroid that he is most like, such that the sum of likenesses is
/// largest. That two are one person has a cost: segmentation does part a person now and then, and more often a
/// vector of few samples is most like the wrong centroid. Those without a vector have none.
pub fn assign(centroids: &[Vec<f32>], vectors: &[Option<&[f32]>]) -> Vec<Option<usize>> {
    let likest: Vec<Vec<(usize, f32)>> = vectors
        .iter()
        .map(|vector| {
            let scores = vector.iter().flat_map(|v| {
                let all = centroids.iter().map(|c| cosine(c, v));
                all.enumerate().collect::<Vec<_>>()
            });
            let mut scores: Vec<(usize, f32)> = scores.collect();
            scores.sort_by(|a, b| b.1.total_cmp(&a.1));
            // The best choice lies within as many of each as there are speakers.
            scores.truncate(vectors.len());
            scores
        })
        .collect();
    let mut best = (f32::NEG_INFINITY, vec![None; vectors.len()]);
    let mut chosen = vec![None; vectors.len()];
    choose(&likest, 0, 0.0, &mut chosen, &mut best);
    best.1
}

fn choose(
    likest: &[Vec<(usize, f32)>],
    row: usize,
    sum: f32,
    chosen: &mut Vec<Option<usize>>,
    best: &mut (f32, Vec<Option<usize>>),
) {
    let Some(own) = likest.get(row) else {
        if sum > best.0 {
            *best = (sum, chosen.clone());
        }
        return;
    };
    if own.is_empty() {
        choose(likest, row + 1, sum, chosen, best);
    }
    for &(column, like) in own {
        let same = chosen[..row].iter().filter(|c| **c == Some(column)).count();
        chosen[row] = Some(column);
        choose(
            likest,
            row + 1,
            sum + like - SAME_COST * same as f32,
            chosen,
            best,
        );
    }
    chosen[row] = None;
}

/// Steps of a linkage.
struct Tree {
    leaves: usize,
    /// The two that are joined and the largest height in what that makes: centroid linkage may join lower than before.
    steps: Vec<(usize, usize, f32)>,
}

impl Tree {
    fn of(vectors: &[&[f32]]) -> Self {
        let n = vectors.len();
        let all = matrix(vectors);
        let mut distances = Vec::with_capacity(n * n.saturating_sub(1) / 2);
        for i in 0..n {
            // Of length 1: the square of their distance is 2 - 2 cos.
            let likeness = all.slice(s![i + 1.., ..]).dot(&all.row(i));
            distances.extend(
                likeness
                    .iter()
                    .map(|like| (2.0 - 2.0 * like).max(0.0).sqrt()),
            );
        }
        let dendrogram = linkage(&mut distances, n, Method::Centroid);
        let mut highest = vec![0.0_f32; n];
        let mut steps = Vec::with_capacity(n.saturating_sub(1));
        for step in dendrogram.steps() {
            let height = step
                .dissimilarity
                .max(highest[step.cluster1])
                .max(highest[step.cluster2]);
            highest.push(height);
            steps.push((step.cluster1, step.cluster2, height));
        }
        Self { leaves: n, steps }
    }

    /// Heights, rising.
    fn heights(&self) -> Vec<f32> {
        let mut heights: Vec<f32> = self.steps.iter().map(|s| s.2).collect();
        heights.sort_by(f32::total_cmp);
        heights
    }

    /// A label for each leaf: those that are joined up to `height` have the same.
    fn cut(&self, height: f32) -> Vec<usize> {
        let mut parent: Vec<usize> = (0..self.leaves + self.steps.len()).collect();
        for (n, (a, b, own)) in self.steps.iter().enumerate() {
            if *own <= height {
                parent[*a] = self.leaves + n;
                parent[*b] = self.leaves + n;
            }
        }
        // A child is always before its parent.
        for n in (0..parent.len()).rev() {
            parent[n] = parent[parent[n]];
        }
        parent.truncate(self.leaves);
        parent
    }
}

/// Centroids of the labels that enough vectors have; where all have few, of those that most have.
fn large(vectors: &[&[f32]], labels: &[usize], least: usize) -> Centroids {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for label in labels {
        *counts.entry(*label).or_default() += 1;
    }
    let most = counts.into_values().max().unwrap_or(0);
    let tenth = (vectors.len() as f32 / 10.0).round() as usize;
    of_size(vectors, labels, least.min(tenth).min(most))
}

/// Centroids of the labels that at least so many vectors have.
fn of_size(vectors: &[&[f32]], labels: &[usize], least: usize) -> Centroids {
    let mut groups: BTreeMap<usize, Vec<&[f32]>> = BTreeMap::new();
    for (vector, label) in vectors.iter().zip(labels) {
        groups.entry(*label).or_default().push(vector);
    }
    let groups = groups.into_values().filter(|g| g.len() >= least);
    groups.map(|g| mean(&g)).collect()
}

fn mean(vectors: &[&[f32]]) -> Vec<f32> {
    let mut sum = vec![0.0; vectors.first().map_or(0, |v| v.len())];
    for vector in vectors {
        sum.iter_mut().zip(*vector).for_each(|(s, v)| *s += v);
    }
    normalise(&mut sum);
    sum
}

/// The two centroids that are most alike, and how like. There must be two.
fn nearest_pair(centroids: &[Vec<f32>]) -> (usize, usize, f32) {
    let mut best = (0, 1, f32::NEG_INFINITY);
    for a in 0..centroids.len() {
        for b in a + 1..centroids.len() {
            let like = cosine(&centroids[a], &centroids[b]);
            if like > best.2 {
                best = (a, b, like);
            }
        }
    }
    best
}

/// Joins two centroids into that of their vectors.
fn join(centroids: &mut Centroids, vectors: &[&[f32]], a: usize, b: usize) {
    let theirs: Vec<&[f32]> = vectors
        .iter()
        .filter(|v| nearest(centroids, v).is_some_and(|(n, _)| n == a || n == b))
        .copied()
        .collect();
    let joined = if theirs.is_empty() {
        mean(&[&centroids[a], &centroids[b]])
    } else {
        mean(&theirs)
    };
    centroids[a] = joined;
    centroids.remove(b);
}

/// Vectors as the rows of a matrix.
fn matrix<V: AsRef<[f32]>>(vectors: &[V]) -> Array2<f32> {
    let width = vectors.first().map_or(0, |v| v.as_ref().len());
    let mut out = Array2::zeros((vectors.len(), width));
    for (mut row, vector) in out.rows_mut().into_iter().zip(vectors) {
        row.iter_mut()
            .zip(vector.as_ref())
            .for_each(|(to, from)| *to = *from);
    }
    out
}

/// For each row the centroid that is most like it: one product of matrices, many times faster than vector by vector.
fn nearest_of_all(rows: &Array2<f32>, centroids: &Centroids) -> Vec<usize> {
    let likeness = rows.dot(&matrix(centroids).t());
    let best = |row: ArrayView1<f32>| {
        let scores = row.iter().enumerate();
        scores
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map_or(0, |(n, _)| n)
    };
    likeness.rows().into_iter().map(best).collect()
}

/// Merges while two are nearer than `merge` and more than `least` are there, and lets each vector go to the nearest.
fn settle(centroids: &mut Centroids, vectors: &[&[f32]], merge: f32, least: usize) {
    let all = matrix(vectors);
    for _ in 0..ROUNDS_MOST {
        for _ in 0..MOVES_MOST {
            let mut groups: Vec<Vec<&[f32]>> = vec![Vec::new(); centroids.len()];
            for (vector, n) in vectors.iter().zip(nearest_of_all(&all, centroids)) {
                groups[n].push(vector);
            }
            let before = std::mem::take(centroids);
            // Who has lost all vectors is nobody.
            *centroids = groups
                .iter()
                .filter(|g| !g.is_empty())
                .map(|g| mean(g))
                .collect();
            let same = before.len() == centroids.len()
                && before
                    .iter()
                    .zip(&*centroids)
                    .all(|(a, b)| cosine(a, b) > 1.0 - 1e-6);
            if same {
                break;
            }
        }
        if centroids.len() <= least {
            return;
        }
        let (a, b, like) = nearest_pair(centroids);
        if 1.0 - like >= merge {
            return;
        }
        join(centroids, vectors, a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` vectors around each direction, `spread` wide.
    fn around(people: usize, count: usize, spread: f32) -> Vec<Vec<f32>> {
        let mut state = 7_u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut out = Vec::new();
        for n in 0..people * count {
            let mut vector: Vec<f32> = (0..16).map(|_| spread * random()).collect();
            vector[n % people] += 1.0;
            normalise(&mut vector);
            out.push(vector);
        }
        out
    }

    const HOW: Clustering = Clustering {
        link: 0.45,
        merge: 0.15,
        least: 4,
        min: 1,
        max: 20,
    };

    fn found(vectors: &[Vec<f32>], how: &Clustering) -> Centroids {
        let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
        people(&vectors, how)
    }

    #[test]
    fn as_many_are_found_as_there_are() {
        for count in [1, 2, 5, 10] {
            let centroids = found(&around(count, 20, 0.2), &HOW);
            assert_eq!(centroids.len(), count);
        }
        assert_eq!(found(&[], &HOW).len(), 0);
        assert_eq!(found(&around(1, 1, 0.1), &HOW).len(), 1);
    }

    #[test]
    fn many_vectors_are_thinned_and_all_people_stay() {
        let centroids = found(&around(6, 1500, 0.2), &HOW);

        assert_eq!(centroids.len(), 6);
    }

    #[test]
    fn an_outlier_is_no_person() {
        let mut vectors = around(2, 30, 0.2);
        let mut odd = vec![0.0; 16];
        odd[15] = 1.0;
        vectors.push(odd);

        assert_eq!(found(&vectors, &HOW).len(), 2);
    }

    #[test]
    fn bounds_are_kept_where_voices_allow_it() {
        let vectors = around(5, 20, 0.2);

        assert_eq!(found(&vectors, &Clustering { max: 3, ..HOW }).len(), 3);
        // Two people taken for one by a merge that is too wide.
        let wide = Clustering {
            merge: 1.5,
            min: 5,
            ..HOW
        };
        assert_eq!(found(&vectors, &wide).len(), 5);
        // Nobody is made up out of one voice.
        let alike = vec![vec![1.0, 0.0]; 30];
        assert_eq!(found(&alike, &Clustering { min: 2, ..HOW }).len(), 1);
    }

    #[test]
    fn local_speakers_of_a_window_are_different_people_unless_clearly_one() {
        let centroids = vec![vec![1.0, 0.0], vec![0.0, 1.0]];
        let (clear, unclear) = ([0.9, 0.436], [0.75, 0.661]);

        let both = assign(&centroids, &[Some(&unclear), Some(&clear)]);
        assert_eq!(both, [Some(1), Some(0)]);
        let parted = assign(&centroids, &[Some(&clear), Some(&clear)]);
        assert_eq!(parted, [Some(0), Some(0)]);
        let one = assign(&centroids, &[None, Some(&unclear), None]);
        assert_eq!(one, [None, Some(0), None]);
        assert_eq!(assign(&[], &[Some(&clear)]), [None]);
    }

    #[test]
    fn a_tree_is_cut_where_all_below_is_low() {
        // The last step is lower than the one before it, as centroid linkage may have it.
        let tree = Tree {
            leaves: 3,
            steps: vec![(0, 1, 0.5), (2, 3, 0.5)],
        };

        assert_eq!(tree.cut(0.4), [0, 1, 2]);
        let labels = tree.cut(0.5);
        assert!(labels.iter().all(|l| *l == labels[0]));
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        let (floats, _) = bytes.as_chunks::<4>();
        floats.iter().map(|f| f32::from_le_bytes(*f)).collect()
    }

    /// Vectors of length 1, heights and labels that scipy's `linkage`, `maxdists` and `fcluster` give them
    /// (tests/reference/diarization.py): made-up ones, with steps that are lower than the one before, and voices.
    #[test]
    fn trees_are_those_of_scipy() {
        macro_rules! array {
            ($name:literal) => {
                include_bytes!(concat!("../../tests/reference/linkage-", $name))
            };
        }
        let made_up = (
            16,
            floats(array!("made-up.f32")),
            floats(array!("made-up-heights.f32")),
            &array!("made-up-labels.u8")[..],
        );
        let recording = (
            256,
            floats(array!("recording.f32")),
            floats(array!("recording-heights.f32")),
            &array!("recording-labels.u8")[..],
        );
        for (dimension, vectors, heights, labels) in [made_up, recording] {
            let vectors: Vec<&[f32]> = vectors.chunks(dimension).collect();

            let tree = Tree::of(&vectors);

            let own = tree.heights();
            assert_eq!(own.len(), heights.len());
            let far = own.iter().zip(&heights).map(|(a, b)| (a - b).abs());
            let far = far.fold(0.0, f32::max);
            assert!(far < 1e-4, "{far}");
            let cuts = [0.35, 0.45, 0.55, 0.7];
            assert_eq!(labels.len(), cuts.len() * vectors.len());
            for (cut, theirs) in cuts.into_iter().zip(labels.chunks(vectors.len())) {
                let ours = tree.cut(cut);
                for a in 0..ours.len() {
                    for b in 0..a {
                        let (own, other) = (ours[a] == ours[b], theirs[a] == theirs[b]);
                        assert_eq!(own, other, "{a} and {b} at {cut}");
                    }
                }
            }
        }
    }
}
