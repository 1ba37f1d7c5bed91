// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::inference::onnx::cross::POSITIONS;

const HEADS: usize = 2;
const WIDTH: usize = HEADS * HEAD;

/// Values within -1 to 1, the same each time.
fn numbers(seed: u32) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        Some(state as f32 / u32::MAX as f32 * 2.0 - 1.0)
    })
}

/// Queries, keys and values side by side. `of`: from which of them, head, position, place and a number by chance.
fn input(positions: usize, of: impl Fn(usize, usize, usize, f32) -> f32) -> Vec<f32> {
    let places = (0..positions * 3 * WIDTH).zip(numbers(positions as u32));
    places
        .map(|(n, chance)| {
            let (position, rest) = (n / (3 * WIDTH), n % (3 * WIDTH));
            of(rest / WIDTH, position, rest % HEAD, chance)
        })
        .collect()
}

fn part(input: &[f32], which: usize, head: usize, position: usize) -> &[f32] {
    &input[position * 3 * WIDTH + which * WIDTH + head * HEAD..][..HEAD]
}

/// One row of one head, in 64 bits.
fn plainly(input: &[f32], head: usize, row: usize) -> Vec<f64> {
    let positions = input.len() / (3 * WIDTH);
    let query = part(input, 0, head, row);
    let score = |position| -> f64 {
        let terms = query.iter().zip(part(input, 1, head, position));
        terms
            .map(|(q, k)| f64::from(*q) * f64::from(*k))
            .sum::<f64>()
            / 8.0
    };
    let scores: Vec<f64> = (0..positions).map(score).collect();
    let most = scores.iter().copied().fold(f64::MIN, f64::max);
    let powers: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    let value = |d: usize| {
        let terms = powers.iter().enumerate();
        let term =
            |(position, power): (usize, &f64)| power * f64::from(part(input, 2, head, position)[d]);
        terms.map(term).sum::<f64>() / sum
    };
    (0..HEAD).map(value).collect()
}

fn attend(isa: Isa, input: &[f32]) -> Vec<f32> {
    let positions = input.len() / (3 * WIDTH);
    let mut attention = Attention::new(isa);
    let given = Given {
        values: input,
        positions,
        heads: HEADS,
    };
    // What a window before has left must not matter.
    let before = vec![f32::NAN; input.len()];
    let mut out = vec![f32::NAN; positions * WIDTH];
    kernel::attend(
        isa,
        Given {
            values: &before,
            ..given
        },
        &mut attention.room,
        &mut out,
    );
    kernel::attend(isa, given, &mut attention.room, &mut out);
    out
}

/// The largest difference from 64 bits in some rows, and the root of the mean square.
fn far(isa: Isa, input: &[f32]) -> (f64, f64) {
    let found = attend(isa, input);
    let positions = found.len() / WIDTH;
    let rows = (0..positions)
        .step_by(positions.div_ceil(16))
        .chain([positions - 1]);
    let (mut most, mut squares, mut count) = (0.0_f64, 0.0, 0.0);
    for row in rows {
        for head in 0..HEADS {
            let found = &found[row * WIDTH + head * HEAD..][..HEAD];
            for (found, exact) in found.iter().zip(plainly(input, head, row)) {
                let off = (f64::from(*found) - exact).abs();
                assert!(off.is_finite(), "{isa:?}: {found} in row {row}");
                most = most.max(off);
                squares += off * off;
                count += 1.0;
            }
        }
    }
    (most, f64::sqrt(squares / count))
}

/// Queries and keys whose scores differ by some, keys with a part that all have.
fn ordinary(positions: usize) -> Vec<f32> {
    input(positions, |which, _, d, chance| match which {
        1 => 3.0 * chance + if d % 16 == 3 { 20.0 } else { 0.0 },
        _ => 2.0 * chance,
    })
}

#[test]
fn all_processors_come_to_what_64_bits_do() {
    let input = ordinary(POSITIONS);

    for isa in Isa::known() {
        let (most, mean) = far(isa, &input);
        let (allowed, allowed_mean) = match isa.bits() {
            // Of 255 steps for a row, queries and keys are off by a third of one, in the mean of squares.
            8 => (1.5e-1, 1.5e-2),
            // A number of 16 bits is off by 1 in 512 at the most, and without its keys' mean by as much of 20.
            16 => (3e-2, 4e-3),
            _ => (3e-5, 3e-6),
        };
        assert!(
            most < allowed && mean < allowed_mean,
            "{isa:?}: {most}, {mean}"
        );
    }
}

