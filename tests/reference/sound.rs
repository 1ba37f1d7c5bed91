// SPDX-License-Identifier: MPL-2.0
// Included by those tests whose arrays tests/reference/*.py make; `sound` in sound.py is the same.

/// Sound of whole numbers of 16 bits, computed with whole numbers alone, so that every machine and language makes the same:
/// a triangle wave that rises from `seed` times 100 Hz, with noise; faint noise; silence; wave and noise around an offset; and again.
fn sound(seed: u32, samples: u32) -> Vec<f32> {
    let (mut noise, mut phase, mut step) = (seed, 0_u32, seed.wrapping_mul(26_843_546));
    let mut sample = |k: u32| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        phase = phase.wrapping_add(step);
        step = step.wrapping_add(seed.wrapping_mul(100_000));
        let hiss = (noise >> 20) as i32 - 2048;
        let tone = (phase.min(!phase) >> 17) as i32 - 8192;
        match k % 9600 {
            4000..5600 => hiss >> 8,
            5600..7200 => 0,
            7200.. => (tone >> 1) + hiss + 300,
            _ => tone + hiss,
        }
    };
    (0..samples)
        .map(|k| sample(k) as f32 / 32_768.0)
        .collect()
}
