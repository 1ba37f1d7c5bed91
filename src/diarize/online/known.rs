// SPDX-License-Identifier: MPL-2.0
//! The people of a stream that is still going on. Whoever is unlike all of them is a new one; from time to time all vectors
//! are clustered as those of a recording are (`cluster`), and what was decided with less is mended.

use super::super::cluster::{self, Clustering, nearest};
use super::super::voice::VoiceThresholds;
use crate::dsp::vectors::{cosine, normalise};

/// A vector that is further from all people than so many times the distance under which two people are one is a new person.
/// It must be more than 1, as the vector of one window varies more than the mean of many, and less than what lies between
/// strangers, about three times. From 1.5 to 2 the error is the same within half a point; under it one person becomes many,
/// above it a new one is heard late.
const NEW: f32 = 1.75;
/// Vectors that are kept: two thousand and more are slow to link, and one a second is 17 minutes of speech. Beyond it those
/// of the person who has most are thinned out, so that nobody who was heard once is forgotten.
const VECTORS_MOST: usize = 1000;
/// New vectors after which all are clustered anew, at least: 10 s of speech. More where many are kept.
const CLUSTER_EVERY: usize = 10;
/// Vectors that a part of one person must have to become another: 10 s of speech.
const SPLIT_LEAST: usize = 10;
/// Moves of vectors between people at a time.
const MOVES: usize = 3;

/// From now on, and in what was told, `old` is `new` in turns that begin in `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relabelled {
    /// The id that was told.
    pub old: usize,
    /// The right one.
    pub new: usize,
    /// The first sample; 0 with a `to` of [`u64::MAX`] for all there is.
    pub from: u64,
    /// The first sample behind it.
    pub to: u64,
}

impl Relabelled {
    /// `old` and `new` are one person.
    fn everywhere(old: usize, new: usize) -> Self {
        let (from, to) = (0, u64::MAX);
        Self { old, new, from, to }
    }

    /// Whether it is for all of the stream: the old id is never told again.
    pub fn is_everywhere(&self) -> bool {
        self.to == u64::MAX
    }
}

/// People who were heard so far. Ids are given in the order of appearance and never again.
#[derive(Clone, Debug, Default)]
pub struct KnownVoices {
    people: Vec<Person>,
    /// In the order of `people`.
    centroids: Vec<Vec<f32>>,
    vectors: Vec<Heard>,
    next_id: usize,
    /// Vectors since they were last moved and since they were last clustered.
    unmoved: usize,
    unclustered: usize,
}

#[derive(Clone, Debug)]
struct Person {
    id: usize,
    /// Known by a vector that is no more than a guess.
    is_guess: bool,
}

/// A vector and whose it is, by id.
#[derive(Clone, Debug)]
struct Heard {
    vector: Vec<f32>,
    id: usize,
}

impl KnownVoices {
    /// People.
    pub fn len(&self) -> usize {
        self.people.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.people.is_empty()
    }

    /// Their voices, of length 1.
    pub fn centroids(&self) -> &[Vec<f32>] {
        &self.centroids
    }

    /// Each of them who talked alone: id, voice, about how many seconds were heard.
    pub fn voices(&self) -> impl Iterator<Item = (usize, &[f32], f64)> {
        let people = self.people.iter().zip(&self.centroids);
        people.filter(|(p, _)| !p.is_guess).map(|(person, voice)| {
            let own = self.vectors.iter().filter(|v| v.id == person.id);
            // One a second.
            (person.id, voice.as_slice(), own.count() as f64)
        })
    }

    /// Their ids, in the order of their voices.
    pub fn ids(&self) -> impl Iterator<Item = usize> {
        self.people.iter().map(|p| p.id)
    }