#[test]
fn any_number_of_positions_will_do() {
    for isa in Isa::known() {
        for positions in [1, 2, 31, 32, 33, 60, 65, 255, 256, 257, 288, 321, 545] {
            let (most, _) = far(isa, &ordinary(positions));

            let allowed = match isa.bits() {
                8 => 1.5e-1,
                16 => 6e-2,
                _ => 3e-5,
            };
            assert!(most < allowed, "{isa:?}, {positions} positions: {most}");
        }
    }
}

#[test]
fn extreme_scores_are_shares_too() {
    let value = |position: usize, d: usize| {
        (position as f32 / POSITIONS as f32 - 0.5) * (d as f32 / 64.0 + 1.0)
    };
    // Scores of the head's first place alone; scores behind one another differ by far more than a share can.
    type Score = (&'static str, fn(usize) -> f32);
    let scores: [Score; 8] = [
        ("all equal", |_| 1.0),
        ("all equal and large", |_| 1e9),
        ("one far above", |p| if p == 777 { 1e6 } else { 0.0 }),
        ("the last far above", |p| {
            if p == POSITIONS - 1 { 1e6 } else { 0.0 }
        }),
        ("one far below", |p| if p == 777 { -1e6 } else { 0.0 }),
        ("rising", |p| 100.0 * p as f32),
        ("falling", |p| -100.0 * p as f32),
        ("now up, now down", |p| (p * 37 % 101) as f32 * 500.0),
    ];
    for (name, score) in scores {
        let input = input(POSITIONS, |which, position, d, _| match (which, d) {
            (0, 0) => 8.0,
            (1, 0) => score(position),
            (2, _) => value(position, d),
            _ => 0.0,
        });
        for isa in Isa::known() {
            let (most, _) = far(isa, &input);

            // With fewer bits keys of some neighbours become the same, and their values are alike.
            let allowed = if isa.bits() < 32 { 1e-2 } else { 1e-4 };
            assert!(most < allowed, "{isa:?}, {name}: {most}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    for odd in [f32::NAN, f32::INFINITY] {
        let mut input = ordinary(100);
        // A query of the second head.
        input[70 * 3 * WIDTH + HEAD] = odd;
        for isa in Isa::known() {
            let found = attend(isa, &input);

            for (n, row) in found.chunks_exact(HEAD).enumerate() {
                let expected = n == 70 * HEADS + 1;
                assert_eq!(
                    row.iter().all(|v| v.is_nan()),
                    expected,
                    "{isa:?}, {odd}, {n}"
                );
            }
        }
    }
}

#[test]
fn two_threads_do_not_disturb_one_another() {
    let inputs = [ordinary(POSITIONS), ordinary(POSITIONS - 200)];
    for isa in Isa::known() {
        if isa == Isa::Plain {
            continue;
        }
        let alone = inputs.each_ref().map(|input| attend(isa, input));

        let together: Vec<_> = std::thread::scope(|scope| {
            let run = |input: &Vec<f32>| {
                let input = input.clone();
                scope.spawn(move || -> Vec<_> { (0..4).map(|_| attend(isa, &input)).collect() })
            };
            let threads = inputs.each_ref().map(run);
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });

        for (alone, together) in alone.iter().zip(together) {
            assert!(together.iter().all(|found| found == alone), "{isa:?}");
        }
    }
}

#[test]
fn odd_shapes_are_refused() {
    let sizes = Sizes::of(&[2, 1500, 1152]).unwrap();
    assert_eq!((sizes.windows, sizes.positions, sizes.heads), (2, 1500, 6));
    for odd in [
        &[1, 1500, 384 * 3 - 64][..],
        &[1, 1500, 0],
        &[1, 0, 1152],
        &[0, 1500, 1152],
        &[1, -1, 1152],
        &[1500, 1152],
        &[1, 1, 1500, 1152],
    ] {
        assert!(Sizes::of(odd).is_none(), "{odd:?}");
    }
}

#[test]
#[ignore = "how long it takes, for people"]
fn time() {
    let values: Vec<f32> = numbers(1).take(POSITIONS * 3 * 6 * HEAD).collect();
    for isa in Isa::known() {
        let mut attention = Attention::new(isa);
        let mut out = vec![0.0; POSITIONS * 6 * HEAD];
        let mut best = std::time::Duration::MAX;
        for _ in 0..20 {
            let start = std::time::Instant::now();
            let given = Given {
                values: &values,
                positions: POSITIONS,
                heads: 6,
            };
            kernel::attend(isa, given, &mut attention.room, &mut out);
            best = best.min(start.elapsed());
        }
        println!("{isa:?}: six heads of a layer {best:?}");
    }
}
