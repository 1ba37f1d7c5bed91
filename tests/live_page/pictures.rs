// SPDX-License-Identifier: MPL-2.0
//! Pictures of pages: kept, and looked at as far as a test can.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use super::common::repository;

/// Where they are to be found afterwards.
pub fn folder() -> PathBuf {
    let folder = repository("target/live_page");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub fn keep(name: &str, png: &[u8]) {
    let path = folder().join(name);
    std::fs::write(&path, png).unwrap();
    println!("picture: {}", path.display());
}

/// Width, height and how often each colour is there, of a PNG as Chromium writes it: 8 bits, RGB or RGBA, not interlaced.
pub fn colours(png: &[u8]) -> (usize, usize, HashMap<[u8; 3], usize>) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let mut packed = Vec::new();
    let (mut width, mut height, mut size) = (0, 0, 0);
    let mut rest = &png[8..];
    while rest.len() >= 12 {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let (kind, body) = (&rest[4..8], &rest[8..8 + length]);
        match kind {
            b"IHDR" => {
                width = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
                height = u32::from_be_bytes(body[4..8].try_into().unwrap()) as usize;
                size = match body[8..13] {
                    [8, 2, 0, 0, 0] => 3,
                    [8, 6, 0, 0, 0] => 4,
                    ref other => panic!("a PNG of another kind: {other:?}"),
                };
            }
            b"IDAT" => packed.extend_from_slice(body),
            _ => {}
        }
        rest = &rest[12 + length..];
    }
    let mut rows = Vec::new();
    flate2::read::ZlibDecoder::new(&packed[..])
        .read_to_end(&mut rows)
        .unwrap();
    assert_eq!(rows.len(), height * (1 + width * size));

    let mut counts = HashMap::new();
    let mut above = vec![0; width * size];
    for row in rows.chunks_mut(1 + width * size) {
        let (filter, row) = row.split_first_mut().unwrap();
        for i in 0..row.len() {
            let (left, corner) = if i < size {
                (0, 0)
            } else {
                (row[i - size], above[i - size])
            };
            let guess = match *filter {
                0 => 0,
                1 => left,
                2 => above[i],
                3 => ((u16::from(left) + u16::from(above[i])) / 2) as u8,
                4 => paeth(left, above[i], corner),
                other => panic!("no filter of PNG: {other}"),
            };
            row[i] = row[i].wrapping_add(guess);
        }
        for pixel in row.chunks(size) {
            *counts.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
        }
        above.copy_from_slice(row);
    }
    (width, height, counts)
}

fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, above, corner].map(i16::from);
    let p = a + b - c;
    let [da, db, dc] = [a, b, c].map(|x| (p - x).abs());
    if da <= db && da <= dc {
        left
    } else if db <= dc {
        above
    } else {
        corner
    }
}

/// The contrast of two colours, 1 to 21. Source: WCAG 2.2, "contrast ratio" and "relative luminance".
pub fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let luminance = |colour: [u8; 3]| {
        let [r, g, b] = colour.map(|value| {
            let value = f64::from(value) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    };
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

/// `rgb(1, 2, 3)` as a browser computes it.
pub fn rgb(text: &str) -> [u8; 3] {
    let inner = text.trim_start_matches("rgb(").trim_end_matches(')');
    let values: Vec<u8> = inner.split(", ").map(|v| v.parse().unwrap()).collect();
    values.try_into().unwrap_or_else(|_| panic!("{text}"))
}
