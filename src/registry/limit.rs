// SPDX-License-Identifier: MPL-2.0
//! How much memory scribe may use, as people write it.

use std::str::FromStr;

/// Part of the capacity that reservations may fill.
pub const CEILING_PERCENT: u64 = 80;
/// Part above which idle models and spare lanes go first.
pub const SOFT_PERCENT: u64 = 70;

/// A limit: bytes, or a part of what the device has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the device's memory, above 0 to 100.
    Percent(f64),
}

impl MemoryLimit {
    /// In bytes, on a device that has `total`.
    pub fn bytes_of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.min(total),
            Self::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = String;

    /// Reads `8589934592`, `12G`, `1.5 GiB`, `512M` or `75%`. K, M, G and T are powers of 1024.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no memory limit: write bytes (8589934592), a size (12G, 512M) or a part of the memory (75%)"
            )
        };
        let text = text.trim();
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let number: f64 = digits.parse().map_err(|_| wrong())?;
        let unit = unit.trim().to_ascii_lowercase();
        let power = match unit.as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 1,
            "m" | "mb" | "mib" => 2,
            "g" | "gb" | "gib" => 3,
            "t" | "tb" | "tib" => 4,
            "%" if number > 0.0 && number <= 100.0 => return Ok(Self::Percent(number)),
            _ => return Err(wrong()),
        };
        let bytes = number * 1024f64.powi(power);
        if bytes >= 1.0 && bytes <= u64::MAX as f64 / 2.0 {
            Ok(Self::Bytes(bytes as u64))
        } else {
            Err(wrong())
        }
    }
}

impl std::fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&human_bytes(*bytes)),
            Self::Percent(percent) => write!(f, "{percent} %"),
        }
    }
}

/// Bytes for people: `72 KB`, `512 MB`, `16.0 GB`, in powers of 1024.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KB", bytes.div_ceil(1024)),
        1_048_576..1_073_741_824 => format!("{} MB", bytes >> 20),
        _ => format!("{:.1} GB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_people_write_it() {
        let read = |text: &str| text.parse::<MemoryLimit>();

        assert_eq!(read("8589934592"), Ok(MemoryLimit::Bytes(8 << 30)));
        assert_eq!(read("12G"), Ok(MemoryLimit::Bytes(12 << 30)));
        assert_eq!(read(" 1.5 GiB "), Ok(MemoryLimit::Bytes(3 << 29)));
        assert_eq!(read("512m"), Ok(MemoryLimit::Bytes(512 << 20)));
        assert_eq!(read("75%"), Ok(MemoryLimit::Percent(75.0)));
        for wrong in [
            "",
            "G",
            "-1",
            "0",
            "0%",
            "101%",
            "12X",
            "1e9G",
            "1.2.3",
            "nan",
            "99999999T",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_limit_is_never_more_than_there_is() {
        assert_eq!(MemoryLimit::Bytes(12 << 30).bytes_of(8 << 30), 8 << 30);
        assert_eq!(MemoryLimit::Percent(75.0).bytes_of(16 << 30), 12 << 30);
    }
}