    /// Vectors that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.vectors.len()
    }

    pub(super) fn id(&self, place: usize) -> Option<usize> {
        self.people.get(place).map(|p| p.id)
    }

    pub(super) fn place(&self, id: usize) -> Option<usize> {
        self.people.iter().position(|p| p.id == id)
    }

    fn add(&mut self, vector: Vec<f32>, is_guess: bool) -> usize {
        let id = self.next_id;
        self.next_id += 1;
        self.people.push(Person { id, is_guess });
        self.centroids.push(vector);
        id
    }

    /// The first person of all, by a vector of little sound: whoever talks alone first takes the id.
    pub(super) fn guess(&mut self, vector: &[f32]) {
        if self.is_empty() {
            self.add(vector.to_vec(), true);
        }
    }

    /// Vectors of local speakers of one window who say enough alone.
    pub(super) fn learn(&mut self, vectors: &[&[f32]], most: usize, how: &VoiceThresholds) {
        let all: Vec<Option<&[f32]>> = vectors.iter().map(|v| Some(*v)).collect();
        let who = cluster::assign(&self.centroids, &all);
        for (vector, place) in vectors.iter().zip(who) {
            let known = place.filter(|p| {
                let far = 1.0 - cosine(&self.centroids[*p], vector) > how.merge * NEW;
                !far || self.people[*p].is_guess || self.len() >= most
            });
            let id = match known {
                Some(place) => {
                    if std::mem::take(&mut self.people[place].is_guess) {
                        self.centroids[place] = vector.to_vec();
                    }
                    self.people[place].id
                }
                None => self.add(vector.to_vec(), false),
            };
            let vector = vector.to_vec();
            self.vectors.push(Heard { vector, id });
            self.unmoved += 1;
            self.unclustered += 1;
        }
        self.thin();
    }

    fn thin(&mut self) {
        if self.vectors.len() <= VECTORS_MOST {
            return;
        }
        let count = |id: usize| self.vectors.iter().filter(|v| v.id == id).count();
        if let Some(most) = self.ids().max_by_key(|id| count(*id)) {
            let mut n = 0;
            self.vectors.retain(|v| {
                n += usize::from(v.id == most);
                v.id != most || n % 2 == 0
            });
        }
    }

    /// Each voice is the mean of its vectors.
    fn mean(&mut self) {
        for (person, centroid) in self.people.iter().zip(&mut self.centroids) {
            let mut sum = vec![0.0; centroid.len()];
            for own in self.vectors.iter().filter(|v| v.id == person.id) {
                sum.iter_mut().zip(&own.vector).for_each(|(s, v)| *s += v);
            }
            normalise(&mut sum);
            if sum.iter().any(|v| *v != 0.0) {
                *centroid = sum;
            }
        }
    }

    /// Each vector goes to the nearest.
    fn spread(&mut self) {
        for own in &mut self.vectors {
            if let Some((place, _)) = nearest(&self.centroids, &own.vector) {
                own.id = self.people[place].id;
            }
        }
    }

    /// Two are one: who was there first stays.
    fn merge(&mut self, a: usize, b: usize) -> Relabelled {
        let (keep, drop) = (a.min(b), a.max(b));
        let (new, old) = (self.people[keep].id, self.people[drop].id);
        for own in self.vectors.iter_mut().filter(|v| v.id == old) {
            own.id = new;
        }
        self.people.remove(drop);
        self.centroids.remove(drop);
        self.mean();
        Relabelled::everywhere(old, new)
    }

    /// Mends what was decided with less, if there is enough new to do so; `now` in any case. The ids that were merged, and
    /// whether all was looked at anew.
    pub(super) fn mend(
        &mut self,
        most: usize,
        how: &VoiceThresholds,
        now: bool,
    ) -> (Vec<Relabelled>, bool) {
        let mut merged = Vec::new();
        // A fiftieth more, a twentieth more: what it costs by the second does not grow.
        if self.unmoved > self.vectors.len() / 50 || now {
            self.unmoved = 0;
            self.settle(how, &mut merged);
        }
        let due = CLUSTER_EVERY.max(self.vectors.len() / 20);
        let is_due = self.unclustered >= due || now && self.unclustered > 0;
        if is_due {
            self.unclustered = 0;
            self.cluster(most, how, &mut merged);
        }
        (merged, is_due)
    }

    fn settle(&mut self, how: &VoiceThresholds, merged: &mut Vec<Relabelled>) {
        loop {
            for _ in 0..MOVES {
                self.spread();
                self.mean();
            }
            let pairs = (0..self.len()).flat_map(|a| (a + 1..self.len()).map(move |b| (a, b)));
            let likes = pairs.map(|(a, b)| (a, b, cosine(&self.centroids[a], &self.centroids[b])));
            match likes.max_by(|a, b| a.2.total_cmp(&b.2)) {
                Some((a, b, like)) if 1.0 - like < how.merge => merged.push(self.merge(a, b)),
                _ => return,
            }
        }
    }

    /// Clusters all vectors and finds out who is whom: a cluster is the person most of whose vectors are in it.
    fn cluster(&mut self, most: usize, how: &VoiceThresholds, merged: &mut Vec<Relabelled>) {
        let vectors: Vec<&[f32]> = self.vectors.iter().map(|v| v.vector.as_slice()).collect();
        let clustering = Clustering {
            link: how.link,
            merge: how.merge,
            // One a second.
            least: how.least_seconds.round().max(1.0) as usize,
            min: 1,
            max: most,
        };
        let found = cluster::people(&vectors, &clustering);
        let of = |v: &&[f32]| nearest(&found, v).map_or(0, |n| n.0);
        let labels: Vec<usize> = vectors.iter().map(of).collect();
        let mut shared = vec![vec![0_usize; found.len()]; self.len()];
        for (own, label) in self.vectors.iter().zip(&labels) {
            if let Some(place) = self.place(own.id) {
                shared[place][*label] += 1;
            }
        }
        let mut owners: Vec<Option<usize>> = vec![None; found.len()];
        let mut has_one = vec![false; self.len()];
        let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
        for (place, row) in shared.iter().enumerate() {
            pairs.extend(row.iter().enumerate().map(|(n, count)| (*count, place, n)));
        }
        pairs.retain(|p| p.0 > 0);
        // Who was there first, where as many are shared.
        pairs.sort_by_key(|(count, place, n)| (std::cmp::Reverse(*count), *place, *n));
        for (_, place, n) in pairs {
            if !has_one[place] && owners[n].is_none() {
                has_one[place] = true;
                owners[n] = Some(place);
            }
        }
        let ids: Vec<usize> = self.ids().collect();
        for (n, centroid) in found.iter().enumerate() {
            let size = labels.iter().filter(|l| **l == n).count();
            if owners[n].is_none() && size >= SPLIT_LEAST && self.len() < most {
                let id = self.add(centroid.clone(), false);
                let own = self.vectors.iter_mut().zip(&labels);
                own.filter(|(_, label)| **label == n)
                    .for_each(|(v, _)| v.id = id);
            }
        }
        // Who has no cluster of their own was one with another, or too little was heard of them: the distance tells.
        for (place, id) in ids.iter().enumerate() {
            let row = &shared[place];
            let most_in = (0..found.len()).max_by_key(|n| row[*n]);
            let Some((n, owner)) = most_in.and_then(|n| Some((n, owners[n]?))) else {
                continue;
            };
            let (Some(own), Some(other)) = (self.place(*id), self.place(ids[owner])) else {
                continue;
            };
            let is_near = 1.0 - cosine(&self.centroids[own], &found[n]) < how.merge;
            if !has_one[place] && row[n] > 0 && is_near && own != other {
                merged.push(self.merge(own, other));
            }
        }
        self.mean();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: VoiceThresholds = VoiceThresholds {
        link: 0.45,
        merge: 0.15,
        least_seconds: 4.0,
    };

    /// A vector at an angle.
    fn at(degrees: f32) -> Vec<f32> {
        vec![degrees.to_radians().cos(), degrees.to_radians().sin()]
    }

    fn hear(known: &mut KnownVoices, degrees: f32, times: usize) -> Vec<Relabelled> {
        let mut out = Vec::new();
        for _ in 0..times {
            known.learn(&[&at(degrees)], 20, &HOW);
            out.extend(known.mend(20, &HOW, false).0);
        }
        out
    }

    fn who(known: &KnownVoices, degrees: f32) -> Option<usize> {
        known.id(nearest(known.centroids(), &at(degrees))?.0)
    }

    #[test]
    fn who_returns_keeps_the_id_and_a_new_voice_gets_the_next() {
        let mut known = KnownVoices::default();

        assert_eq!(hear(&mut known, 0.0, 3), []);
        assert_eq!(hear(&mut known, 90.0, 3), []);
        assert_eq!(hear(&mut known, 5.0, 30), []);
        assert_eq!(hear(&mut known, 180.0, 3), []);

        assert_eq!(known.ids().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(who(&known, 0.0), Some(0));
        assert_eq!(who(&known, 90.0), Some(1));
        assert_eq!(who(&known, 180.0), Some(2));
    }

    #[test]
    fn one_person_who_was_taken_for_two_is_merged_into_the_first() {
        let mut known = KnownVoices::default();
        hear(&mut known, 0.0, 2);
        // 50 degrees are a distance of 0.36: another person, until what lies between is heard.
        hear(&mut known, 50.0, 1);
        assert_eq!(known.len(), 2);

        let merged = hear(&mut known, 26.0, 12);

        assert_eq!(merged, [Relabelled::everywhere(1, 0)]);
        assert_eq!(known.len(), 1);
        hear(&mut known, 180.0, 1);
        assert_eq!(who(&known, 180.0), Some(2), "ids are never given again");
    }

    #[test]
    fn two_people_who_were_taken_for_one_are_parted_once_ten_seconds_are_heard() {
        let mut known = KnownVoices::default();
        hear(&mut known, 0.0, 20);
        // A distance of 0.23: too near for a new person at once, too far for the same.
        hear(&mut known, 40.0, 5);
        assert_eq!(known.len(), 1);

        hear(&mut known, 40.0, 15);

        assert_eq!(known.ids().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(who(&known, 0.0), Some(0));
        assert_eq!(who(&known, 40.0), Some(1));
    }

    #[test]
    fn who_was_heard_once_is_not_merged_into_somebody_else() {
        let mut known = KnownVoices::default();
        hear(&mut known, 90.0, 1);

        let merged = hear(&mut known, 0.0, 100);

        assert_eq!(merged, []);
        assert_eq!(who(&known, 90.0), Some(0));
    }

    #[test]
    fn two_local_speakers_of_one_window_are_two_people() {
        let mut known = KnownVoices::default();

        known.learn(&[&at(0.0), &at(80.0)], 20, &HOW);
        known.learn(&[&at(78.0), &at(2.0)], 20, &HOW);

        assert_eq!(known.len(), 2);
    }

    #[test]
    fn a_guess_is_replaced_by_who_talks_first() {
        let mut known = KnownVoices::default();
        known.guess(&at(90.0));

        hear(&mut known, 0.0, 1);

        assert_eq!(known.ids().collect::<Vec<_>>(), [0]);
        assert_eq!(known.centroids(), [at(0.0)]);
    }

    #[test]
    fn no_more_people_are_found_than_there_may_be() {
        let mut known = KnownVoices::default();
        for n in 0..8 {
            known.learn(&[&at(n as f32 * 45.0)], 3, &HOW);
            known.mend(3, &HOW, n == 7);
        }

        assert_eq!(known.len(), 3);
    }

    #[test]
    fn days_of_speech_are_no_more_vectors_than_minutes_and_nobody_is_forgotten() {
        let mut known = KnownVoices::default();
        hear(&mut known, 90.0, 2);
        for _ in 0..20 * VECTORS_MOST {
            known.learn(&[&at(0.0)], 20, &HOW);
        }

        assert!(known.vectors.len() <= VECTORS_MOST);
        assert!(known.vectors.len() > VECTORS_MOST / 3);
        assert_eq!(who(&known, 90.0), Some(0));
        assert_eq!(known.vectors.iter().filter(|v| v.id == 0).count(), 2);
    }
}
